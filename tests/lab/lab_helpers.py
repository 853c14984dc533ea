"""Small experiments that end in a second, and how to compare runs."""

import hashlib
import io
import json
import os
import zipfile
from dataclasses import replace

import numpy as np
from PIL import Image

from torchaca.lab import cli, conv_reconstruct, cost, three_body, toy, van_der_pol
from torchaca.lab.metrics import CHECK, CLOCKS
from torchaca.lab.run import Run

EPOCHS = 3


def small_three_body():
    """The three-body experiment with a loose tolerance, few points and epochs; all its models at the size "whole"."""
    experiment = three_body.EXPERIMENT
    small = {
        "model": ("ode",),
        "reference": None,
        "rtol": 1e-3,
        "atol": 1e-3,
        "truth_tolerance": 1e-6,
        "train_points": 10,
        "epochs": EPOCHS,
        "seeds": 2,
        "node_stages": ((0.2, 2), (1.0, 1)),
        "node_tolerance": 1e-3,
        "node_solves": 2,
        "lstm_steps": (0.1,),
        "lstm_hidden": (4,),
        "lstm_lr": (1e-3, 1e-2),
        "lstm_epochs": EPOCHS,
        "lstm_check": 2,
    }
    sizes = {
        "smoke": {},
        "demo": {"time_limit": 60.0},
        "whole": {"model": three_body.EXPERIMENT.defaults.model, "reference": 1e-4},
    }
    return replace(experiment, defaults=replace(experiment.defaults, **small), sizes=sizes, size="smoke")


def small_toy():
    """The toy experiment at one T."""
    return replace(toy.EXPERIMENT, sizes={"smoke": {"times": (5.0,)}}, size="smoke")


def small_van_der_pol():
    """The van der Pol experiment at one T and one pair of tolerances."""
    sizes = {"smoke": {"times": (25.0,), "tolerances": ((1e-3, 1e-6),)}}
    return replace(van_der_pol.EXPERIMENT, sizes=sizes, size="smoke")


def small_cost():
    """The cost experiment at two or three points an axis."""
    sizes = {"smoke": {"spans": (1.0, 2.0, 4.0), "layers": (1, 4), "trials": (1, 3)}}
    return replace(cost.EXPERIMENT, sizes=sizes, size="smoke")


def small_conv_reconstruct():
    """The reconstruction of two images at two T."""
    sizes = {"smoke": {"times": (1.0, 3.0), "seeds": 1, "images": 2, "activations": ("relu", "linear")}}
    return replace(conv_reconstruct.EXPERIMENT, sizes=sizes, size="smoke")


def mosaic(path, count=4, columns=3):
    """A zip of `count` images in the mosaic format, and the images, `(count, 32, 32, 3)`."""
    rows = -(-count // columns)
    tiles = np.random.default_rng(0).integers(0, 256, (rows * columns, 32, 32, 3), dtype=np.uint8)
    whole = tiles.reshape(rows, columns, 32, 32, 3).swapaxes(1, 2).reshape(rows * 32, columns * 32, 3)
    part = io.BytesIO()
    Image.fromarray(whole).save(part, "PNG")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.json", json.dumps({"tile": 32, "columns": columns, "count": {"test": count}}))
        archive.writestr("test_00.png", part.getvalue())
    return tiles[:count]


def cifar_mosaics(path, kind, train, test, *, encoding="PNG", sha256=None):
    """A zip of mosaics of random images with all that training needs, and the images."""
    rng, columns = np.random.default_rng(0), 10
    arrays = {
        name: rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        for name, count in (("train", train), ("test", test))
    }
    sums = {name: hashlib.sha256(images.tobytes()).hexdigest() for name, images in arrays.items()}
    about = {
        "classes": [str(i) for i in range(kind.classes)],
        "tile": 32,
        "columns": columns,
        "encoding": encoding,
        "count": {"train": train, "test": test},
        "sha256": sha256 or sums,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.json", json.dumps(about))
        for name, images in arrays.items():
            whole = images.reshape(-1, columns, 32, 32, 3).swapaxes(1, 2).reshape(-1, columns * 32, 3)
            part = io.BytesIO()
            Image.fromarray(whole).save(part, "PNG")
            archive.writestr(f"{name}_00.png", part.getvalue())
    return arrays["train"], arrays["test"]


def run(*args):
    """The exit code of `torchaca run ARGS`."""
    return cli.main(["run", *map(str, args)])


def run_in_a_fork(*args, **methods):
    """How `torchaca run ARGS` ends in a fork of this process with these methods of a run, as `os.waitpid` says."""
    child = os.fork()
    if child == 0:
        try:
            for name, method in methods.items():
                setattr(Run, name, method)
            run(*args)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def metrics(folder):
    """The metrics of a run without its clock, and without the checksums of its lines."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in (*CLOCKS, CHECK)} for line in lines]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())
