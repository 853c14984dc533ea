"""Capture f: its graph and the tensors that it reads, from one evaluation.

Dynamo evaluates f once at the door of every solve. That is the solve's first evaluation; beside its value it gives
the graph of f with everything that f reads (parameters, buffers, arguments, captured tensors) as inputs, and guards:
where an attribute of f has changed, f gets another graph, and where only values have, the same one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..field.dynamics import Dynamics, packed
from ..field.effects import generator_states, set_generator_states
from ..field.saved import graph_bytes
from ..torch_internals import is_limit_of_graphs, is_verdict_of_dynamo, mark_dynamic, pytree
from .compiler import renamed, settings
from .failure import CannotCompile, Modes, TooManyGraphs, attempt, first_line, wrapped_in
from .field_graph import FieldGraph
from .scalars import NumbersStay, as_numbers_do

CHANGES = (
    "f has been traced too often: a number, or something else that it reads, changes from solve to solve; hand it over "
    "as a tensor, args=(torch.tensor(x),)"
)


@dataclass
class Capture:
    """One evaluation of f: its graph, the tensors it read, its value, those sizes that may change, PyTorch's modes."""

    field: FieldGraph
    inputs: tuple[Tensor, ...]
    value: Tensor
    sizes: frozenset[int]
    modes: Modes
    recorded: FirstEvaluation | None = None

    def tell(self, f: Dynamics, y0: Tensor) -> None:
        """Have f know in which precision it computes.

        Raises
        ------
        CannotCompile
            If a derivative by the state is wanted, and f computes its value without a graph: the eager loop warns.
        """
        f.note_precision(self.field.half)
        if self.field.y_at in self.field.unrecorded and y0.requires_grad and torch.is_grad_enabled():
            raise CannotCompile("f computes its value from y under no_grad")

    def call(
        self, place: Any, build: Callable[[], Callable[..., Any]], *args: Any, dynamic: bool = True
    ) -> Any:
        """Call what is compiled for f at that place; it is built and compiled first where it has not been.

        `dynamic`: for all sizes of those dimensions whose sizes may change.

        Raises
        ------
        CannotCompile
            Where the compiler fails, now or before: another attempt would take as long.
        """
        loops, grad = self.field.loops, torch.is_grad_enabled()
        if place in loops:
            if isinstance(loops[place], str):
                raise CannotCompile(loops[place])
            try:
                return loops[place](*args)
            except (
                Exception
            ) as error:  # of the compiler, for other sizes; or of f, which the eager loop raises again
                self.modes._replace(grad=grad).restore()
                raise CannotCompile(f"the compiled code failed ({first_line(error)})") from error
        made = build()
        for x in pytree.tree_leaves(args) if dynamic else ():
            for dim, size in enumerate(x.shape):
                if size in self.sizes:
                    mark_dynamic(x, dim)
        try:
            with attempt(), settings():
                out = made(*args)
        except Exception as error:
            loops[place] = f"the compiler failed ({first_line(error)})"
            raise CannotCompile(loops[place]) from error
        loops[place] = made
        return out


@dataclass(frozen=True)
class FirstEvaluation:
    """The first evaluation with its graph: the value, leaves in the places of y and of the inputs, and its bytes."""

    value: Tensor
    y: Tensor
    inputs: tuple[Tensor, ...]
    nbytes: int


