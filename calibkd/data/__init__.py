"Data sets as tensors: splits, images, folders, texts"
from ..places import cache_root, data_root
from .splits import *
from .images import *
from .folders import *
from .text import *
