"""The official archive of either data set, packed or unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..experiment import UsageError
from ..files import make, rename, unfinished
from .kinds import Images, Kind

CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
UNPACKED = 1 << 28  # bytes; either archive has less than 190 million
PATIENCE = 30.0  # seconds without an answer


def first(path: Path, kind: Kind, count: int) -> Images:
    """The first `count` test images, without a look at the checksums."""
    (name,) = kind.test
    return _images(_batch(_content(path, kind, name)))[:count]


def whole(path: Path, kind: Kind, files: Mapping[str, str]) -> tuple[Images, np.ndarray]:
    """The images and labels of these files.

    Raises
    ------
    ValueError
        Where a checksum differs.
    """
    if path.is_file():
        check(path, kind)
    images, labels = [], []
    for name, md5 in files.items():
        content = _content(path, kind, name)
        if path.is_dir() and _md5(io.BytesIO(content)) != md5:
            raise ValueError(f"the checksum of {name} is not that of the official file")
        batch = _batch(content)
        images.append(_images(batch))
        labels.append(np.asarray(batch[kind.labels], dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def check(path: Path, kind: Kind) -> None:
    """Refuse a packed archive that is not the official one.

    Raises
    ------
    ValueError
    """
    with path.open("rb") as file:
        found = _md5(file)
    if found != kind.md5:
        raise ValueError(
            f"its MD5 sum is {found}, that of {kind.archive} {kind.md5}: cut short, or another file"
        )


def download(kind: Kind, folder: Path) -> Path:
    """Fetch the official archive into `folder`, unless it is there; it has its name only once it is whole.

    Raises
    ------
    UsageError
        Without a network, or where the checksum differs.
    """
    target = folder / kind.archive
    beside = unfinished(target)
    try:
        make(folder)
        with urllib.request.urlopen(kind.url, timeout=PATIENCE) as answer, beside.open("wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        check(beside, kind)
        rename(beside, target)
    except (OSError, ValueError) as error:
        beside.unlink(missing_ok=True)
        raise UsageError(
            f"{kind.url} could not be downloaded ({error}): give the place of the images with --data PATH"
        ) from error
    return target


def _content(path: Path, kind: Kind, name: str) -> bytes:
    if path.is_dir():
        return (path / name).read_bytes()
    with (
        _opened(path) as packed,
        tarfile.open(fileobj=_Bounded(packed, UNPACKED), mode="r|") as archive,
    ):
        for member in archive:
            if member.name == f"{kind.folder}/{name}" and member.isreg():
                file = archive.extractfile(member)
                return file.read() if file else b""
    raise ValueError(f"there is no {kind.folder}/{name} in it")


def _opened(path: Path) -> gzip.GzipFile | BinaryIO:
    """The archive's file, unpacked while it is read where it is packed."""
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    return gzip.open(path) if packed else path.open("rb")


def _batch(content: bytes) -> dict[bytes, Any]:
    return _Arrays(io.BytesIO(content), encoding="bytes").load()


def _images(batch: Mapping[bytes, Any]) -> Images:
    pixels = batch[b"data"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
        raise ValueError("it holds no array of bytes for the images")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _md5(file: BinaryIO) -> str:
    found = hashlib.md5(usedforsecurity=False)
    while chunk := file.read(CHUNK):
        found.update(chunk)
    return found.hexdigest()


class _Bounded(io.RawIOBase):
    """A packed file of which only so many bytes are unpacked."""

    def __init__(self, packed: gzip.GzipFile | BinaryIO, limit: int) -> None:
        self.packed, self.left, self.limit = packed, limit, limit

    def read(self, size: int = -1) -> bytes:
        content = self.packed.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {self.limit:,} bytes")
        return content


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
