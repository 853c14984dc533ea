"""`check_gradient`: every gradient method on the user's own model, with its error and its price."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core import Gradient
from ..errors import SolverError
from ..gradients import GRADIENTS, Facts
from ..log import REMEDIES, GradientError
from ..options import find_gradient
from .advice import Advice, advise, free_memory, nbytes
from .measured import Exact, Measured, measured_with
from .model import Grads, distance, model_of
from .parts import parts_of
from .reference import METHOD, Reference, reference_of
from .table import COLUMNS, WIDTH, WIDTHS, duration, line, wrapped


@dataclass(frozen=True)
class GradientRow:
    """One gradient method on the model.

    Attributes
    ----------
    gradient : str
        Its name, or the call that makes it.
    failure : str or None
        Why there is no gradient; then the numbers are nan and zero.
    by_chance : bool
        Whether it is made to be another gradient (of the ODE, of the step-size search), so that agreement with the
        computed solution's is no law.
    error_discrete : float
        Distance from the exact gradient of the computed solution (`direct` on the same steps), all inputs together,
        relative to its size.
    error_ode : float or None
        The same from the gradient of the ODE's exact solution; None without a reference.
    errors : dict
        Input name -> (error_discrete, error_ode) of that tensor alone.
    forward, backward : float
        Seconds, medians.
    nfe, nfe_backward : int
        Evaluations of f.
    memory : int
        The most bytes that autograd held at once, without parameters and inputs, which are there anyway.
    """

    gradient: str
    failure: str | None = None
    by_chance: bool = False
    error_discrete: float = float("nan")
    error_ode: float | None = None
    errors: Mapping[str, tuple[float, float | None]] = dataclasses.field(default_factory=dict)
    forward: float = 0.0
    backward: float = 0.0
    nfe: int = 0
    nfe_backward: int = 0
    memory: int = 0

    @property
    def seconds(self) -> float:
        return self.forward + self.backward

    def cells(self) -> tuple[str, ...]:
        """The columns of the table."""
        return (
            self.gradient,
            f"{self.error_discrete:.1e}",
            "-" if self.error_ode is None else f"{self.error_ode:.1e}",
            duration(self.forward),
            duration(self.backward),
            f"{self.nfe} + {self.nfe_backward}",
            nbytes(self.memory),
        )

    def lines(self) -> list[str]:
        """The row as text; a long name has a line of its own."""
        name, *cells = self.cells()
        above = [name] if len(name) > WIDTHS[0] else []
        first = "" if above else name
        if self.failure is None:
            return [*above, line([first, *cells])]
        return [*above, *wrapped(self.failure, f"{first:<{WIDTHS[0]}}  ", " " * (WIDTHS[0] + 2))]


@dataclass(frozen=True)
class GradientReport:
    """What `check_gradient` found; `print` it.

    Attributes
    ----------
    rows : tuple of GradientRow
    advice : Advice
        Which one to use, and why.
    reference : Reference or None
        The gradient of the ODE's exact solution; `no_reference` says why there is none.
    inputs : dict
        Name -> number of entries of the tensors that the loss depends on.
    parts : GradientError or None
        What the gradient of the computed solution is off by, and which part of that its steps, its states and its
        outputs have; see `Stats.gradient_error`. None without a reference.
    """

    rows: tuple[GradientRow, ...]
    advice: Advice
    reference: Reference | None
    no_reference: str
    inputs: Mapping[str, int]
    parts: GradientError | None = None

    def __getitem__(self, gradient: str) -> GradientRow:
        return next(row for row in self.rows if row.gradient == gradient)

    @property
    def notes(self) -> list[str]:
        """What the table's columns mean, and the advice."""
        names = list(self.inputs)
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        if self.reference is None:
            ode = f"ODE: nothing to compare with, since {self.no_reference}."
        else:
            dtype = str(self.reference.dtype).removeprefix("torch.")
            ode = (
                f"ODE: distance from the gradient of the ODE's exact solution, found by {METHOD} at rtol "
                f"{self.reference.rtol:.0e} in {dtype}, itself right to {self.reference.error:.0e}."
            )
        return [
            f"gradients with respect to {len(names)} tensors, {sum(self.inputs.values())} numbers: {shown}.",
            "solution: distance from the exact gradient of the computed solution, relative to its size.",
            ode,
            "evaluations: forward + backward. memory: the most that autograd held at once.",
            *(
                ()
                if self.parts is None
                else (f"the computed solution's own error is of {_said(self.parts)}.",)
            ),
            *self.advice.notes,
            f"{self.advice}.",
        ]

    def __str__(self) -> str:
        lines = [line(COLUMNS), "-" * WIDTH]
        for row in self.rows:
            lines += row.lines()
        lines.append("")
        for note in self.notes:
            lines += wrapped(note, "", "  ")
        return "\n".join(lines)


