"""The curve of a run: the error after each epoch as a small text file, and as a plot."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..experiment import UsageError
from ..files import write
from ..metrics import read_metrics

COLUMNS = ("row", "epoch", "train_mse", "test_mse", "seconds", "nfe")


def curve(lines: Iterable[Mapping[str, Any]]) -> str:
    """The epochs among the lines of metrics, as CSV: errors (not x 1e-2), seconds and evaluations of a step."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for line in lines:
        if "epoch" in line and "failed" not in line:
            numbers = (line["mse"], line.get("test_mse"), line["seconds"], line["nfe"])
            said = ("" if number is None else f"{number:.5g}" for number in numbers)
            table.writerow([line["row"], line["epoch"] + 1, *said])
    return text.getvalue()


def main(argv: list[str] | None = None) -> int:
    """Write the curve of a run that may be at work or have been killed, without touching it."""
    parser = argparse.ArgumentParser(prog="python -m torchaca.lab.hopper.curve", description=main.__doc__)
    parser.add_argument("run", type=Path, help="the folder of the run")
    parser.add_argument("--write", type=Path, help="the file; printed where none is given")
    args = parser.parse_args(argv)
    try:
        found = curve(read_metrics(args.run / "metrics.jsonl"))
    except UsageError as error:
        parser.error(str(error))
    if args.write:
        write(args.write, found.encode())
    else:
        print(found, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
