"""`compile="steps"`: the loop is the eager one, and each of its steps a compiled graph.

The loop, the controller, the checkpoints and the gradients are those of every other solve, so that nearly everything
goes with it, on any device. With `compile="cuda-graphs"` a step of a GPU is one launch: a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core import Problem, Step, VectorField
from ..errors import warn
from ..field.dynamics import Dynamics
from ..gradients.replay import Ambience
from ..methods.staged import Staged, staged
from ..numbers import Time
from ..torch_internals import pytree
from . import compiler
from .capture import Capture, capture
from .compiler import settings, staying
from .door import CUDA_GRAPHS
from .failure import CannotCompile, attempt, first_line
from .field_graph import FieldGraph
from .inference import normal, outside_inference

SECOND = "second derivatives of steps that are graphs are not available: use compile=False"


def in_steps(p: Problem, mode: str) -> Problem:
    """The problem with graphs for steps; `mode` is "steps" or "cuda-graphs"."""
    return replace(p, f=replace(p.f, stepper=Steps(p, mode)))


@dataclass(frozen=True)
class Kind:
    """Which graph of a step: what it is given, and what it has to find.

    `begun`: f(t0, y0) is known; `whole`: also the stages that only the error estimate needs, and the estimate;
    `wanted`: which of times, y0 and f0 require a gradient; for the tensors that f reads, `FieldGraph` is made so.
    """

    method: Staged = field(hash=False)
    begun: bool
    whole: bool
    differentiated: bool
    wanted: tuple[bool, ...]
    ambience: Ambience
    cuda_graph: bool


@dataclass(frozen=True)
class Found:
    """What a graph has found of a step."""

    y1: Tensor
    error: Tensor | None
    stages: Sequence[Tensor]


class Steps:
    """The steps of one solve, see `Field.stepper`; the graphs are made when they are first needed.

    Where they cannot be made, one warning says why, and the method makes its steps.
    """

    def __init__(self, p: Problem, mode: str) -> None:
        method = staged(p.method)
        assert method is not None
        assert isinstance(p.f.call, Dynamics)
        self.method, self.mode = method, mode
        self.here = Ambience.here(p.y0)
        self.traced: Traced | None = None
        self.given_up = False
        self.rehearsed: set[Kind] = set()

    def __call__(self, p: Problem, t0: Time, t1: Time, y0: Tensor, f0: Tensor | None = None) -> Step:
        """The method's step, from a graph; `p` is the problem of the solve, or of a replay."""
        return self.made(p.f.call, (t0, t1), y0, f0, searches=p.control.adaptive)

    def made(
        self, f: VectorField, span: tuple[Time, Time], y0: Tensor, f0: Tensor | None, *, searches: bool
    ) -> Step:
        """The method's step of f, in a search for steps or of one that has been found."""
        if not self.given_up:
            try:
                assert isinstance(f, Dynamics)
                with outside_inference():
                    known = [] if f0 is None else [normal(f0)]
                    found = self._found(f, span, normal(y0), known, searches)
                return self.method.complete(f, *span, y0, found.stages, found.y1, found.error)
            except CannotCompile as reason:
                self.given_up = True
                warn(f"compile={self.mode!r}: {reason}; this solve runs without graphs, in the eager loop")
        return self.method.step(f, *span, y0, f0)

    def _found(
        self, f: Dynamics, span: tuple[Time, Time], y0: Tensor, known: Sequence[Tensor], searches: bool
    ) -> Found:
        traced = self.traced = self.traced or Traced.of(f, span[0], y0)
        seen = traced.seen
        t0, t1 = (_on_device(t, y0.device) for t in span)
        kind = self._kind(searches, bool(known), (t0, t1, y0, *known))
        args = (t0, t1, y0, known, traced.inputs(f))
        place = self._unrehearsed(seen, kind, args)
        # Also where it seems to be there: PyTorch may make it again, for what its guards say is another case.
        with staying() if kind.differentiated else nullcontext():
            y1, *others = seen.call(kind, lambda: _graph(seen.field, kind, f.time_dtype), *args)
            if place:
                self._rehearse(seen, kind, args)
                seen.field.warm.add(place)
        error = others.pop(0) if kind.whole else None
        f.stats.nfe += len(others)
        return Found(y1, error, [*known, *others])

    def _kind(self, searches: bool, begun: bool, tensors: Sequence[Tensor]) -> Kind:
        """An adaptive search asks for errors; replays do not, and no replay of an FSAL method is given f0."""
        differentiated = torch.is_grad_enabled()
        searches = searches and (begun or not self.method.fsal)
        whole, wanted = searches and not differentiated, tuple(x.requires_grad for x in tensors)
        return Kind(self.method, begun, whole, differentiated, wanted, self.here, self.mode == CUDA_GRAPHS)

    def _unrehearsed(self, seen: Capture, kind: Kind, args: Any) -> Any:
        """The graph and the shapes whose backward pass nobody has tried, None if somebody has, or there is none."""
        if not kind.differentiated or kind.cuda_graph or kind in self.rehearsed:
            return None
        self.rehearsed.add(kind)
        place = (kind, tuple(x.shape for x in pytree.tree_leaves(args)))
        return None if place in seen.field.warm else place

    def _rehearse(self, seen: Capture, kind: Kind, args: Any) -> None:
        """Compile the backward pass of a graph as well: what fails has to fail before anybody counts on it."""
        tensors, tree = pytree.tree_flatten(args)
        leaves = [_leaf(x) for x in tensors]
        made = seen.call(kind, _never, *pytree.tree_unflatten(leaves, tree))
        outs, wrt = ([x for x in some if x.requires_grad] for some in (made, leaves))
        try:
            with attempt(), settings():
                zeros = [torch.zeros_like(x) for x in outs]
                torch.autograd.grad(outs, wrt, zeros, allow_unused=True, retain_graph=True)
        except Exception as error:
            seen.field.loops[kind] = f"the compiler failed ({first_line(error)})"
            raise CannotCompile(seen.field.loops[kind]) from error


