"""A run as `torchaca report` finds it."""

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from torchaca.lab import cli
from torchaca.lab import run as runs
from torchaca.lab.experiment import Experiment
from torchaca.lab.report import Report, publish, write_report
from torchaca.lab.table import Table


@dataclass(frozen=True)
class Settings:
    gradient: tuple[str, ...] = ("aca",)
    pairs: tuple[tuple[float, float], ...] = ((1e-3, 1e-6),)
    limit: float | None = None
    threads: int = 1


EXPERIMENT = Experiment(
    name="falling",
    about="A stone falls: how <far> is measured with `aca`.",
    defaults=Settings(),
    sizes={"smoke": {}, "cpu": {}},
    main=lambda run, settings, console: None,
)
TABLES = [
    Table(
        "Error of <x> & `y`",
        ["gradient", "error", "paper"],
        [["aca", "1.0e-05", "0.0007"], ["a|b", "-", "-"]],
        ["by `aca`"],
    ),
    Table("Cost", ["gradient", "NFE"], [["aca", "12"]]),
]


def picture(kind, frames=1):
    """A picture, 40 x 30, moving where it has several frames."""
    content = io.BytesIO()
    first, *others = (Image.new("RGB", (40, 30), (80 * i, 120, 200)) for i in range(frames))
    first.save(content, kind, **({"save_all": True, "append_images": others} if others else {}))
    return content.getvalue()


def finished():
    """The folder of a run that came to its end, below the current one; its results are in docs, too."""
    run, settings = runs.start(EXPERIMENT, {"gradient": ["aca", "direct"]}, Path("runs/my stone"))
    run.log({"row": "aca"})
    (run.folder / "fall.png").write_bytes(picture("PNG"))
    (run.folder / "motion.gif").write_bytes(picture("GIF", 3))
    plots = {"fall.png": "Height over `t`.", "motion.gif": "The fall, moving."}
    report = Report(TABLES, plots, {"rows": run.metrics})
    write_report(run, EXPERIMENT, settings, report)
    publish(run, EXPERIMENT, report, Path("docs"))
    return run.folder


def report(*args):
    """The exit code of `torchaca report ARGS`."""
    return cli.main(["report", *map(str, args)])
