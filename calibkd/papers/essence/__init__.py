"What the exhibits of *Revisit the Essence of Distilling Knowledge through Calibration* share, from settings to rules."
from ...studies import together, training_of
from .runs import *
from .printed import *
from .sweeps import *
from .teachers import *
