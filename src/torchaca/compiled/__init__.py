"""`compile=True`: a whole solve and its ACA backward pass as compiled loops."""

from .aca import solved

__all__ = ["solved"]
