"Where a network puts its classes, and how far apart similar classes stay."
from .separations import *
from .projection import *
from .tsne import *
