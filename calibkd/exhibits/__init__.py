"One figure or table of a paper: its parameters, its claims with verdicts, and what it leaves behind."
from ..places import project_root, results_root
from .parameters import *
from .judge import *
from .claims import *
from .exhibit import *
from .tables import *
from .catalogue import *
from .board import *
from .again import *
from .decide import *
