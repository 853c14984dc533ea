"""A graph of ATen operations as C: the table of operations, and their translation."""

from .function import Argument, Symbol, Uncovered
from .function import CFunction as Function
from .libraries import addresses, prelude
from .translate import OPERATIONS, decompositions, translate, translate_pair

__all__ = [
    "Argument",
    "Function",
    "OPERATIONS",
    "Symbol",
    "Uncovered",
    "addresses",
    "decompositions",
    "prelude",
    "translate",
    "translate_pair",
]
