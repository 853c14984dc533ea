"""CIFAR-10 test images from the official archive or from mosaics of the same images.

Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The official archive (python version) is
`cifar-10-python.tar.gz`, unpacked `cifar-10-batches-py`. Mosaics are a zip with `meta.json` and images of 32 x 32
tiles, `columns` in a row.
"""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .experiment import UsageError

PLACES = (
    "data/cifar-10-batches-py",
    "data/cifar-10-python.tar.gz",
    "data/cifar10.zip",
    "data/cifar10_small.zip",
)
BATCH = "cifar-10-batches-py/test_batch"
DOWNLOAD = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"

Images = NDArray[np.uint8]


def find(data: str | None) -> Path:
    """Where the images are: `data`, or the first of `PLACES` that exists.

    Raises
    ------
    UsageError
        Where there is nothing.
    """
    if data is None:
        for place in map(Path, PLACES):
            if place.exists():
                return place
        raise UsageError(
            f"no CIFAR-10 images: none of {', '.join(PLACES)} exists. Give their place with --data PATH, or "
            f"download {DOWNLOAD} into data/"
        )
    if not Path(data).exists():
        raise UsageError(
            f"--data {data}: there is no such file or folder; the official archive is at {DOWNLOAD}"
        )
    return Path(data)


def first_images(path: Path, count: int) -> Images:
    """The first `count` test images, `(count, 32, 32, 3)`.

    Raises
    ------
    UsageError
        Where the file holds no CIFAR-10, or too few images.
    """
    try:
        images = _mosaics(path, count) if path.suffix == ".zip" else _official(path)
    except (
        OSError,
        KeyError,
        ValueError,
        zipfile.BadZipFile,
        tarfile.TarError,
        pickle.UnpicklingError,
    ) as error:
        raise UsageError(
            f"{path} does not read as CIFAR-10 ({error}): neither the official python archive nor mosaics in a zip"
        ) from error
    if len(images) < count:
        raise UsageError(f"{path} has {len(images)} test images, {count} are wanted")
    return images[:count]


def _mosaics(path: Path, count: int) -> Images:
    """All tiles of as many parts as it takes."""
    tiles: list[Images] = []
    with zipfile.ZipFile(path) as archive:
        meta = json.loads(archive.read("meta.json"))
        side, columns = meta["tile"], meta["columns"]
        for part in sorted(name for name in archive.namelist() if name.startswith("test_")):
            mosaic = np.asarray(Image.open(io.BytesIO(archive.read(part))).convert("RGB"))
            tiles += list(
                mosaic.reshape(-1, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
            )
            if len(tiles) >= count:
                break
        return np.stack(tiles)[: meta["count"]["test"]]


def _official(path: Path) -> Images:
    if path.is_dir():
        content = (path / Path(BATCH).name).read_bytes()
    else:
        with tarfile.open(path) as archive:
            file = archive.extractfile(BATCH)
            content = file.read() if file else b""
    data = _Arrays(io.BytesIO(content), encoding="bytes").load()[b"data"]
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays in plain containers, and runs nothing else that a pickle may ask for."""

    def find_class(self, module: str, name: str) -> object:
        if module.partition(".")[0] == "numpy" and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
            "_frombuffer",
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
