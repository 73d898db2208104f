"What the exhibits of *Distilling Calibrated Student from an Uncalibrated Teacher* share, from settings to rules."
from .arms import *
from .rules import *
from .printed import *
from .shown import *
