"""Draw the pictures in docs/results/ again from what is stored beside them, and write the pages' first lines.

`python -m tools.redraw` runs no experiment. What needs more than `summary.json` (curves over epochs, networks) stays.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchaca.lab.cifar_node import outcome as cifar
from torchaca.lab.cifar_node.plots import plot_solvers, plot_spread
from torchaca.lab.cifar_node.recipe import Settings as CifarSettings
from torchaca.lab.hopper import outcome as hopper
from torchaca.lab.hopper.headline import first_line
from torchaca.lab.hopper.plots import plot_errors
from torchaca.lab.hopper.train import Settings as HopperSettings

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def settings(kind: type, summary: Mapping[str, Any]) -> Any:
    """The settings of a stored run: lists become the tuples they were."""
    stored = summary["settings"].items()
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in stored})


def draw_hopper(folder: Path, summary: Mapping[str, Any]) -> str:
    """Draw the errors; the first line."""
    plot_errors(summary["rows"], hopper.PAPER, folder / "errors.png")
    return first_line(summary["rows"], settings(HopperSettings, summary))


def draw_cifar(folder: Path, summary: Mapping[str, Any]) -> str:
    """Draw the seeds and the solvers; the first line."""
    kinds = summary["models"]
    plot_spread(kinds, folder / "spread.png")
    plot_solvers([kind for kind in kinds if kind["solvers"]], folder / "solvers.png")
    return cifar.first_line(summary["tables"][0]["notes"][0], settings(CifarSettings, summary), kinds)


def with_first_line(page: str, name: str, about: str, first: str) -> str:
    """The page with this first line, whether it had one or not."""
    rest = re.split(re.escape(about), page, maxsplit=1)[1]
    return f"# {name}\n\n{first}\n\n{about}{rest}"


def main() -> None:
    """Redraw everything."""
    from torchaca.lab.cifar_node import cifar10
    from torchaca.lab.hopper import EXPERIMENT

    for folder, draw, experiment in (
        (RESULTS / "hopper", draw_hopper, EXPERIMENT),
        (RESULTS / "cifar10", draw_cifar, cifar10.EXPERIMENT),
        (RESULTS / "ten-seeds" / "cifar10", draw_cifar, cifar10.EXPERIMENT),
    ):
        summary = json.loads((folder / "summary.json").read_text())
        page = folder / "summary.md"
        first = draw(folder, summary)
        page.write_text(with_first_line(page.read_text(), experiment.name, experiment.about, first))


if __name__ == "__main__":
    main()
