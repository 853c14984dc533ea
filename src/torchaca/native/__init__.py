"""`compile="native"`: f and its vector-Jacobian product as C, in loops that are compiled once for all of them."""

from .executor import Native

__all__ = ["Native"]
