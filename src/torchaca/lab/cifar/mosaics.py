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

from .kinds import Images


def meta(path: Path) -> dict[str, Any]:
    """The content of `meta.json`."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("meta.json"))


def first(path: Path, split: str, count: int) -> Images:
    """The first `count` images of a split, or all where there are fewer, from as many parts as it takes."""
    about = meta(path)
    parts, found = [], 0
    for part in _parts(path, split, about):
        parts.append(part)
        found += len(part)
        if found >= count:
            break
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
    side, columns = about["tile"], about["columns"]
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if name.startswith(f"{split}_")):
            mosaic = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            tiles = mosaic.reshape(-1, side, columns, side, 3).swapaxes(1, 2)
            yield tiles.reshape(-1, side, side, 3)
