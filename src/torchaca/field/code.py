"""The names that a function's code mentions."""

from __future__ import annotations

import dis
import functools
import types
from dataclasses import dataclass


@dataclass(frozen=True)
class Mentions:
    """The names in a function's code, nested functions included."""

    variables: frozenset[str]
    attributes: frozenset[str]


@functools.lru_cache(maxsize=4096)
def mentions(code: types.CodeType) -> Mentions:
    """Read the names of global variables and of attributes from a function's code."""
    loads = ("LOAD_GLOBAL", "LOAD_NAME")
    variables = {x.argval for x in dis.get_instructions(code) if x.opname in loads}
    attributes = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner = mentions(constant)
            variables |= inner.variables
            attributes |= inner.attributes
    return Mentions(frozenset(variables), frozenset(attributes))
