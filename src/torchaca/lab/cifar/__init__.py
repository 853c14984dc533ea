"""CIFAR-10 and CIFAR-100, from the official archives or from mosaics of the same images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..experiment import UsageError
from ..files import first_line
from . import mosaics, official
from .kinds import CIFAR10, CIFAR100, Images, Kind

__all__ = ["CIFAR10", "CIFAR100", "KINDS", "Data", "Images", "Kind", "find", "first_images", "load", "place"]

KINDS = {kind.name: kind for kind in (CIFAR10, CIFAR100)}


@dataclass(frozen=True)
class Data:
    """All images `(n, 32, 32, 3)` of a data set and their classes `(n,)`.

    `standard` is false where the pixels are not those of the data set: results are then not its results.
    """

    kind: Kind
    source: str
    train: Images
    train_labels: np.ndarray
    test: Images
    test_labels: np.ndarray
    standard: bool


def find(data: str | None, kind: Kind = CIFAR10) -> Path:
    """Where the images are: `data`, or the first of the usual places that exists.

    Raises
    ------
    UsageError
        Where there is nothing.
    """
    if data is None:
        for place in map(Path, kind.places):
            if place.exists():
                return place
        raise UsageError(
            f"no {kind.title} images: none of {', '.join(kind.places)} exists. Give their place with --data PATH, "
            f"or download {kind.url} into data/"
        )
    if not Path(data).exists():
        raise UsageError(
            f"--data {data}: there is no such file or folder; the official archive is at {kind.url}"
        )
    if not (Path(data).is_file() or Path(data).is_dir()):
        raise UsageError(f"--data {data} is no file or folder")
    return Path(data)


def place(data: str | None, kind: Kind, *, download: bool) -> Path:
    """As `find`; where there is nothing, the official archive is fetched into data/, if `download` allows it.

    Raises
    ------
    UsageError
    """
    try:
        return find(data, kind)
    except UsageError as error:
        if data is not None:
            raise
        if not download:
            raise UsageError(f"{error}; --download does that") from error
        return official.download(kind, Path("data"))


def first_images(path: Path, count: int) -> Images:
    """The first `count` CIFAR-10 test images, `(count, 32, 32, 3)`.

    Raises
    ------
    UsageError
        Where the file holds no CIFAR-10, or too few images.
    """
    with _told(path, CIFAR10):
        images = mosaics.first(path, "test", count) if _is_zip(path) else official.first(path, CIFAR10, count)
    if len(images) < count:
        raise UsageError(f"{path} has {len(images)} test images, {count} are wanted")
    return images


@lru_cache(maxsize=1)  # a command checks its data before it opens a run folder, and uses them afterwards
def load(path: Path, kind: Kind) -> Data:
    """All images and labels, once every checksum is right.

    Raises
    ------
    UsageError
        Where the file is no such data set: cut short, another file, another number of classes.
    """
    with _told(path, kind):
        return _from_mosaics(path, kind) if _is_zip(path) else _from_official(path, kind)


def _from_mosaics(path: Path, kind: Kind) -> Data:
    about = mosaics.meta(path)
    classes = len(about["classes"])
    if classes != kind.classes:
        raise UsageError(f"{path} has {classes} classes, {kind.title} has {kind.classes}")
    train, test = (mosaics.whole(path, split) for split in ("train", "test"))
    labels = [np.arange(len(images)) % classes for images in (train, test)]
    lossless = "jpeg" not in about.get("encoding", "").lower()
    return Data(kind, path.name, train, labels[0], test, labels[1], lossless)


def _from_official(path: Path, kind: Kind) -> Data:
    train, test = (official.whole(path, kind, files) for files in (kind.train, kind.test))
    for _, labels in (train, test):
        classes = len(np.unique(labels))
        if classes != kind.classes:
            raise UsageError(f"{path} has {classes} classes, {kind.title} has {kind.classes}")
    return Data(kind, path.name, *train, *test, True)


@contextmanager
def _told(path: Path, kind: Kind) -> Iterator[None]:
    """Whatever goes wrong in a reader, in one sentence: those of zip, tar, pickle and PNG raise almost anything."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"{path} does not read as {kind.title} ({first_line(error)}): neither the official python archive nor "
            "mosaics in a zip"
        ) from error


def _is_zip(path: Path) -> bool:
    return path.suffix == ".zip"
