"""Adaptive checkpoint adjoint (ACA): keep the accepted states, replay one step at a time.

Zhuang, Dvornek, Li, Tatikonda, Papademetris, Duncan, "Adaptive Checkpoint Adjoint Method for Gradient Estimation
in Neural ODE", ICML 2020, algorithm 2. The forward pass keeps `(t, y)` of every accepted step and no graph. The
backward pass goes over the steps from the last to the first; each is computed again from its own state with its own
step size (no search, nothing re-integrated), differentiated, and forgotten. The result is the exact gradient of the
computed solution with step sizes held constant, at the memory of one step's graph and one state a step.

That is `checkpoints="all"`. By default nothing is computed again as long as the graphs of all steps fit a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from ..core import Outcome, Problem
from ..field.inputs import Inputs
from ..loops.outputs import gather
from .checkpoints import States, parse_bytes
from .fitting import BUDGET, record_while_it_fits, step_bytes
from .in_place import guarded
from .look_hooks import Looking
from .observed import observed
from .passes import Passes, solve_with
from .refinement import Controlled, check_setting
from .settling import Request
from .store import Replayed

CHECKPOINTS = ("auto", "all", "none", "sqrt", "binomial")


@dataclass(frozen=True)
class ACA:
    """Adaptive checkpoint adjoint (Zhuang et al. 2020): the default gradient.

    Every setting gives the same gradient, at another price. With N accepted steps:

    ===================  =========================  ======================================
    checkpoints          states kept                steps computed again in backward
    ===================  =========================  ======================================
    "auto" (default)     the graph of all N steps   0 if the graphs fit 1 GiB, else as "all"
    "all" (the paper)    N                          N
    "none"               the graph of all N steps   0
    "sqrt"               about 3 sqrt(N)            2 N - (states kept)
    k                    at most k at a time        at most N + Revolve's optimum for k
    "binomial"           at most 2 + log2(N + 1)    at most N + N log2(N) / 2
    ===================  =========================  ======================================

    Revolve's optimum for k states is r N - C(k + r, k + 1), r being the least number with C(k + r, k) >= N.

    Parameters
    ----------
    checkpoints : "auto", "all", "none", "sqrt", "binomial" or int
        "auto" records the steps, as `direct` does, while their graphs take at most 1 GiB: a constant number, and the
        size of a graph is measured in the first evaluation of f, so that runs are reproducible. When it is spent, all
        steps are replayed, those before as well: to a loss and to f the solve is then one of "all". An f whose first
        evaluation leaves a tensor with a graph behind, or that may hide one (in an iterator, a cache, behind a weak
        reference), is replayed from the first step on, however small it is. So are all steps with `memory_budget`,
        `stagewise` or `grad_rtol`, and under compile="steps", whose graphs PyTorch differentiates only once. With
        `grad_rtol` the budget is for the graphs of finer steps, between the march along them and the sweep.
    memory_budget : str or int, optional
        Bytes, "500MB", "2GiB": keep as many states as fit beside the graph of one step, whose size is measured in the
        first evaluation. Instead of `checkpoints`.
    stagewise : bool
        Hold the graph of one evaluation of f at a time instead of a whole step's, for one more evaluation a stage.
    substeps : int
        Differentiate each step as so many equal ones, from the state that the forward pass had there. For a forward
        pass that is given, whose steps are short enough for y and too long for its derivative: at rest, say. It is no
        longer the gradient of the computed solution, but nearer to that of the ODE; see "Steps that are too long for
        their derivative" in docs/gradients.md. All steps are replayed, each for `substeps` times its evaluations.
    grad_rtol : float, optional
        The relative error that the gradients may have, of each input by itself. Steps that are too long for their
        derivative are repaired in the backward pass, and the gradient is compared with that of another trajectory, and
        refined until the estimate, `stats.gradient_error`, is below `grad_rtol`; outputs are refined in the forward
        pass. See "How do I know that the gradient is accurate?" in docs/gradients.md. `SolverError` of kind
        "gradient-error" where it cannot be, in the backward pass if it is not the outputs.
    """

    name = "aca"
    moves: ClassVar[bool] = True

    checkpoints: str | int = "auto"
    memory_budget: str | int | None = None
    stagewise: bool = False
    grad_rtol: float | None = None
    substeps: int = 1
    # Facts that follow from these settings.
    exact: bool = field(init=False, repr=False, compare=False)
    divides: bool = field(init=False, repr=False, compare=False)
    records: bool | None = field(init=False, repr=False, compare=False)
    substitutable: bool = field(init=False, repr=False, compare=False)
    wants_graph_size: bool = field(init=False, repr=False, compare=False)
    states: Callable[[Problem, int], str | int] | None = field(init=False, repr=False, compare=False)
    saves: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = isinstance(self.checkpoints, str) and self.checkpoints in CHECKPOINTS
        counted = isinstance(self.checkpoints, int) and self.checkpoints >= 1
        if not named and not counted:
            raise ValueError(
                "checkpoints must be 'auto', 'all', 'none', 'sqrt', 'binomial' or a number of states of at least 1, "
                f"got {self.checkpoints!r}"
            )
        if self.memory_budget is not None:
            parse_bytes(self.memory_budget)
            if self.checkpoints not in ("auto", "all"):
                raise ValueError("give checkpoints or memory_budget, not both")
        if self.stagewise and self.checkpoints == "none":
            raise ValueError(
                "stagewise=True replays stages, checkpoints='none' replays nothing: drop one of them"
            )
        if self.grad_rtol is not None:
            check_setting(self.grad_rtol, self.checkpoints)
        self._check_substeps()
        exact = self.grad_rtol is None and self.substeps == 1
        plain = self.memory_budget is None and not self.stagewise and exact
        records = None if self.checkpoints == "auto" and plain else self.checkpoints == "none"
        put = object.__setattr__
        put(self, "exact", exact)
        put(self, "divides", not exact)
        put(self, "records", records)
        put(self, "substitutable", plain and self.checkpoints in ("auto", "all", "none"))
        budgeted = self.memory_budget is not None or self._holds_graphs
        put(self, "saves", exact)
        put(self, "wants_graph_size", budgeted or records is None)
        put(self, "states", None if records or self.grad_rtol is not None else self._fitting)

    @property
    def _holds_graphs(self) -> bool:
        """Whether a controlled backward pass may hold the graphs of the steps that it marches."""
        plain = self.checkpoints == "auto" and self.memory_budget is None and not self.stagewise
        return self.grad_rtol is not None and plain

    def _check_substeps(self) -> None:
        k = self.substeps
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"substeps is a whole number of at least 1, got {k!r}")
        if k > 1 and self.checkpoints == "none":
            raise ValueError(
                "substeps replays steps as shorter ones, checkpoints='none' replays nothing: drop one of them"
            )
        if k > 1 and self.grad_rtol is not None:
            raise ValueError("grad_rtol chooses sub-steps itself: drop substeps")

    def __call__(self, p: Problem, inputs: Inputs) -> Outcome:
        """Solve, keeping graphs or states of the accepted steps; see `torchaca.core.Gradient`."""
        if self.records:
            looking = Looking(p)
            return guarded(p, looking.close(gather(p, looking.over(observed(p)))))
        if self.records is None and inputs.attached and not inputs.kept:
            return record_while_it_fits(p, inputs, Replayed(p, inputs, States("all")))
        return solve_with(self._passes(p, inputs))

    def _passes(self, p: Problem, inputs: Inputs) -> Passes:
        store = partial(States, self._kept(p, inputs))
        if self.grad_rtol is not None:
            held = self._holds_graphs and not inputs.kept
            graphs = BUDGET // step_bytes(p, inputs, p.method.stages) if held else 0
            return Controlled(p, inputs, Request(self.grad_rtol, store, self.stagewise, graphs))
        if self.substeps > 1 and p.effects is not None and p.effects.stateful:
            raise ValueError(
                "substeps evaluates f between the steps of the forward pass, and f is random or changes what it reads "
                "(Dropout?), so that it would differ there: call model.eval() first, or drop substeps"
            )
        return Replayed(p, inputs, store(), stagewise=self.stagewise, substeps=self.substeps)

    def _kept(self, p: Problem, inputs: Inputs) -> str | int:
        """What to keep."""
        return self._fitting(p, step_bytes(p, inputs, graphs=1 if self.stagewise else p.method.stages))

    def _fitting(self, p: Problem, replay: int) -> str | int:
        """What to keep: as said, or as many states as the budget leaves room for beside the replay of a step."""
        if self.memory_budget is None:
            return "all" if self.checkpoints == "auto" else self.checkpoints
        rows = len(p.carrying.units(1.0)) if p.carrying else 1
        budget, state = parse_bytes(self.memory_budget), rows * p.y0.nbytes
        fit = (budget - replay) // max(state, 1)
        if fit < 1:
            hint = "" if self.stagewise else ", or stagewise=True"
            raise ValueError(
                f"memory_budget {self.memory_budget!r} is less than the graph of one step ({replay:,} bytes) and one "
                f"state ({state:,} bytes): give more{hint}"
            )
        return fit
