"""f as a pure function of tensors: its graph, and the tensors that it reads.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..field.dynamics import Dynamics
from ..field.effects import generator_states, set_generator_states
from ..state import Structure
from ..torch_internals import dynamo_settings, is_verdict_of_dynamo, mark_dynamic, pytree
from .facts import dynamic_sizes, half_inside, refuse, without_sizes, without_switches
from .failure import CannotCompile, Modes, attempt, first_line

KEPT_GRAPHS = 64  # of one f: other shapes, dtypes and attributes


@dataclass(eq=False)
class Field:
    """`f(t, y)` on packed states as a graph; `t_at` and `y_at` are the places of t and y among its inputs.

    `silent` is the graph for where nothing is recorded, None if that is the same. `dynamic` are the (input,
    dimension) pairs whose sizes may change; `half` is the coarsest half precision in which f computes. `loops` holds
    what was compiled for it, `warm` for which shapes that has run; `effects` says what it leaves behind beside its
    value, None before its first evaluation.
    """

    graph: fx.GraphModule
    silent: fx.GraphModule | None = None
    effects: str | None = None
    dynamic: tuple[tuple[int, int], ...] = ()
    half: torch.dtype | None = None
    n_inputs: int = 0
    t_at: int | None = None
    y_at: int | None = None
    loops: dict[Any, Any] = field(default_factory=dict)
    warm: set[Any] = field(default_factory=set)

    @staticmethod
    def of(graph: fx.GraphModule) -> Field:
        """The field of a graph that Dynamo has made.

        Raises
        ------
        CannotCompile
            Where it is not a function of tensors, or cannot be differentiated as f.
        """
        refuse(graph)
        half, plain = half_inside(graph), without_sizes(graph)
        return Field(plain, without_switches(plain), dynamic=dynamic_sizes(plain), half=half)

    def evaluate(self, *tensors: Tensor) -> Tensor:
        """The derivative from all inputs of the graph, in their order."""
        graph = self.graph if self.silent is None or torch.is_grad_enabled() else self.silent
        return graph(*tensors)[0]

    def __call__(self, t: Tensor, y: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The derivative; `inputs` are the tensors that f reads."""
        own, everything = iter(inputs), []
        for at in range(self.n_inputs):
            everything.append(t if at == self.t_at else y if at == self.y_at else next(own))
        return self.evaluate(*everything)


@dataclass
class Capture:
    """One evaluation of f: its graph, the tensors it read, its value, those sizes that may change, PyTorch's modes."""

    field: Field
    inputs: tuple[Tensor, ...]
    value: Tensor
    sizes: frozenset[int]
    modes: Modes
    recorded: Recorded | None = None

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
class Recorded:
    """The first evaluation with its graph: the value, and leaves in the places of y and of the inputs."""

    value: Tensor
    y: Tensor
    inputs: tuple[Tensor, ...]