@dataclass
class Call:
    """One evaluation that is being captured: of which graph, on what tensors; with `record`, as a graph of autograd.

    Without `evaluates`, its value is not needed. `found` are the graph, its inputs, and where it is recorded their
    leaves and the value.
    """

    y: Tensor
    record: bool
    evaluates: bool = True
    found: list[tuple[FieldGraph, list[Tensor], list[Tensor], Tensor]] = field(default_factory=list)

    def leaves(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the graph is evaluated on."""
        if not self.record:
            return list(tensors)
        return [x.detach().requires_grad_(x is self.y or x.requires_grad) for x in tensors]


def capture(
    f: Dynamics,
    time: Tensor,
    y0: Tensor,
    record: bool = False,
    evaluates: bool = True,
    transforms: bool = False,
    scalars: bool = False,
    form: Callable[..., Any] = packed,
) -> Capture:
    """Evaluate f through Dynamo; `record`: and keep the graph of that evaluation.

    Without `evaluates`, only an f that was not seen before is evaluated, and the value is not to be used. With
    `transforms`, those of torch.func may be in the graph; with `scalars`, a Python number that has changed is an input
    of the next graph, if it can be one. `form` calls f on a packed state, as `packed` does.

    Raises
    ------
    CannotCompile
        Where f has no graph, or is more than a function.
    """
    given = f, time, y0, record, evaluates, transforms, form
    try:
        return _captured(*given, scalars and _identity(f.func) not in _CONSTANT)
    except NumbersStay:
        keep_numbers(f)
        return _captured(*given, False)


def keep_numbers(f: Dynamics) -> None:
    """Have the numbers of an f be constants of its graphs from now on."""
    _CONSTANT.add(_identity(f.func))


def _captured(
    f: Dynamics,
    time: Tensor,
    y0: Tensor,
    record: bool,
    evaluates: bool,
    transforms: bool,
    form: Callable[..., Any],
    scalars: bool,
) -> Capture:
    key = _identity(f.func)
    owner = key if isinstance(key, types.CodeType) else f.func  # that class may have other, traceable objects
    with contextlib.suppress(TypeError):  # an object that cannot be a key is tried again each time
        if owner in _UNTRACED:
            raise CannotCompile(_UNTRACED[owner])
    evaluate, stack, modes = _entry(key, transforms, form, scalars), _stack(), Modes.now()
    # Nothing that f may hold itself; as in a training step, whatever the solve is for.
    time, y = time.clone(), y0.detach().clone().requires_grad_()
    call = Call(y, record, evaluates)
    stack.append(call)
    try:
        first = contextlib.nullcontext() if key in _SEEN else attempt()
        with TRACING, first, torch.enable_grad(), settings(scalars=scalars):
            value = evaluate(f.func, f.structure, f.fit, time, y, f.args)
    except CannotCompile:
        raise
    except Exception as error:
        modes.restore()
        cause = wrapped_in(error)
        if cause is not None:
            raise cause from None
        if is_limit_of_graphs(error):
            raise TooManyGraphs(CHANGES) from error
        reason = f"f cannot be traced ({first_line(error)})"
        if scalars and key in _SEEN:  # it was, when its numbers were constants
            raise NumbersStay(reason) from error
        if is_verdict_of_dynamo(error) and "bserved exc" not in str(error):
            _UNTRACED[owner] = (
                reason  # another attempt would take as long; an error that f raises may be gone then
            )
        raise CannotCompile(reason) from error
    finally:
        stack.pop()
        _SEEN.add(key)
    if len(call.found) != 1:
        raise CannotCompile("f has no operation on tensors that could be compiled")
    return _pure(call, time, value, modes)


def _pure(call: Call, time: Tensor, value: Tensor, modes: Modes) -> Capture:
    ((graph, tensors, leaves, recorded),), y = call.found, call.y
    sizes = frozenset(tensors[at].shape[dim] for at, dim in graph.dynamic)
    places = {id(x): i for i, x in enumerate(tensors)}
    graph.n_inputs = len(tensors)
    graph.t_at, graph.y_at = places.get(id(time)), places.get(id(y))
    own = [i for i, x in enumerate(tensors) if x is not time and x is not y]
    seen = Capture(graph, tuple(tensors[i] for i in own), value, sizes, modes)
    if call.record and graph.y_at is not None:
        nbytes, own_leaves = graph_bytes(recorded, 0, leaves), tuple(leaves[i] for i in own)
        seen.recorded = FirstEvaluation(recorded, leaves[graph.y_at], own_leaves, nbytes)
    return seen


TRACING = threading.RLock()
"""Held by whoever traces: while one thread makes a graph, PyTorch refuses to call compiled functions in others."""
_UNTRACED: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_CONSTANT: set[Any] = set()  # whose numbers cannot be inputs, by `_identity`
_SEEN: set[Any] = set()  # of what Dynamo has been asked for, by `_identity`
_CALLS = threading.local()  # what is being captured in this thread, the innermost last


def _stack() -> list[Call]:
    if not hasattr(_CALLS, "stack"):
        _CALLS.stack = []
    return _CALLS.stack


def _backend(transforms: bool, graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """A compiler for Dynamo that keeps the graph, and hands over what it is called with."""
    kept = FieldGraph.of(graph, transforms=transforms)

    def run(*inputs: Any) -> Any:
        tensors, call = [x for x in inputs if isinstance(x, Tensor)], _stack()[-1]
        leaves = call.leaves(tensors)
        if kept.effects:  # no evaluation, which would have them again
            raise CannotCompile(kept.effects)
        if kept.effects is not None and not call.evaluates:
            call.found.append((kept, tensors, leaves, call.y))
            return (call.y,)
        with torch.set_grad_enabled(call.record):
            if kept.effects is None:
                with as_numbers_do(kept.exact, leaves) as check:
                    value, kept.effects = _watched(kept, leaves)
                    check(value)
            else:
                value = kept.evaluate(*leaves)
        if kept.effects:
            raise CannotCompile(kept.effects)
        call.found.append((kept, tensors, leaves, value))
        return (value.detach(),)

    return run


def _watched(f: FieldGraph, tensors: Sequence[Tensor]) -> tuple[Tensor, str]:
    """f's value, and what it leaves behind, in words; random numbers are given back, and buffers as they were."""
    device = tensors[0].device if tensors else torch.device("cpu")
    generators, own = generator_states(device), [x for x in tensors if not x.is_inference()]
    versions = [x._version for x in own]
    buffers = [(x, x.detach().clone()) for x in own if not x.requires_grad]
    out = f.evaluate(*tensors)
    if any(not torch.equal(a, b) for a, b in zip(generators, generator_states(device), strict=True)):
        set_generator_states(device, generators)
        return out, "f draws random numbers (Dropout?)"
    moved = versions != [x._version for x in own]
    for buffer, before in buffers if moved else ():
        buffer.data.copy_(before)  # past the version counter, as batch norm's kernel
    return out, "f changes a tensor in place (BatchNorm in training mode?)" if moved else ""


def _identity(func: Any) -> Any:
    """What two objects share that have the same Python code: functions by their code, other callables by class."""
    if isinstance(func, functools.partial):
        return ("partial", _identity(func.func))
    inner = getattr(func, "__func__", func)
    return getattr(inner, "__code__", type(func))


@functools.cache
def _entry(key: Any, transforms: bool, form: Any, scalars: bool) -> Callable[..., Tensor]:
    """`form` compiled for one f, with a code object (and so a cache of Dynamo's) of its own."""
    own = renamed(form, f"evaluate_{hash(key):x}")
    return torch.compile(own, backend=functools.partial(_backend, transforms), fullgraph=True)
