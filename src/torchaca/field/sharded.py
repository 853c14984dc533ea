"""Parameters that are sharded inside of f (FSDP2): gathered in each evaluation, and whole only in it."""

from __future__ import annotations

import torch

from ..core import Problem


def refuse_gathered(name: str, p: Problem, gradient: str, *, recorded: bool) -> None:
    """Refuse sharding inside f unless all processes make the same evaluations, in one graph.

    `gradient` is the name of the method; `recorded`: autograd records the steps under it.

    Raises
    ------
    ValueError
    """
    advice = "shard the module around the solve, fully_shard(NeuralODE(f)), and nothing inside f"
    if p.control.adaptive:
        raise ValueError(
            f"{name} is sharded and gathered in each evaluation of f, of which an adaptive solve makes another number "
            f"on each rank: a deadlock. Instead, {advice}"
        )
    if torch.is_grad_enabled() and not recorded:
        raise ValueError(
            f"{name} is sharded and whole only inside f, so gradient={gradient!r} would lose its gradient: "
            f"{advice}, or use gradient='direct'"
        )
