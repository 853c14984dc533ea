"""The hopper data: MuJoCo trajectories, generated on demand or read from a file, and what the experiment makes of them.

Generation, windows, split, sub-sampling and normalisation are those of the public latent-ODE code (Rubanova, Chen,
Duvenaud, NeurIPS 2019).
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..experiment import UsageError
from ..files import first_line, make, rename, unfinished, write
from .physics import RECIPE, engine, generate

CACHE = Path("data/hopper.npy")
SEQUENCES = RECIPE["sequences"]
SHAPE = (RECIPE["steps"], RECIPE["dimensions"])
SAMPLE = "94b8fdd10cc9b337b7461b647929c238ac2e0a5591c97fd2509ef3ea4e94390f"
"""The checksum of hopper_sample.npz: the first 500 sequences of the recipe."""
TRAIN_PART = 0.8
UNPACKED = 1 << 29  # bytes: more than twice those of the recipe in float64

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """Normalised windows of the trajectories.

    Attributes
    ----------
    train, test : Tensor
        `(n, window, 14)`.
    times : Tensor
        `(window,)`, the fraction of a trajectory since the window's start.
    low, scale : Tensor
        `(14,)`: the raw data are `low + scale * x`.
    """

    train: Tensor
    test: Tensor
    times: Tensor
    low: Tensor
    scale: Tensor


def trajectories(path: str | None) -> Array:
    """All trajectories, `(n, 200, 14)`: those of the file `path`, or generated once and kept in `data/`.

    Raises
    ------
    UsageError
        For a file without or with another checksum, or of another shape, and where MuJoCo is needed and missing.
    """
    if path is not None:
        return _read(Path(path))
    if not CACHE.exists():
        _keep(CACHE, generate(SEQUENCES))
    return _read(CACHE)


def check(path: str | None, sequences: int) -> None:
    """Refuse what `trajectories` would refuse, and fewer than `sequences`, without generating anything.

    Raises
    ------
    UsageError
    """
    if path is None and not CACHE.exists():
        engine()
    elif len(found := trajectories(path)) < sequences:
        raise UsageError(f"{path or CACHE} has {len(found)} sequences, {sequences} are wanted")


def _keep(path: Path, found: Array) -> None:
    """Write the trajectories and, beside them, how they were made and their checksum."""
    make(path.parent)
    beside = unfinished(path)
    with beside.open("wb") as file:
        np.save(file, found)
        file.flush()
        os.fsync(file.fileno())
    record = {"recipe": RECIPE, "sha256": _checksum(beside)}
    write(_record(path), json.dumps(record, indent=2).encode() + b"\n")
    rename(beside, path)


def _read(path: Path) -> Array:
    if not path.is_file():
        raise UsageError(f"--data {path}: there is no such file")
    found = _checksum(path)
    if found != SAMPLE:
        wanted = _wanted(path)
        if wanted["sha256"] != found:
            raise UsageError(
                f"{path} is corrupt: its sha256 is {found}, {_record(path).name} says {wanted['sha256']}. "
                "Delete both to generate the data anew"
            )
        if wanted["recipe"] != RECIPE:
            raise UsageError(f"{path} was made by another recipe: {wanted['recipe']}, not {RECIPE}")
    array = _array(path)
    if array.ndim != 3 or array.shape[1:] != SHAPE or not np.isfinite(array).all():
        raise UsageError(f"{path} holds {array.shape}: finite numbers (sequences, *{SHAPE}) are needed")
    return np.asarray(array, dtype=np.float32)


def _array(path: Path) -> Any:
    """The array in a file, or the first one of several.

    Raises
    ------
    UsageError
        When there is none, or when it is larger than trajectories are.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > UNPACKED:
                raise ValueError(f"it unpacks to {size:,} bytes, more than {UNPACKED:,}")
        content: Any = np.load(path)
        return content if isinstance(content, np.ndarray) else content[content.files[0]]
    except Exception as error:  # of the readers of zip and of numpy's format
        raise UsageError(f"{path} does not read as trajectories: {first_line(error)}") from error


def _wanted(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(_record(path).read_text())
        return {"sha256": record["sha256"], "recipe": record["recipe"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{path} is neither hopper_sample.npz nor a file that this command has generated: its sha256 is another "
            f"one, and {_record(path)} with its recipe and checksum cannot be read"
        ) from error


def _record(path: Path) -> Path:
    return path.with_suffix(".json")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prepare(raw: Array, sequences: int, window: int, seed: int) -> Data:
    """Normalise, take the first `sequences`, a random window of each, and the first 80 % of them to train.

    A dimension is normalised over all of `raw` as in the public code: minus its minimum, divided by its maximum (and
    not by the difference), so that the result is not within [0, 1].
    """
    flat = torch.from_numpy(raw).flatten(0, 1)
    low, scale = flat.min(0).values, flat.max(0).values
    scale = torch.where(scale == 0, 1.0, scale)
    steps = raw.shape[1]
    starts = torch.from_numpy(
        np.random.default_rng((seed, sequences)).integers(0, steps - window + 1, sequences)
    )
    index = starts[:, None] + torch.arange(window)
    windows = (torch.from_numpy(raw)[torch.arange(sequences)[:, None], index] - low) / scale
    part = int(sequences * TRAIN_PART)
    return Data(windows[:part], windows[part:], torch.arange(window) / steps, low, scale)


def seen(count: int, window: int, fraction: float, generator: torch.Generator | None = None) -> Tensor:
    """`(count, window)` bools: which points of each sequence are seen, `int(window * fraction)` of each."""
    shuffled = torch.rand(count, window, generator=generator).argsort(1)
    return shuffled < int(window * fraction)