@dataclass
class Call:
    """One evaluation that is being captured: of which graph, on what tensors; with `record`, as a graph of autograd.

    Without `evaluates`, its value is not needed. `found` are the graph, its inputs, and where it is recorded their
    leaves and the value.
    """

    y: Tensor
    record: bool
    evaluates: bool = True
    found: list[tuple[Field, list[Tensor], list[Tensor], Tensor]] = field(default_factory=list)

    def leaves(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the graph is evaluated on."""
        if not self.record:
            return list(tensors)
        return [x.detach().requires_grad_(x is self.y or x.requires_grad) for x in tensors]


def capture(f: Dynamics, time: Tensor, y0: Tensor, record: bool = False, evaluates: bool = True) -> Capture:
    """Evaluate f through Dynamo; `record`: and keep the graph of that evaluation.

    Without `evaluates`, only an f that was not seen before is evaluated, and the value is not to be used.

    Raises
    ------
    CannotCompile
        Where f has no graph, or is more than a function.
    """
    key = _identity(f.func)
    owner = key if isinstance(key, types.CodeType) else f.func  # that class may have other, traceable objects
    with contextlib.suppress(TypeError):  # an object that cannot be a key is tried again each time
        if owner in _UNTRACED:
            raise CannotCompile(_UNTRACED[owner])
    evaluate, stack, modes = _entry(key), _stack(), Modes.now()
    # Nothing that f may hold itself; as in a training step, whatever the solve is for.
    time, y = time.clone(), y0.detach().clone().requires_grad_()
    call = Call(y, record, evaluates)
    stack.append(call)
    try:
        with contextlib.nullcontext() if key in _SEEN else attempt(), torch.enable_grad(), settings():
            value = evaluate(f.func, f.structure, f.fit, time, y, f.args)
    except CannotCompile:
        raise
    except Exception as error:
        modes.restore()
        cause = _cannot(error)
        if cause is not None:
            raise cause from None
        reason = f"f cannot be traced ({first_line(error)})"
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
    seen = _pure(call, time, value, modes)
    if record and seen.recorded is None:
        raise CannotCompile("f does not depend on the state")
    return seen


def _cannot(error: BaseException) -> CannotCompile | None:
    """The refusal that Dynamo has wrapped into errors of its own, if that is what it is."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CannotCompile):
        cause = cause.__cause__ or getattr(cause, "inner_exception", None)
    return cause


def _pure(call: Call, time: Tensor, value: Tensor, modes: Modes) -> Capture:
    ((graph, tensors, leaves, recorded),), y = call.found, call.y
    sizes = frozenset(tensors[at].shape[dim] for at, dim in graph.dynamic)
    places = {id(x): i for i, x in enumerate(tensors)}
    graph.n_inputs = len(tensors)
    graph.t_at, graph.y_at = places.get(id(time)), places.get(id(y))
    own = [i for i, x in enumerate(tensors) if x is not time and x is not y]
    seen = Capture(graph, tuple(tensors[i] for i in own), value, sizes, modes)
    if call.record and graph.y_at is not None:
        seen.recorded = Recorded(recorded, leaves[graph.y_at], tuple(leaves[i] for i in own))
    return seen


_UNTRACED: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_SEEN: set[Any] = set()  # of what Dynamo has been asked for, by `_identity`
_CALLS = threading.local()  # what is being captured in this thread, the innermost last


def _stack() -> list[Call]:
    if not hasattr(_CALLS, "stack"):
        _CALLS.stack = []
    return _CALLS.stack


def _backend(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """A compiler for Dynamo that keeps the graph, and hands over what it is called with."""
    kept = Field.of(graph)

    def run(*inputs: Any) -> Any:
        tensors, call = [x for x in inputs if isinstance(x, Tensor)], _stack()[-1]
        leaves = call.leaves(tensors)
        if kept.effects:  # no evaluation, which would have them again
            raise CannotCompile(kept.effects)
        if kept.effects is not None and not call.evaluates:
            call.found.append((kept, tensors, leaves, call.y))
            return (call.y,)
        with torch.set_grad_enabled(call.record):
            value, kept.effects = (
                _watched(kept, leaves) if kept.effects is None else (kept.evaluate(*leaves), kept.effects)
            )
        if kept.effects:
            raise CannotCompile(kept.effects)
        call.found.append((kept, tensors, leaves, value))
        return (value.detach(),)

    return run


def _watched(f: Field, tensors: Sequence[Tensor]) -> tuple[Tensor, str]:
    """f's value, and what it leaves behind, in words; random numbers are given back."""
    device = tensors[0].device if tensors else torch.device("cpu")
    generators, own = generator_states(device), [x for x in tensors if not x.is_inference()]
    versions = [x._version for x in own]
    out = f.evaluate(*tensors)
    if any(not torch.equal(a, b) for a, b in zip(generators, generator_states(device), strict=True)):
        set_generator_states(device, generators)
        return out, "f draws random numbers (Dropout?)"
    moved = versions != [x._version for x in own]
    return out, "f changes a tensor in place (BatchNorm in training mode?)" if moved else ""


def evaluate(
    func: Callable[..., Any], structure: Structure, fit: Any, t: Tensor, y: Tensor, args: tuple[Any, ...]
) -> Tensor:
    """What Dynamo sees: one call of the user's function, packed and checked."""
    if not structure.plain:
        return structure.pack(fit(func(t, structure.unpack(y), *args), structure, func))
    k = func(t, y, *args)
    if not isinstance(k, Tensor) or k.shape != y.shape or k.dtype != y.dtype:
        k = fit(k, structure, func)
    return k


def _identity(func: Any) -> Any:
    """What two objects share that have the same Python code: functions by their code, other callables by class."""
    if isinstance(func, functools.partial):
        return ("partial", _identity(func.func))
    inner = getattr(func, "__func__", func)
    return getattr(inner, "__code__", type(func))


@functools.cache
def _entry(key: Any) -> Callable[..., Tensor]:
    """`evaluate` compiled for one f, with a code object (and so a cache of Dynamo's) of its own."""
    return torch.compile(renamed(evaluate, f"evaluate_{hash(key):x}"), backend=_backend, fullgraph=True)


def renamed(function: Any, name: str) -> Any:
    """The same function with a code object of its own."""
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)


@contextlib.contextmanager
def outside_inference() -> Iterator[None]:
    """Outside of inference mode, without recording: its tensors would have everything compiled anew."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def normal(x: Tensor) -> Tensor:
    """The tensor; of one that belongs to inference mode, a copy that does not."""
    return x.clone() if x.is_inference() else x


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Dynamo's settings: no side effects, no numbers that become inputs, enough graphs."""
    # Made anew for every solve they would cost 30 us and, in PyTorch 2.13, a context variable that stays for ever.
    patch = _FREE.pop() if _FREE else dynamo_settings(**SETTINGS)
    try:
        with patch:
            yield
    finally:
        _FREE.append(patch)


_FREE: list[Any] = []  # patches that nobody is inside of: some versions' cannot be entered twice
SETTINGS: dict[str, Any] = {
    "recompile_limit": KEPT_GRAPHS,
    "fail_on_recompile_limit_hit": True,
    "side_effect_replay_policy": "error",
    "specialize_float": True,
}
