"""What f can read: a walk from the function object over closures, globals, bound objects and modules.

The walk follows what f's code names. Of an object that is no module it looks at the attributes that the code found so
far mentions, at the methods and properties among them, and at no others, so that a data set behind `self` costs
nothing. Modules are looked at as a whole (parameters, buffers, submodules), containers entry by entry, a long one by a
sample.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor, nn

from .code import mentions
from .places import Path, Place

OPAQUE_PACKAGES = frozenset(sys.stdlib_module_names) | {
    *("torch", "numpy", "scipy", "torchaca", "torch_ACA"),
    *("lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"),
}
OBJECT_LIMIT = 2_000  # objects other than modules and their parts that are looked at
LONG = 256  # a longer container is looked at by a sample of its entries, one after the other
SAMPLE = 16
PLAIN = (str, bytes, int, float, complex, type(None))
CLOSED = (Iterator, weakref.ReferenceType)  # may hold a tensor and do not say so
CACHED = type(functools.cache(int))
CALLABLES = (
    *(types.MethodType, types.FunctionType, types.BuiltinMethodType),
    *(partial, property, staticmethod, classmethod, functools.cached_property, CACHED),
)
MODULE_INTERNALS = frozenset(vars(nn.Module()))
MODULE_PARTS = ("_parameters", "_buffers", "_modules")
MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
BY_ANY_NAME = frozenset({"getattr", "vars", "globals", "eval", "exec", "attrgetter", "__dict__"})
"""Code that mentions one of these may read attributes that it does not name."""
NOT_CALLED = frozenset({"__init__", "__new__", "__del__", "__repr__", "__str__", "__init_subclass__"})
"""Special methods that no evaluation of f calls; others may be called without their names."""


@dataclass
class Reach:
    """What the walk has found.

    Attributes
    ----------
    tensors : list of (Path, Tensor)
        Each tensor once, with the path on which it was found first.
    modules : list of Module
    places : list of Place
        Where values were read from: attributes, variables, entries of short containers.
    containers : list of (Path, container, int)
        Lists, dicts, deques and sets with their lengths.
    blind, caches : bool
        Something on the way (an iterator, a long container) was not looked into, or has a memory (`functools.cache`).
    looked : int
        How many objects were looked at.
    names : set of str
        The attributes that the code mentions.
    """

    tensors: list[tuple[Path, Tensor]] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    containers: list[tuple[Path, Any, int]] = field(default_factory=list)
    blind: bool = False
    caches: bool = False
    looked: int = 0
    names: set[str] = field(default_factory=set)

    @property
    def hides(self) -> bool:
        """Whether a tensor may be kept where the walk does not find it."""
        return self.blind or self.caches


def reach(root: Callable[..., Any], args: tuple[Any, ...] = ()) -> Reach:
    """Find the tensors and the places that a function, and its arguments, can read from."""
    walk = _Walk()
    walk.follow((("args",), args), (("f",), root))
    return walk.found


Entry = tuple[Path, Any]


class _Walk:
    """A search, depth first; `names` are the attributes that the code found so far mentions."""

    def __init__(self) -> None:
        self.found = Reach()
        self.names = self.found.names
        self.visited: set[int] = set()
        self.pending: list[Entry] = []
        self.holders: list[tuple[Path, Any, Mapping[str, Any]]] = []
        self.objects = 0

    def follow(self, *entries: Entry) -> None:
        """Look at these, and at what they lead to, until nothing new is found."""
        self.pending.extend(entries)
        known: set[str] = set()
        while self.pending:
            while self.pending:
                self._look(*self.pending.pop())
            new = self.names - known
            known |= new
            if new:  # attributes of objects that were seen before their names were
                for holder in list(self.holders):
                    self._attributes(*holder, new)

    def _look(self, path: Path, thing: Any) -> None:
        if id(thing) in self.visited or isinstance(thing, PLAIN):
            return
        self.visited.add(id(thing))
        found = self.found
        found.looked += 1
        if isinstance(thing, Tensor):
            found.tensors.append((path, thing))
        elif isinstance(thing, nn.Module):
            found.modules.append(thing)
            self._module(path, thing)
        elif isinstance(thing, CLOSED):
            found.blind = True
        elif self.objects < OBJECT_LIMIT:
            self.objects += 1
            self._parts(path, thing)
        else:
            found.blind = True

    def _place(self, path: Path, holder: Any, key: Any, value: Any, public: bool = False) -> None:
        """Note where a value stands, and look at it later."""
        if not isinstance(value, types.ModuleType):
            self.found.places.append(Place(path, holder, key, value, public))
            if not isinstance(value, PLAIN):
                self.pending.append((path, value))

    def _parts(self, path: Path, thing: Any) -> None:
        if isinstance(thing, CALLABLES):
            self._callable(path, thing)
        elif isinstance(thing, (dict, list, tuple, set, frozenset, deque)):
            self._container(path, thing)
        elif isinstance(thing, Mapping):
            self.pending += [((path, "[", k, "]"), v) for k, v in islice(thing.items(), LONG)]
            self.found.blind |= len(thing) > LONG
        elif isinstance(thing, ContextVar):
            self.pending.append((path, thing.get(None)))
        elif isinstance(thing, threading.local):
            self.pending.append((path, dict(vars(thing))))
        elif isinstance(thing, type):
            self._class(path, thing)
        elif isinstance(thing, types.SimpleNamespace):
            self._holder(path, vars(thing), vars(thing))
        elif not opaque(type(thing)):
            self._object(path, thing)

    def _callable(self, path: Path, thing: Any) -> None:
        if isinstance(thing, types.MethodType):
            self.pending += [(path, thing.__self__), (path, thing.__func__)]
        elif isinstance(thing, types.FunctionType):
            self._function(path, thing)
        elif isinstance(thing, partial):
            self.pending += [(path, part) for part in (thing.func, thing.args, thing.keywords)]
        elif isinstance(thing, property):
            self.pending.append((path, thing.fget))
        elif isinstance(thing, (staticmethod, classmethod)):
            self.pending.append((path, thing.__func__))
        elif isinstance(thing, functools.cached_property):
            self.pending.append((path, thing.func))
        elif isinstance(thing, CACHED):
            self.found.caches = True
            self.pending.append((path, thing.__wrapped__))
        else:  # a tensor's own: weight.mul
            self.pending.append((path, thing.__self__))

    def _container(self, path: Path, thing: Any) -> None:
        """All entries of a short container; of a long one, a sample tells whether it is data."""
        entries: Iterable[tuple[Any, Any]] = thing.items() if isinstance(thing, dict) else enumerate(thing)
        if isinstance(thing, (dict, list, deque, set)):
            self.found.containers.append((path, thing, len(thing)))
        if len(thing) > LONG:
            sample = [value for _, (_, value) in zip(range(SAMPLE), entries, strict=False)]
            # Of a long container only a model's parts are looked at, not a data set.
            if not any(
                isinstance(x, nn.Module) or getattr(x, "requires_grad", False) is True for x in sample
            ):
                self.found.blind |= not all(isinstance(value, PLAIN) for value in sample)
                return
            entries = thing.items() if isinstance(thing, dict) else enumerate(thing)
        movable = isinstance(thing, (dict, list)) and len(thing) <= LONG
        for key, value in entries:
            where = (path, "[", key, "]")
            if movable:
                self._place(where, thing, key, value)
            elif not isinstance(value, PLAIN):
                self.pending.append((where, value))

    def _own(self, path: Path, holder: dict[str, Any], attributes: Mapping[str, Any]) -> None:
        self.found.containers.append((path, holder, len(holder)))  # new attributes are seen by its length
        self._holder(path, holder, attributes)

    def _holder(self, path: Path, holder: Any, attributes: Mapping[str, Any]) -> None:
        """An object's attributes, as far as code names them, now or later."""
        self.holders.append((path, holder, attributes))
        self._attributes(path, holder, attributes, self.names)

    def _attributes(self, path: Path, holder: Any, attributes: Mapping[str, Any], names: set[str]) -> None:
        any_name = not BY_ANY_NAME.isdisjoint(names)
        for name in list(attributes) if any_name else sorted(attributes.keys() & names):
            self._place((path, ".", name), holder, name, attributes[name])

    def _object(self, path: Path, thing: Any) -> None:
        own = getattr(thing, "__dict__", None)
        if own:
            self._own(path, own, own)
        for cls in type(thing).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if name.startswith("__") and not name.endswith("__"):
                    name = f"_{cls.__name__.lstrip('_')}{name}"
                if name != "__dict__" and hasattr(thing, name):
                    self._place((path, ".", name), thing, name, getattr(thing, name))
        self._methods(path, type(thing))

    def _class(self, path: Path, cls: type) -> None:
        if not opaque(cls):
            self._holder(path, cls, vars(cls))

    def _methods(self, path: Path, cls: type) -> None:
        """The attributes of a class that code names, and the special methods, which are called without a name."""
        for base in cls.__mro__:
            if opaque(base) or id(base) in self.visited:
                continue
            self.visited.add(id(base))
            own = vars(base)
            self._holder(path, base, own)
            for name, value in own.items():
                special = name.startswith("__") and name.endswith("__") and name not in NOT_CALLED
                if special and isinstance(value, types.FunctionType):
                    self.pending.append((path, value))

    def _module(self, path: Path, module: nn.Module) -> None:
        own = vars(module)
        for kind in MODULE_PARTS:
            for name, part in own[kind].items() if own.get(kind) else ():
                where = (path, ".", name)
                self.found.places.append(Place(where, own[kind], name, part))
                if part is not None:
                    self.pending.append((where, part))
        if "training" in own:
            self.found.places.append(Place((path, ".training"), own, "training", own["training"]))
        for kind in MODULE_HOOKS:
            if hooks := own.get(kind):
                self.pending += [(path, hook) for hook in hooks.values()]
        cls = type(module)
        rest = {name: own[name] for name in own.keys() - MODULE_INTERNALS}
        if cls.__module__.startswith("torch."):  # a weight that torch's weight_norm has computed
            self.pending += [((path, ".", k), v) for k, v in rest.items() if isinstance(v, Tensor)]
            return
        self._own(path, own, rest)
        if not opaque(cls):
            self.pending.append((path, getattr(cls, "forward", None)))
            self._methods(path, cls)

    def _function(self, path: Path, function: types.FunctionType) -> None:
        if (function.__module__ or "").split(".")[0] in OPAQUE_PACKAGES:
            return
        cells = function.__closure__ or ()
        for variable, cell in zip(function.__code__.co_freevars, cells, strict=True):
            try:
                self._place((variable,), cell, "", cell.cell_contents)
            except ValueError:  # an empty cell: not yet assigned
                continue
        named = mentions(function.__code__)
        self.names |= named.attributes
        for variable in sorted(named.variables & function.__globals__.keys()):
            value = function.__globals__[variable]
            if not isinstance(value, types.ModuleType):
                self._place((variable,), function.__globals__, variable, value, public=True)
            elif variable not in OPAQUE_PACKAGES and value.__name__.split(".")[0] not in OPAQUE_PACKAGES:
                for name in sorted(named.attributes & vars(value).keys()):
                    self._place((variable, ".", name), vars(value), name, vars(value)[name], public=True)
        self.pending += [(path, function.__defaults__), (path, function.__kwdefaults__)]
        if attributes := vars(function):
            self.pending.append((path, attributes))


def opaque(cls: type) -> bool:
    """Whether a class is one of Python's or of a library's that does not hold a model's tensors in attributes."""
    return cls.__module__.split(".")[0] in OPAQUE_PACKAGES
