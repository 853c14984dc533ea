"""What would solve a problem, and why nothing faster can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from .batch import solver_of
from .batched import batch_of
from .compiled import CannotCompile
from .events import watch_for
from .executors import EAGER, chosen, following
from .going_on import State
from .options import Options, refuse_unknown
from .solve import problem_of
from .state import structure_of
from .times import times_of

INSTEAD = {
    "native": "f and its derivative as C, in loops in C",
    "loops": "loops compiled by PyTorch, which takes tens of seconds the first time",
    "steps": "the loop in Python, each step a graph compiled by PyTorch",
    "cuda-graphs": "the loop in Python, each step a CUDA graph",
    EAGER: "the loop in Python, operation by operation",
}
"""What each executor is, in a line; a stranger's is its name alone."""
STEPWISE = "f, its derivative and each step as C, in the loop in Python: "
"""What a native solve is where the loop cannot be in C, and before why."""


@dataclass(frozen=True)
class Explanation:
    """What would solve a problem; printed, it says so in words.

    Attributes
    ----------
    executor : str
        Its name, as in `Stats.executor`.
    passed_over : dict of str to str
        Which executors were asked before it, and why they cannot, with what to write instead where that is known.
    stepwise : str
        Why the loop of a native solve would be in Python, as in `Stats.stepwise`; empty if it would not.
    samples : bool
        Whether it is a batch whose samples have steps of their own.
    """

    executor: str
    passed_over: dict[str, str] = field(default_factory=dict)
    stepwise: str = ""
    samples: bool = False

    def __str__(self) -> str:
        about = INSTEAD.get(self.executor, "an executor of your own")
        about = (self.stepwise if self.samples else STEPWISE + self.stepwise) if self.stepwise else about
        lines = [f"runs as {self.executor!r}: {about}"]
        lines += [f"not as {name!r}: {why}" for name, why in self.passed_over.items()]
        return "\n".join(lines)


def explain(f: Callable[..., Any], y0: Any, t: Any, **options: Any) -> Explanation:
    """Say what would solve a problem, and why nothing faster can. Solves nothing, but compiles f where it can be.

    Parameters
    ----------
    f, y0, t
        As in `torchaca.solve`.
    **options
        Those of `torchaca.solve`; `compile=True` if it is not said otherwise.

    Returns
    -------
    Explanation
        `print` it.

    Raises
    ------
    ValueError, TypeError
        As `torchaca.solve`.

    Examples
    --------
    >>> import torch
    >>> explain(lambda t, y: -y, torch.ones(2), [0.0, 1.0], compile=False).executor
    'eager'
    """
    refuse_unknown(options, "explain()")
    asked = Options(**{"compile": True, **options})
    if asked.batch:
        p, times, _ = batch_of(f, y0, t, asked, problem_of)
        return Explanation(*solver_of(p, times, asked), samples=True)
    start = y0 if isinstance(y0, State) else None
    y0 = y0 if start is None else start.y
    structure = structure_of(y0)
    packed = structure.pack(y0)
    request, ts = asked.request(structure, packed), times_of(t, "t")
    p = problem_of(f, packed, structure, ts, request, start=start)
    p = replace(p, events=watch_for(p, request.events))
    takers, passed = chosen(request.compile, p)
    for name, executor in takers:
        try:
            executor.begin(p)
        except CannotCompile as reason:
            passed[name] = str(reason)
            takers += [] if reason.final else following(request.compile, name, p, passed)
        else:
            return Explanation(name, passed, p.stats.stepwise)
    return Explanation(EAGER, passed)
