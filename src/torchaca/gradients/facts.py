"""What others have to know of a gradient, so that nobody has to ask which one it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..core import Gradient, Problem
from .direct import Direct


@dataclass(frozen=True)
class Facts:
    """What others have to know of a gradient: attributes of these names, each with a default.

    Attributes
    ----------
    exact : bool
        Its gradient is that of the computed solution, step sizes held constant: the one of `direct`.
    divides : bool
        If it is not exact: it differentiates each accepted step all the same, as several.
    records : bool or None
        Autograd records the steps (True), so that nobody has to find the tensors that f depends on; or they have no
        graph (False), and `p.f0` has none either. None: it decides in the solve, and gets both, `p.f0` as a part of the
        caller's graph and the tensors.
    moves : bool
        Its backward pass goes from step to step and tells `p.trace` of each (`debug=True`).
    substitutable : bool
        If it is exact: `direct` or a compiled loop may stand in for it where it cannot run itself, since it promises
        nothing else, such as less memory. Not needed if it records the steps.
    stagewise : bool
        It makes the graph of one evaluation of f at a time, so that no graph of a whole step can be compiled for it.
    wants_graph_size : bool
        `inputs.graph_bytes` has to be measured.
    states : callable or None
        It replays accepted steps, and asks nothing else of whoever does so in its place: `states(p, nbytes)` says which
        states it keeps, as `ACA.checkpoints` does, where the replay of a step takes so many bytes.
    substeps : int
        As how many equal ones such a step is differentiated.
    saves : bool
        It differentiates what `p.save` makes of the states, so that they are not kept: it leaves the outputs to
        `gather`, and replays them by `p.save.emitted`. For any other, `save=` works on its outputs.
    """

    exact: bool = False
    divides: bool = False
    records: bool | None = None
    moves: bool = False
    substitutable: bool = False
    stagewise: bool = False
    wants_graph_size: bool = False
    states: Callable[[Problem, int], str | int] | None = None
    substeps: int = 1
    saves: bool = False

    @staticmethod
    def of(gradient: Gradient) -> Facts:
        """The facts of a gradient."""
        names = Facts.__dataclass_fields__
        return Facts(**{name: getattr(gradient, name) for name in names if hasattr(gradient, name)})

    @property
    def replaceable(self) -> bool:
        """Whether the graph of all accepted steps may stand in for it."""
        return self.exact and (self.records is True or self.substitutable)


def recorded(gradient: Gradient) -> Gradient:
    """The gradient inside torch.func transforms, which record what they differentiate themselves.

    Raises
    ------
    NotImplementedError
        For a gradient, or a setting, that decides what is recorded.
    """
    facts = Facts.of(gradient)
    if facts.records:
        return gradient
    if facts.replaceable:
        return Direct()
    raise NotImplementedError(
        f"gradient={gradient.name!r} with these settings does not run inside torch.func transforms or forward-mode AD, "
        "which keep the graph of all steps: use gradient='aca' without settings, or 'direct'"
    )
