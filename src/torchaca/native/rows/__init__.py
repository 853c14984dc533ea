"""Rows natively: the samples of a batch, each a solve of its own, one after the other by each of several threads."""

from .executor import NativeRows
from .plan import Ended

__all__ = ["Ended", "NativeRows"]
