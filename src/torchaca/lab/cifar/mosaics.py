"""Images as mosaics: a zip with `meta.json` and pictures of 32 x 32 tiles, `columns` in a row.

The label of image i is i modulo the number of classes. `meta.json` has the SHA-256 sums of the decoded pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import expect
from .kinds import Images

TILE = 32
META_BYTES, PICTURE_BYTES = 1 << 20, 1 << 28
"""The most that `meta.json` and a picture may unpack to."""
IMAGES = 100_000
"""The most images of a split, and of a picture: CIFAR has 50,000."""
FORMATS = ("PNG", "JPEG", "WEBP")


def meta(path: Path) -> dict[str, Any]:
    """The content of `meta.json`.

    Raises
    ------
    ValueError
        When it is not of mosaics.
    """
    with zipfile.ZipFile(path) as archive:
        about = json.loads(_unpacked(archive, "meta.json", META_BYTES))
    expect(about, {"tile": int, "columns": int, "count": dict})
    if about["tile"] != TILE:
        raise ValueError(f"its tiles have {about['tile']} pixels a side, not {TILE}")
    for name, number in {"columns": about["columns"], **about["count"]}.items():
        if not isinstance(number, int) or not 0 < number <= IMAGES:
            raise ValueError(f"its meta.json says {name} = {number}")
    return about


def _unpacked(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member of a zip, which says what it unpacks to and is not unpacked beyond that.

    Raises
    ------
    ValueError
        When that is too large.
    """
    size = archive.getinfo(name).file_size
    if size > limit:
        raise ValueError(f"{name} in it unpacks to {size:,} bytes, more than {limit:,}")
    return archive.read(name)


def first(path: Path, split: str, count: int) -> Images:
    """The first `count` images of a split, or all where there are fewer, from as many parts as it takes."""
    about = meta(path)
    parts, found = [], 0
    for part in _parts(path, split, about):
        parts.append(part)
        found += len(part)
        if found >= count:
            break
    if found < min(count, about["count"][split]):
        raise ValueError(f"it has {found} {split} images, and its meta.json says {about['count'][split]}")
    return np.concatenate(parts)[: min(count, about["count"][split])]


def whole(path: Path, split: str) -> Images:
    """All images of a split.

    Raises
    ------
    ValueError
        Where the checksum differs.
    """
    about = meta(path)
    images = first(path, split, about["count"][split])
    if hashlib.sha256(images.tobytes()).hexdigest() != about["sha256"][split]:
        raise ValueError(f"the checksum of its {split} images is not the one in its meta.json")
    return images


def _parts(path: Path, split: str, about: Mapping[str, Any]) -> Iterator[Images]:
    side, columns = TILE, about["columns"]
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if name.startswith(f"{split}_")):
            content = _unpacked(archive, name, PICTURE_BYTES)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            if picture.width != side * columns or picture.height > side * IMAGES // columns:
                raise ValueError(f"{name} in it has {picture.width} x {picture.height} pixels")
            mosaic = np.asarray(picture.convert("RGB"))
            tiles = mosaic.reshape(-1, side, columns, side, 3).swapaxes(1, 2)
            yield tiles.reshape(-1, side, side, 3)