@dataclass(frozen=True)
class Traced:
    """f as a graph, and the `places` of the tensors that it reads among its arguments, which replays exchange."""

    f: Dynamics
    seen: Capture
    places: Sequence[int | None]

    @staticmethod
    def of(f: Dynamics, t: Time, y: Tensor) -> Traced:
        """That of f on such states.

        Raises
        ------
        CannotCompile
        """
        seen = capture(f, f.time(t).detach(), y, evaluates=False)
        leaves = [id(x) for x in pytree.tree_leaves(f.args)]
        places = [leaves.index(id(x)) if id(x) in leaves else None for x in seen.inputs]
        if any(x.grad_fn is not None and place is None for x, place in zip(seen.inputs, places, strict=True)):
            # Its replays would keep their graphs, which PyTorch's compiled backward passes refuse.
            raise CannotCompile(
                "f captures a tensor computed from others (hand it over with args=(tensor, ...))"
            )
        seen.inputs = tuple(normal(x) for x in seen.inputs)
        return Traced(f, seen, places)

    def inputs(self, f: Dynamics) -> list[Tensor]:
        """The tensors that `f` reads, which may have other arguments."""
        if f is self.f:
            return list(self.seen.inputs)
        leaves = pytree.tree_leaves(f.args)
        return [
            x if place is None else leaves[place]
            for x, place in zip(self.seen.inputs, self.places, strict=True)
        ]


def _never() -> Any:
    raise AssertionError("the graph is there")


def _leaf(x: Tensor) -> Tensor:
    """A leaf that a graph takes for x: no hook of x is called for it."""
    own = x.detach()
    return (
        torch.nn.Parameter(own, x.requires_grad)
        if isinstance(x, torch.nn.Parameter)
        else own.requires_grad_(x.requires_grad)
    )


def _on_device(t: Time, device: torch.device) -> Tensor:
    """A time as a tensor, without waiting for the device."""
    if isinstance(t, Tensor):
        t = t.to(device, torch.float64)
        # Those of samples may be views of others, by whose strides and bases PyTorch tells graphs apart.
        return t.clone(memory_format=torch.contiguous_format) if t.ndim else t
    return torch.full((), t, dtype=torch.float64, device=device)


def _graph(field: FieldGraph, kind: Kind, time_dtype: torch.dtype) -> Callable[..., Sequence[Tensor]]:
    """`(t0, t1, y0, [f0], inputs)` -> y1, the error if the step is whole, and the stages beside f0."""
    method = kind.method

    def step(
        t0: Tensor, t1: Tensor, y0: Tensor, known: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        def f(t: Any, y: Tensor) -> Tensor:
            return field(t.to(time_dtype), y, inputs)

        own = method.step(f, t0, t1, y0, known[0] if known else None)
        error = [own.error] if kind.whole else []
        return [own.y1, *error, *own.known[len(known) :]]

    if not kind.cuda_graph:
        made = compiler.compiled(step, forward=not kind.differentiated)
        return (lambda *args: _once(made(*args))) if kind.differentiated else made
    graph = compiler.replayed(step)
    # The next replay writes over what this one returns.
    return lambda *args: [x.clone() for x in graph(*args)]


def _once(outputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs of a graph, whose backward pass has no derivative."""
    # A function around them would make views of them, on whose bases the next step's graph would have guards.
    for x in outputs:
        if x.grad_fn is not None:
            x.grad_fn.register_prehook(_refuse_second)
    return outputs


def _refuse_second(cotangents: tuple[Tensor, ...]) -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(SECOND)
