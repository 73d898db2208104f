"What a student takes from a teacher."
from .logits import *
