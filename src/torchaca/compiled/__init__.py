"""`compile=True`: a whole solve and its ACA backward pass as compiled loops; `compile="steps"`: each step a graph."""

from .aca import solved
from .graphs import in_steps

__all__ = ["in_steps", "solved"]
