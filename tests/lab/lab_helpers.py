"""Small experiments that end in a second, and how to compare runs."""

import json
from dataclasses import replace

from torchaca.lab import cli, three_body, toy, van_der_pol

EPOCHS = 3


def small_three_body():
    """The three-body experiment with a loose tolerance, few points and epochs."""
    experiment = three_body.EXPERIMENT
    small = {
        "rtol": 1e-3,
        "atol": 1e-3,
        "truth_tolerance": 1e-6,
        "train_points": 10,
        "epochs": EPOCHS,
        "seeds": 2,
    }
    defaults = replace(experiment.defaults, **small)
    return replace(
        experiment, defaults=defaults, sizes={"smoke": {}, "demo": {"time_limit": 60.0}}, size="smoke"
    )


def small_toy():
    """The toy experiment at one T."""
    return replace(toy.EXPERIMENT, sizes={"smoke": {"times": (5.0,)}}, size="smoke")


def small_van_der_pol():
    """The van der Pol experiment at one T and one pair of tolerances."""
    sizes = {"smoke": {"times": (25.0,), "tolerances": ((1e-3, 1e-6),)}}
    return replace(van_der_pol.EXPERIMENT, sizes=sizes, size="smoke")


def run(*args):
    """The exit code of `torchaca run ARGS`."""
    return cli.main(["run", *map(str, args)])


def metrics(folder):
    """The metrics of a run without its clock."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "elapsed")} for line in lines
    ]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())
