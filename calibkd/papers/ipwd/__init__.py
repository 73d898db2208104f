"Settings, rows, runs, printed numbers and rules of the exhibits on *Respecting Transfer Gap in Knowledge Distillation*."
from .rows import *
from .weights import *
from .classes import *
from .comparisons import *
