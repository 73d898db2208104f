"Calibration, ranking and accuracy from logits and labels, with one binning behind every number and plot."
from .inputs import *
from .calibration import *
from .ranking import *
from .reference import *
from .evaluation import *
