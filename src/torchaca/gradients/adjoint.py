"""The continuous adjoint: integrate the adjoint equation backwards in time ("optimise, then discretise").

Chen, Rubanova, Bettencourt, Duvenaud, "Neural Ordinary Differential Equations", NeurIPS 2018, appendix B; the
semi-norm is Kidger, Chen, Lyons, "'Hey, that's not an ODE': Faster ODE Adjoints via Seminorms", ICML 2021.

By default the outputs are all that is kept: the state is integrated backwards along with the adjoint and drifts from
the forward trajectory, so the gradient is right up to an error that the tolerances influence but do not bound. With
`state="interpolated"` it is read from the interpolants of the forward steps and cannot drift; the adjoint equation by
itself, linear and stable backwards wherever the ODE is stable forwards, is then all that is integrated (Daulbaev et
al., "Interpolation Technique to Speed Up Gradients Propagation in Neural ODEs", NeurIPS 2020; the standard way of
CVODES and of SciMLSensitivity.jl).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..control import check_control
from ..core import Control, Method, Outcome, Problem, Step, tolerant
from ..errors import SolverError
from ..field.dynamics import Dynamics
from ..field.inputs import Inputs
from ..field.precision import floored
from ..loops.clock import check_clock, coarse
from ..loops.outputs import gather
from ..loops.stepping import steps
from ..numbers import value
from ..state import of_any_size, structure_of
from ..torch_internals import is_legacy_batchedtensor
from ..transforms import is_differentiated
from .costate import Backward, LateUseError
from .passes import refuse, solve_with
from .recorded import Recorded
from .replay import MaybeTensors, Parts, refuse_derivative, without_graph

SECOND = (
    "second derivatives through gradient='adjoint' are not available: use gradient='aca' (exact, little memory) or "
    "'direct'"
)
DENSE = (
    "dense output has no derivative with gradient='adjoint': put these times into t, or use gradient='aca'"
)
CARRIED = (
    "what {0!r} carries from one solve to the next has no derivative with gradient='adjoint': give the solve that goes "
    "on gradient='adjoint' as well, or the first one gradient='aca'"
)
BATCHED = (
    "gradient='adjoint' takes one cotangent at a time: loop over them instead of is_grads_batched=True, or use "
    "gradient='aca'"
)
STATES = ("backsolve", "interpolated")
QUADRATURES = ("augmented", "gauss")


@dataclass(frozen=True)
class Adjoint:
    """The continuous adjoint (Chen et al. 2018).

    Parameters
    ----------
    rtol, atol : float or Tensor, optional
        Tolerances of the backward integration; by default the forward ones.
    norm : "full", "semi" or callable
        Which parts of the backward state the step size control looks at: state, adjoint and parameter gradients
        ("full", the largest RMS among them), or state and adjoint only ("semi", Kidger et al. 2021). A callable gets
        the tuple `(t, y, adjoint of y, *parameter gradients)`, without what is not integrated.
    method : Method, optional
        For the backward integration; by default the forward one.
    control : Adaptive, FixedSteps, a control of your own or a callable, optional
        For the backward integration; by default the forward one with the tolerances above. A callable gets the
        start and the end of the stretch between two outputs.
    watch : callable, optional
        Called at the backward integration's trials as `torchaca.core.Watcher` says, with the tuple that a callable norm
        gets for a state.
    state : "backsolve" or "interpolated"
        Where y(t) comes from in the backward pass: integrated backwards from the outputs ("backsolve": no memory, and
        wrong where the ODE contracts), or read from the forward steps, whose interpolants are then kept
        ("interpolated": one state more than the interpolant's degree, five a step for dopri5; a method whose
        interpolant has stages of its own evaluates them in every step).
    quadrature : "augmented" or "gauss"
        How the gradients of parameters and args are integrated: as a part of the backward state ("augmented"), or by
        a Gauss-Legendre rule over each accepted backward step ("gauss"), at one evaluation of f a node. The backward
        state is then two states at most, and no step size depends on the parameters, as with the semi-norm. Pays for
        many parameters and few samples: of the parameters' size, the totals and one gradient are all that is held.
    translate : callable, optional
        Gives the error to raise for one of the backward integration; front doors with errors of their own use it.
    """

    records: ClassVar[bool] = False

    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    norm: str | Callable[[Any], Tensor] = "full"
    method: Method | None = None
    control: Control | Callable[[float, float], Control] | None = None
    watch: Callable[[str, float, Any, float], None] | None = None
    state: str = "backsolve"
    quadrature: str = "augmented"
    translate: Callable[[SolverError], SolverError] | None = None
    name: str = "adjoint"

    def __post_init__(self) -> None:
        if not (self.norm in ("full", "semi") or callable(self.norm)):
            raise ValueError(f"unknown norm {self.norm!r} of the adjoint: use 'full', 'semi' or a callable")
        for setting, known in (("state", STATES), ("quadrature", QUADRATURES)):
            if getattr(self, setting) not in known:
                raise ValueError(
                    f"unknown {setting} {getattr(self, setting)!r} of the adjoint: use {' or '.join(map(repr, known))}"
                )
        if self.norm == "semi" and self.quadrature == "gauss":
            raise ValueError(
                "norm='semi' has no effect beside quadrature='gauss', which takes parameter gradients out of the norm "
                "already: drop one of them"
            )
        for name in ("method", "control"):
            if isinstance(given := getattr(self, name), type):
                raise TypeError(f"Adjoint({name}=) is the class {given.__name__}: pass {given.__name__}(...)")
        if self.method is not None and not callable(getattr(self.method, "step", None)):
            raise TypeError(f"Adjoint(method=) is a method such as METHODS['dopri8'], got {self.method!r}")
        if not (self.control is None or callable(self.control)):
            check_control(self.control, "Adjoint(control=)")

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve without a graph, keeping the outputs; see `torchaca.core.Gradient`."""
        settings = self.resolved(p)
        self.refuse_sparse(inputs.args + inputs.captured)
        if p.effects and p.effects.random:
            raise ValueError(
                "f draws random numbers (Dropout?): a backward integration would draw others. Use "
                "gradient='aca', which replays the same ones, or model.eval()"
            )
        recorded = Recorded(p.method) if self.state == "interpolated" else None
        outcome = solve_with(Run(settings, p, inputs, recorded))
        if not outcome.ys.requires_grad:
            return outcome
        return replace(outcome, bases=refuse_derivative(outcome.bases, (outcome.ys,), DENSE))

    def check(self, p: Problem) -> None:
        """Refuse settings that do not go with the problem; see `torchaca.gradients.check_problem`."""
        tolerances = {name: of_any_size(getattr(self, name)) for name in ("rtol", "atol")}
        replace(self, **tolerances).resolved(p)

    def refuse_sparse(self, tensors: Sequence[Tensor]) -> None:
        """Refuse tensors whose gradient cannot be a part of the backward state.

        Raises
        ------
        ValueError
        """
        for x in tensors:
            if self.quadrature == "augmented" and x.layout != torch.strided:
                raise ValueError(
                    f"gradient='adjoint' cannot integrate the gradient of a sparse tensor (shape {tuple(x.shape)}, "
                    f"{x.layout}) as a part of its state: use gradient=Adjoint(quadrature='gauss'), or gradient='aca'"
                )

    def resolved(self, p: Problem) -> Adjoint:
        """The same with tolerances for the state of p; refuses what could not run, or not as it was asked to."""
        if any(map(is_differentiated, p.control.tensors)):
            raise ValueError(
                "gradient='adjoint' has no derivative with respect to grid or jump_ts, or to any tensor of a control: "
                "pass grid.detach() or jump_ts.detach(), or use gradient='aca'"
            )
        given: Any = self.control or p.control
        control, method = tolerant(given), self.method or p.method
        tolerances = {
            name: given for name, given in (("rtol", self.rtol), ("atol", self.atol)) if given is not None
        }
        if control is None:
            idle = [*tolerances, *(["norm"] if self.norm != "full" else [])]
            if idle:
                what = "fixed steps" if not getattr(given, "adaptive", False) else type(given).__name__
                raise ValueError(
                    f"Adjoint({idle[0]}=) has no effect on {what}: drop it, or give control=Adaptive(...)"
                )
        if getattr(given, "adaptive", False) and not method.adaptive:
            raise ValueError(
                f"{method.name} has no error estimate for the backward integration: give "
                "Adjoint(control=FixedSteps(...)), or an adaptive method"
            )
        if control is None:
            return self
        spread = structure_of(p.y0).spread
        for_state = {name: spread(given, name, p.y0) for name, given in tolerances.items()}
        control = control.with_settings(**for_state)  # which refuses negative ones
        if fit_to := getattr(control, "fitted", None):
            control = fit_to(p.ts, p.y0.dtype.to_real())
        if isinstance(p.f.call, Dynamics):
            control: Any = floored(replace(p, control=control, method=method), p.f.call).control
        own = self.control if self.control is None else control
        return replace(self, control=own, **{name: getattr(control, name) for name in for_state})