def check_gradient(
    f: Callable[..., Any],
    y0: Any,
    t: Any,
    loss: Callable[[Any], Tensor],
    *,
    args: tuple[Any, ...] = (),
    gradients: Sequence[str | Gradient] | None = None,
    reference_rtol: float | None = 1e-10,
    repeats: int = 3,
    **options: Any,
) -> GradientReport:
    """Try every gradient method on your model: how far off is it, what does it cost, which one to use.

    Nothing is trained: parameters, their `.grad`, buffers and random generators are as before. Each method solves
    `1 + repeats` times; the reference is `ACA(grad_rtol=...)` at a tight tolerance, right to a tenth of the smallest
    error that it has to judge, but to 1e-6 at most, in float64 where f can be evaluated in it (f's tensors are
    converted in place meanwhile). Two or more further solves find where the error comes from.

    Parameters
    ----------
    f, y0, t, args, **options
        As in `torchaca.solve`: solve as you train.
    loss : callable
        `loss(ys)`, one number, of the outputs `(len(t), *y0.shape)` in the structure of y0.
    gradients : sequence of str or Gradient, optional
        Default: all of `torchaca.GRADIENTS`.
    reference_rtol : float or None
        Tolerance of the reference solution; None: no reference.
    repeats : int
        Timed passes, of which the table shows the median.

    Returns
    -------
    GradientReport
        A gradient that fails or refuses is a row with the reason.

    Raises
    ------
    ValueError, TypeError
        For what `solve` refuses whatever the gradient is, or a loss that is not one differentiable number.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 2)
    >>> report = check_gradient(lambda t, y: net(y).tanh(), torch.ones(2), [0.0, 1.0], lambda ys: ys[-1].sum())
    >>> report.advice.gradient in GRADIENTS
    True
    """
    if repeats < 1:
        raise ValueError(f"repeats is the number of timed passes, at least 1; got {repeats}")
    if "gradient" in options:
        raise TypeError(
            "check_gradient compares gradients: give gradients=[...], or leave it out for all of them"
        )
    chosen = {_name(g): find_gradient(g) for g in (GRADIENTS if gradients is None else gradients)}
    model = model_of(f, y0, t, loss, args, options)
    exact = Exact(model)
    base = None
    try:
        base = exact.on_its_own_steps()
        inputs = {name: g.numel() for name, g in base.grads.items() if bool((g != 0).any())}
    except SolverError:
        inputs = {name: x.numel() for name, x in model.inputs.items()}
    measured = {name: measured_with(model, g, exact, repeats) for name, g in chosen.items()}
    judged = [one.first.grads for one in measured.values() if isinstance(one, Measured)]
    found = "it was not asked for" if reference_rtol is None else reference_of(model, reference_rtol, judged)
    reference = found if isinstance(found, Reference) else None
    rows = tuple(_row(name, chosen[name], one, reference) for name, one in measured.items())
    parts = parts_of(model, base.grads, reference) if reference and base else None
    advice = advise(
        rows,
        rounding=model.rounding,
        reference_error=reference.error if reference else None,
        free=free_memory(model.device),
        parts=parts,
    )
    return GradientReport(rows, advice, reference, found if isinstance(found, str) else "", inputs, parts)


def _said(parts: GradientError) -> str:
    """The parts of an error in words, each with its remedy."""
    return "; ".join(f"{name} {x:.1e} (try {REMEDIES[name]})" for name, x in parts.parts.items())


def _row(name: str, gradient: Gradient, one: Measured | str, reference: Reference | None) -> GradientRow:
    if isinstance(one, str):
        return GradientRow(name, failure=one)
    first, true = one.first, one.exact
    ode = reference.grads if reference else None
    return GradientRow(
        name,
        None,
        not Facts.of(gradient).exact,
        distance(first.grads, true),
        distance(first.grads, ode) if ode else None,
        {
            x: (_alone(x, first.grads, true), _alone(x, first.grads, ode) if ode else None)
            for x in first.grads
        },
        statistics.median(done.forward for done in one.timed),
        statistics.median(done.backward for done in one.timed),
        first.stats.nfe,
        first.stats.nfe_backward,
        one.peak,
    )


def _alone(name: str, grads: Grads, truth: Grads) -> float:
    return distance({name: grads[name]}, {name: truth[name]})


def _name(gradient: str | Gradient) -> str:
    """`"aca"`, or the call that makes the object: `"ACA(checkpoints='sqrt')"`."""
    if isinstance(gradient, str) or not dataclasses.is_dataclass(gradient) or isinstance(gradient, type):
        return str(getattr(gradient, "name", gradient))
    fields = [field for field in dataclasses.fields(gradient) if field.init and field.name != "name"]
    given = [(field.name, getattr(gradient, field.name), field.default) for field in fields]
    settings = ", ".join(f"{name}={value!r}" for name, value, default in given if value is not default)
    return f"{type(gradient).__name__}({settings})"
