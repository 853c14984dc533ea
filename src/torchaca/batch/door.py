"""What a batch can be asked for, and what not: in words, at the door."""

from __future__ import annotations

from typing import Any

from ..compiled import in_steps
from ..compiled.door import CUDA_GRAPHS, STEPS, refuse_steps
from ..core import Gradient, Problem
from ..errors import shorten
from ..executors import LOOPS, NATIVE, check_mode
from ..gradients import Facts
from ..torch_internals import transformed
from .clock import Clock

WHOSE = ("own", "joint")
NEEDED = {True: "step_rule", False: "rows"}
"""What a control has that is adaptive, or that is not, and works on samples."""


def check_door(options: Any) -> Any:
    """Return the options of a solve, if they are such as a batch can have, or if there is none and they ask for none.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
    """
    if options.batch not in (0, 1):
        raise ValueError(
            "batch=1 says that the leading dimension of y0 holds independent problems; got "
            f"batch={shorten(options.batch)}"
        )
    if options.steps not in WHOSE:
        raise ValueError(
            f"steps is 'own' or 'joint', which says whose steps they are in a batch; got {options.steps!r}. The "
            "number of fixed steps is n_steps="
        )
    if not options.batch:
        _refuse_without_batch(options)
        return options
    if not isinstance(options.rows, tuple):
        raise TypeError(
            "rows is a tuple of f's further arguments with one row for each sample: write "
            f"rows=({shorten(options.rows, 20)},)"
        )
    if options.events is not None and options.steps == "joint":
        raise NotImplementedError(
            "steps='joint' makes the same steps for all samples, and an event of one of them would end those of all: "
            "leave out steps=, with which each sample has events of its own"
        )
    for name in ("save", "progress"):
        if getattr(options, name):
            raise NotImplementedError(
                f"{name}= is not available with batch=1, where outputs are written sample by sample: drop one of them"
            )
    if options.steps == "joint" and options.compile:
        raise NotImplementedError(
            f"compile={options.compile!r} is not available with steps='joint', where f gets t as (B, 1, ..., 1): leave "
            "out batch=1, with f for the whole of y and one t, or steps='joint'"
        )
    if options.compile == LOOPS:
        raise ValueError(
            f"compile={LOOPS!r} compiles the loop of steps that all of y takes together: with batch=1 use "
            f"compile={NATIVE!r}, which has those of each sample, or compile={STEPS!r}"
        )
    check_mode(options.compile)
    if transformed():
        raise NotImplementedError(
            "batch=1 is not available inside torch.func transforms and forward-mode AD: there, torch.func.vmap over "
            "solve gives each lane its own steps"
        )
    return options


def _refuse_without_batch(options: Any) -> None:
    given = {
        "rows": not (isinstance(options.rows, tuple) and not options.rows),
        "steps": options.steps != "own",
        "check_rows": not options.check_rows,
        "deterministic": bool(options.deterministic),
    }
    for name, holds in given.items():
        if holds:
            raise ValueError(
                f"{name}= has no effect without batch=1, which says that the leading dimension of y0 holds samples"
            )


def refuse_problem(p: Problem, *, joint: bool = True) -> None:
    """Refuse what a solve in which each sample has its own steps cannot do, and `joint` ones perhaps can.

    Raises
    ------
    NotImplementedError
    """
    assert p.gradient is not None
    control, facts = p.control, Facts.of(p.gradient)
    ours = getattr(control, NEEDED[control.adaptive], None) is not None
    unavailable = {
        f"a control of your own ({type(p.control).__name__}) chooses steps for all samples at once": not ours,
        "debug=True tells of steps by their times, and the n-th step of each sample has its own": p.trace
        is not None,
        f"gradient={p.gradient.name!r} does not differentiate the accepted steps one by one, which is all that samples "
        "with steps of their own have in common": not (facts.exact or facts.divides),
        "an f that draws random numbers or moves buffers leaves behind what a rejected trial of one sample cannot undo "
        "without undoing the accepted ones of others": p.effects is not None,
    }
    instead = "steps='joint', which gives all samples the same steps" if joint else "a solve of each sample"
    for why, wanted in unavailable.items():
        if wanted:
            raise NotImplementedError(
                f"{why}: use {instead}, or gradient='aca' or 'direct' and tolerances or n_steps"
            )


def with_graphs(p: Problem, clock: Clock, mode: bool | str) -> Problem:
    """The problem with graphs for steps, if they are asked for.

    Raises
    ------
    ValueError
        If there are none.
    """
    if mode not in (STEPS, CUDA_GRAPHS):
        return p
    assert p.gradient is not None
    reason = refuse_steps(p, p.gradient, str(mode), transformed(), jumps=clock.jumps is not None)
    if reason is not None:
        raise ValueError(reason)
    p.stats.executor = str(mode)
    return in_steps(p, str(mode))


def refuse_outputs(gradient: Gradient, clock: Clock) -> None:
    """Refuse outputs inside of steps to a gradient that goes over others, which it chooses later.

    Raises
    ------
    NotImplementedError
    """
    facts, t = Facts.of(gradient), clock.wanted
    if facts.exact or facts.substeps > 1 or not bool(((t != t[0]) & (t != t[-1])).any()):
        return
    raise NotImplementedError(
        f"gradient={gradient.name!r} with these settings refines steps until gradients agree, and an output inside of "
        "them lies in another part of each sample's: give the first and the last time of each sample alone, or use "
        "steps='joint' or ACA(substeps=...)"
    )
