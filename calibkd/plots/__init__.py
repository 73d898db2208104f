"Numbers first, then the drawing: reliability diagrams, heat maps, curves, scatter plots, fit to print."
from .page import *
from .diagrams import *
from .confidence import *
from .flow import *
from .heatmaps import *
from .lines import *
from .points import *
from .strips import *
