"""`torchaca evaluate CHECKPOINT --methods ...`: trained networks with other solvers, without more training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ..cases import attempt
from ..cifar import KINDS, Data, Kind
from ..engine import check_hardware
from ..experiment import UsageError
from ..files import UNFIT, first_line, load_state, probe, write
from ..lock import writing
from ..machine import now
from ..progress import bar
from ..table import terminal
from .evaluation import Solver, error_rate, place_of, solvers
from .images import Samples, samples
from .module import ABOUT, Training
from .plots import plot_solvers
from .recipe import loaded, of_checkpoint, row_of
from .tables import scope, solver_table


def evaluate(
    paths: Sequence[Path],
    *,
    methods: Sequence[str],
    dt: Sequence[float],
    tolerances: Sequence[float],
    out: Path | None = None,
    **changes: Any,
) -> int:
    """Print the error rates of trained networks with each of these solvers, and write them to `out`.

    Parameters
    ----------
    paths : sequence of Path
        Checkpoints of `torchaca run cifar10` or `cifar100`.
    methods, dt, tolerances
        As for `solvers`.
    **changes
        Settings other than those of the training: where the images are, how many of them, the device.

    Returns
    -------
    int
        The exit code of the command.

    Raises
    ------
    UsageError
        Before anything is solved.
    """
    wanted = solvers(methods, dt, tolerances)
    modules = [restored(path, changes) for path in paths]
    kinds = {module.kind for module in modules}
    if len(kinds) > 1:
        raise UsageError("the checkpoints are of different data sets: evaluate them one set at a time")
    data = loaded(modules[0].settings, modules[0].kind)
    with nullcontext() if out is None else _writing(out):
        _evaluate(paths, modules, data, wanted, out)
    return 0


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Refuse, before anything is solved, a folder that cannot be written or that another process is at work in."""
    with writing(out):
        try:
            probe(out)
            yield
        except OSError as error:
            raise UsageError(f"cannot write the results to {out}: {error.strerror or error}") from error


def _evaluate(
    paths: Sequence[Path], modules: Sequence[Training], data: Data, wanted: Sequence[Solver], out: Path | None
) -> None:
    console = terminal()
    rows, notes = [], {}
    for path, module in zip(paths, modules, strict=True):
        images = samples(data, module.settings)
        notes.update(dict.fromkeys(scope(module.settings, data, images)))
        with bar(console, path.stem, len(wanted) + 1) as progress:
            rows.append(_row(path, module, images[1], wanted, progress.advance))
    table = solver_table(rows, modules[0].kind, notes=list(notes))
    table.show(console)
    if out is not None:
        write(out / "evaluation.json", json.dumps({"made": now(), "rows": rows}, indent=2).encode() + b"\n")
        write(out / "evaluation.md", table.markdown().encode())
        plot_solvers(rows, out / "solvers.png")
        console.print(f"table, numbers and plot: {out}", highlight=False)


def restored(path: Path, changes: Mapping[str, Any]) -> Training:
    """The network of a checkpoint, in evaluation mode and on its device.

    Raises
    ------
    UsageError
        Where the file is something else, or a network without ODE blocks.
    """
    state = load_state(path)
    about = state.get(ABOUT) if isinstance(state, Mapping) else None
    if not isinstance(about, Mapping) or about.get("data") not in list(KINDS):
        raise UsageError(
            f"{path} is a checkpoint of another model: `torchaca run cifar10` or cifar100 has not written it"
        )
    kind: Kind = KINDS[about["data"]]
    if about.get("model") == "resnet18":
        raise UsageError(f"{path} is a resnet18, which has no ODE blocks: no solver has an effect on it")
    given = {name: value for name, value in changes.items() if value is not None}
    try:
        row = row_of(about["model"], about["gradient"], about["seed"])
        settings = of_checkpoint({**about["settings"], **given, "devices": 1, "strategy": "auto"})
        module = Training(settings, kind, row, 0)
        module.load_state_dict(state["state_dict"])
    except UNFIT as error:
        label = "-".join(str(about[name]) for name in ("model", "gradient") if about.get(name))
        raise UsageError(f"{path} does not fit the {label} of this version: {first_line(error)}") from error
    check_hardware(settings)
    return module.to(place_of(settings)).eval()


def _row(
    path: Path, module: Training, test: Samples, wanted: Sequence[Solver], advance: Any
) -> dict[str, Any]:
    """A column of the table: the error rate as trained, then that of every solver."""
    own = error_rate(module, test)
    advance({"case": "as trained"})
    found = {}
    for solver in wanted:
        line = attempt(partial(error_rate, module, test, solver.options))
        found[solver.title] = {
            "method": solver.method,
            "value": solver.value,
            "failed": int("failed" in line),
            "error_mean": line.get("error"),
            "nfe": line.get("nfe"),
            "change_mean": line["error"] - own["error"] if "error" in line else None,
        }
        advance({"case": solver.title})
    return {"label": path.stem, "model": module.row.label, "error_mean": own["error"], "solvers": found}
