"""Rows natively: the samples of a batch, each a solve of its own, a few side by side in each thread."""

from .executor import NativeRows
from .passes import RowPasses
from .plan import Ended

__all__ = ["Ended", "NativeRows", "RowPasses"]