@dataclass
class Run:
    """One forward pass: what its backward needs beside the saved tensors. `recorded` has no coefficients.

    `f0` is f at the start, without a graph; `witness` is the start and the end of the last step, with the state and f
    at its start.
    """

    settings: Adjoint
    problem: Problem
    inputs: Inputs
    recorded: Recorded | None = None
    times: Sequence[float] = ()
    f0: Tensor | None = None
    witness: tuple[float, float, Tensor, Tensor] | None = None

    def witnessed(self, accepted: Iterable[Step]) -> Iterator[Step]:
        """The same steps; what f was at the start of the last one is kept."""
        step = None
        for step in accepted:
            yield step
        if step is not None and self.problem.f0 is not None and not self.problem.carrying:
            self.witness = value(step.t0), value(step.t1), step.y0, step.f0

    def forward(self) -> tuple[Outcome, Sequence[Tensor]]:
        """Solve without a graph; kept are the outputs, and what `recorded` takes. See `Passes`."""
        p = without_graph(self.problem)
        kept: list[Tensor] = []
        accepted = self.witnessed(steps(p))
        outcome = gather(p, self.recorded.taking(accepted, kept, p.aside) if self.recorded else accepted)
        self.times, self.f0 = outcome.times, p.f0
        return outcome, (outcome.ys, *kept)

    def backward(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Integrate the adjoint equation from output to output; see `Passes`."""
        (ys, *kept), (grad_ys, *_) = kept, cotangents
        if grad_ys is None or is_legacy_batchedtensor(grad_ys):
            raise NotImplementedError(BATCHED)
        n = len(self.problem.ts)
        if len(grad_ys) > n and bool(grad_ys[n:].any()):
            raise NotImplementedError(CARRIED.format(self.problem.method.name))
        grad_ys = grad_ys[:n]
        held = len(self.problem.tensors)
        known = replace(Parts.join(tensors, held, len(self.inputs.args)), captured=self.inputs.captured)
        try:
            return self.gradients(known, ys.detach(), kept, grad_ys.detach())
        except LateUseError:
            parts = replace(known, captured=self.inputs.captured + self.inputs.late)
            return self.gradients(parts, ys.detach(), kept, grad_ys.detach())

    def twice(
        self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None], tensors: Sequence[Any]
    ) -> MaybeTensors:
        """Refuse second derivatives; see `Passes`."""
        return refuse(self, SECOND, kept, cotangents, tensors)

    def gradients(self, parts: Parts, ys: Tensor, kept: Sequence[Tensor], grad_ys: Tensor) -> MaybeTensors:
        """One backward integration; its steps are counted, its failure says that it was the backward pass."""
        recorded = self.recorded and replace(self.recorded, times=self.times, coefficients=kept)
        backward = Backward(self.settings, self.problem, self.inputs, parts, recorded, self.f0, self.witness)
        try:
            grads = backward.integrate(ys, grad_ys)
            if coarse(self.times, self.problem.y0.dtype.to_real()) is None:  # which has been said
                check_clock(self.problem, backward.times)
            return grads
        except SolverError as error:
            error.backward = True
            if self.settings.translate is None:
                raise
            raise self.settings.translate(error) from None
        finally:
            self.problem.stats.accepted_backward += backward.stats.accepted
            self.problem.stats.rejected_backward += backward.stats.rejected
