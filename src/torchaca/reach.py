"""Every tensor that can be reached from a function object: closure, bound object, module, globals it names."""

from __future__ import annotations

import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

OPAQUE_PACKAGES = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "scipy", "torchaca"}
REACH_LIMIT = 50_000  # objects looked at before the search gives up; models have hundreds
PLAIN = (str, bytes, int, float, complex, type(None))
CLOSED = (Iterator, weakref.ReferenceType)  # may hold a tensor and do not say so
MODULE_INTERNALS = frozenset(vars(nn.Module()))

Path = tuple[Any, ...]
"""Where a tensor was found, `(path of its owner, key)`; written out by `label` when somebody has to read it."""


def label(path: Path) -> str:
    """A path in words: `"f.net.0.weight"`."""
    owner, *rest = path
    text = label(owner) if isinstance(owner, tuple) else str(owner)
    return text + "".join(str(key) for key in rest)


def owner(path: Path) -> Path:
    """The path of the object that holds what is at `path`."""
    return path[0] if isinstance(path[0], tuple) else path


@dataclass(frozen=True)
class Reach:
    """The tensors that were found; `blind`: something on the way (an iterator, say) cannot be looked into."""

    tensors: list[tuple[Path, Tensor]]
    blind: bool


def reach(root: Callable[..., Any], args: tuple[Any, ...] = ()) -> Reach:
    """Every tensor that a Python walk from the function object, and from its arguments, finds."""
    tensors: list[tuple[Path, Tensor]] = []
    blind = False
    visited: set[int] = set()
    pending: list[tuple[Path, Any]] = [(("args",), args), (("f",), root)]
    looked = 0
    while pending and looked < REACH_LIMIT:
        path, thing = pending.pop()
        looked += 1
        if isinstance(thing, PLAIN) or id(thing) in visited:
            continue
        visited.add(id(thing))
        if isinstance(thing, Tensor):
            tensors.append((path, thing))
        elif isinstance(thing, nn.Module):  # before the others: of a network, it is nearly everything
            pending.extend(_module_parts(path, thing))
        elif isinstance(thing, CLOSED):
            blind = True
        else:
            pending.extend(_parts(path, thing))
    return Reach(tensors, blind or bool(pending))


def _parts(path: Path, thing: Any) -> Iterator[tuple[Path, Any]]:
    """What `thing` holds, one level down."""
    if isinstance(thing, types.MethodType):
        yield path, thing.__self__
        yield path, thing.__func__
    elif isinstance(thing, types.FunctionType):
        yield from _function_parts(path, thing)
    elif isinstance(thing, partial):
        yield from ((path, part) for part in (thing.func, thing.args, thing.keywords))
    elif isinstance(thing, dict):
        yield from (((path, "[", key, "]"), value) for key, value in thing.items())
    elif isinstance(thing, (list, tuple, set, frozenset, deque)):
        first = next(iter(thing), None)
        if not isinstance(first, PLAIN) or len(thing) < 100:  # a long list of numbers is data
            yield from (((path, "[", i, "]"), value) for i, value in enumerate(thing))
    elif isinstance(thing, types.SimpleNamespace):
        yield from (((path, ".", key), value) for key, value in vars(thing).items())
    elif isinstance(thing, type):
        if thing.__module__.split(".")[0] not in OPAQUE_PACKAGES:
            yield from (((path, ".", k), v) for k, v in vars(thing).items() if isinstance(v, Tensor))
    elif type(thing).__module__.split(".")[0] not in OPAQUE_PACKAGES:
        yield from _object_parts(path, thing)


def _object_parts(path: Path, thing: Any) -> Iterator[tuple[Path, Any]]:
    yield from (((path, ".", key), value) for key, value in getattr(thing, "__dict__", {}).items())
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        yield from (((path, ".", name), getattr(thing, name, None)) for name in names)
    yield path, type(thing)
    if callable(thing):
        yield path, type(thing).__call__


def _module_parts(path: Path, module: nn.Module) -> Iterator[tuple[Path, Any]]:
    own = vars(module)
    for kind in ("_parameters", "_buffers", "_modules"):
        for key, part in own.get(kind, {}).items():
            yield (path, ".", key), part
    for key, value in own.items():
        if key not in MODULE_INTERNALS and not isinstance(value, PLAIN):
            yield (path, ".", key), value
    yield path, getattr(type(module), "forward", None)  # a ScriptModule has none


def _function_parts(path: Path, function: types.FunctionType) -> Iterator[tuple[Path, Any]]:
    if (function.__module__ or "").split(".")[0] in OPAQUE_PACKAGES:
        return
    cells = function.__closure__ or ()
    for variable, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield (variable,), cell.cell_contents
        except ValueError:  # an empty cell: not yet assigned
            continue
    names = _names(function.__code__)
    for variable in names:
        value = function.__globals__.get(variable)
        if isinstance(value, types.ModuleType):
            if variable not in OPAQUE_PACKAGES:
                own = vars(value)
                yield from (((variable, ".", inner), own[inner]) for inner in names if inner in own)
        else:
            yield (variable,), value
    yield path, function.__defaults__
    yield path, function.__kwdefaults__
    yield path, vars(function)


def _names(code: types.CodeType) -> set[str]:
    """The global and attribute names that a function mentions, in nested functions too."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names
