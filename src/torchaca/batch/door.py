"""What a batch can be asked for: in words, at the door."""

from __future__ import annotations

from typing import Any

from ..core import Problem, tolerant
from ..errors import shorten
from ..executors import NATIVE
from ..gradients import Facts
from ..torch_internals import transformed

STEPS = ("own", "joint")


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
    if options.steps not in STEPS:
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
    if options.events is not None:
        raise NotImplementedError(
            "events are not available with batch=1 yet: solve sample by sample, or without events and look at sol.ys"
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
    if options.compile not in (False, True, NATIVE):
        raise ValueError(
            f"compile={options.compile!r} compiles steps that all of y takes together: with batch=1 use "
            f"compile={NATIVE!r}, which has those of each sample"
        )
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
    }
    for name, holds in given.items():
        if holds:
            raise ValueError(
                f"{name}= has no effect without batch=1, which says that the leading dimension of y0 holds samples"
            )


def refuse_problem(p: Problem) -> None:
    """Refuse what a solve in which each sample has its own steps cannot do.

    Raises
    ------
    NotImplementedError
    """
    assert p.gradient is not None
    control = tolerant(p.control) if p.control.adaptive else getattr(p.control, "rows", None)
    unavailable = {
        f"a control of your own ({type(p.control).__name__}) is": control is None
        or (p.control.adaptive and control.step_rule is None),
        "jump_ts is": bool(p.jumps) or p.one_sided,
        "dense=True is": p.dense,
        "debug=True is": p.trace is not None,
        f"method {p.method.name!r} is": p.carrying is not None,
        f"gradient={p.gradient.name!r} with these settings is": not Facts.of(p.gradient).exact,
        "an f that draws random numbers or moves buffers is": p.effects is not None,
    }
    for what, wanted in unavailable.items():
        if wanted:
            raise NotImplementedError(
                f"{what} not available where each sample has steps of its own: use steps='joint', or method='dopri5', "
                "gradient='aca' or 'direct' without grad_rtol and substeps"
            )
