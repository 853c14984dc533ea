"""`compile="loops"`: a whole solve and its ACA backward pass as compiled loops; "steps": each step as a graph."""

from .aca import Loops
from .failure import CannotCompile
from .graphs import in_steps

__all__ = ["CannotCompile", "Loops", "in_steps"]
