"""A model as `check_gradient` sees it: what is solved, with respect to what, and one pass over it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..control import Adaptive
from ..core import Gradient, Problem, Stats
from ..errors import GradientWarning
from ..field.calling import not_f
from ..field.dynamics import Dynamics
from ..field.effects import generator_states, set_generator_states
from ..field.field import Field
from ..field.inputs import Inputs, first_evaluation
from ..field.places import label
from ..field.reach import reach
from ..methods import METHODS
from ..solve import solve
from ..state import structure_of
from ..times import times_of
from ..torch_internals import pytree

Grads = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """A solve and a loss of its outputs. `inputs` names the tensors to differentiate with respect to."""

    f: Callable[..., Any]
    y0: Any
    t: Any
    loss: Callable[[Any], Tensor]
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    random: bool

    @property
    def device(self) -> torch.device:
        return pytree.tree_leaves(self.y0)[0].device

    @property
    def eps(self) -> float:
        """The rounding of the state's dtype."""
        return max(torch.finfo(y.dtype.to_real()).eps for y in pytree.tree_leaves(self.y0))

    @property
    def rounding(self) -> float:
        """That of f, as it is called here: autocast makes it coarser."""
        known = torch.amp.is_autocast_available(self.device.type)
        if not (known and torch.is_autocast_enabled(self.device.type)):
            return self.eps
        return max(self.eps, torch.finfo(torch.get_autocast_dtype(self.device.type)).eps)

    @property
    def reached(self) -> list[Tensor]:
        """Every tensor that f, its arguments or the loss can see."""
        seen = reach(self.f, self.args).tensors + reach(self.loss).tensors
        return list({id(tensor): tensor for _, tensor in seen}.values())


@dataclass(frozen=True)
class Pass:
    """One forward and one backward pass; `outputs` have no graph."""

    loss: float
    grads: Grads
    steps: tuple[float, ...]
    stats: Stats
    forward: float
    backward: float
    outputs: Any = None


def model_of(
    f: Callable[..., Any],
    y0: Any,
    t: Any,
    loss: Callable[[Any], Tensor],
    args: tuple[Any, ...],
    options: Mapping[str, Any],
) -> Model:
    """The model with leaves of its own for y0, and the tensors that f depends on.

    Raises
    ------
    TypeError, ValueError
        Where this is no initial value problem, or where f uses a tensor that cannot be found.
    """
    if not callable(loss):
        raise TypeError(f"loss must be callable as loss(ys), got {loss!r}")
    structure = structure_of(y0)
    if not callable(f) or isinstance(f, type):
        raise TypeError(not_f(f))
    own = pytree.tree_map(lambda y: y.detach().clone().requires_grad_(), y0)
    packed = structure.pack(own)
    field = Field(Dynamics(f, args, structure, packed.device, Stats()), source=f, locate=structure.component)
    problem = Problem(field, packed, times_of(t, "t"), METHODS["dopri5"], Adaptive())
    seen = reach(f, args).tensors
    with untouched([x for _, x in seen], packed.device), torch.enable_grad():
        probed = first_evaluation(problem).f
    found = probed.inputs or Inputs()
    names = {id(tensor): label(path) for path, tensor in reversed(seen)}
    inputs = {f"y0{leaf.path}": y for leaf, y in zip(structure.leaves, pytree.tree_leaves(own), strict=True)}
    for i, tensor in enumerate(found.tensors):
        inputs[names.get(id(tensor), f"tensor {i}")] = tensor
    if isinstance(t, Tensor) and t.requires_grad:
        inputs["t"] = t
    random = probed.effects is not None and probed.effects.random
    return Model(f, own, t, loss, args, options, inputs, random)


def differentiate(
    model: Model, gradient: str | Gradient, options: Mapping[str, Any] | None = None, at: Any = None
) -> Pass:
    """The loss and its gradients; what f leaves behind is undone.

    Parameters
    ----------
    options : mapping, optional
        In place of the model's.
    at : outputs, optional
        Differentiate the loss there, in place of the solution's own outputs.

    Raises
    ------
    SolverError
        Where the solve fails, whatever `on_failure` is, but for gradients that are not as accurate as asked for.
    """
    with untouched(model.reached, model.device), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)  # the report says it, of every gradient
        start = clock(model.device)
        options = model.options if options is None else options
        solution = solve(model.f, model.y0, model.t, args=model.args, gradient=gradient, **options)
        if solution.failure is not None and solution.failure.kind != "gradient-error":
            raise solution.failure
        ys = solution.ys
        if at is not None:
            ys = pytree.tree_map(lambda y, right: y + (right.to(y.dtype) - y).detach(), ys, at)
        loss = _scalar(model.loss(ys))
        middle = clock(model.device)
        historic = any(x.grad_fn is not None for x in model.inputs.values())
        grads = torch.autograd.grad(
            loss, list(model.inputs.values()), retain_graph=historic or None, allow_unused=True
        )
        end = clock(model.device)
    named = {
        name: torch.zeros_like(x) if grad is None else grad
        for (name, x), grad in zip(model.inputs.items(), grads, strict=True)
    }
    outputs = pytree.tree_map(Tensor.detach, solution.ys)
    return Pass(loss.item(), named, solution.steps, solution.stats, middle - start, end - middle, outputs)


@contextmanager
def untouched(tensors: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """What happens inside moves neither these tensors (running statistics, say) nor the random generators.

    Casts that autocast keeps belong to the graph of one pass, and are forgotten at both ends.
    """
    torch.clear_autocast_cache()
    plain = [x for x in tensors if not (x.requires_grad or x.is_inference())]
    kept = [(x, x._version, x.detach().clone()) for x in plain]
    generators = generator_states(device)
    try:
        yield
    finally:
        for x, version, before in kept:
            # Batch norm's kernel moves its statistics without telling the version counter.
            if x._version != version or not torch.equal(x, before):
                x.data.copy_(before)
        set_generator_states(device, generators)
        torch.clear_autocast_cache()


def clock(device: torch.device) -> float:
    """Seconds, when the device has done what it was asked for."""
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).synchronize()
    return time.perf_counter()


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        shown = (
            f"shape {tuple(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
        )
        raise TypeError(
            f"loss(ys) must return one real number as a tensor, got {shown}: end it in .sum() or .mean()"
        )
    if not loss.requires_grad:
        raise ValueError("loss(ys) does not depend on ys (a detach() or item() in it?): it has no gradient")
    return loss


def distance(grads: Grads, truth: Grads) -> float:
    """How far all gradients together are from the true ones, relative to the size of these."""
    off = sum(_square(grads[name].to(true.dtype) - true) for name, true in truth.items())
    size = sum(_square(true) for true in truth.values())
    return (off / size) ** 0.5 if size else off**0.5


def _square(x: Tensor) -> float:
    return torch.linalg.vector_norm(x.detach(), dtype=_wide(x)).item() ** 2


def _wide(x: Tensor) -> torch.dtype | None:
    double = torch.complex128 if x.is_complex() else torch.float64
    return None if x.device.type == "mps" else double
