"What a student takes from a teacher."
from .logits import *
from .features import *
from .relations import *
from .contrast import *
from .weighting import *
