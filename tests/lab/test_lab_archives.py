"""Data that were changed, cut short or made up: one sentence, nothing unpacked beyond its size and nothing run."""

import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from lab_helpers import cifar_mosaics
from PIL import Image

from torchaca.lab.cifar import CIFAR10, find, first_images, load, mosaics, official
from torchaca.lab.experiment import UsageError
from torchaca.lab.hopper import data

FOLDER = CIFAR10.folder
ZEROS = bytes(1 << 16)


@pytest.fixture(autouse=True)
def forget():
    load.cache_clear()


def picture(width=320, height=32, kind="PNG"):
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, kind)
    return content.getvalue()


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def meta(**changes):
    about = {"classes": [*"0123456789"], "tile": 32, "columns": 10, "encoding": "PNG"}
    about |= {"count": {"train": 10, "test": 10}, "sha256": {"train": "", "test": ""}}
    return {name: value for name, value in {**about, **changes}.items() if value is not None}


def mosaic_zip(about, **members):
    pictures = {"train_00.png": picture(), "test_00.png": picture(), **members}
    return lambda path: zipped(
        path, {"meta.json": about if isinstance(about, bytes) else json.dumps(about), **pictures}
    )


def bomb(path):
    """`meta.json` of 64 KiB times 4096, in a file of a few KiB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("meta.json", "w") as file:
        for _ in range(512):
            file.write(ZEROS)


def lying(path):
    """A `meta.json` that unpacks to more than the archive says."""
    mosaic_zip(meta())(path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    path.write_bytes(content)


MOSAICS = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(1000)),
    "no members": lambda path: zipped(path, {}),
    "meta.json of gigabytes": bomb,
    "meta.json of another size": lying,
    "meta.json is garbage": mosaic_zip(b"\xff{"),
    "meta.json is nested": mosaic_zip(b"[" * 100_000),
    "meta.json is a list": mosaic_zip([]),
    **{f"no {name}": mosaic_zip(meta(**{name: None})) for name in ("classes", "tile", "columns", "count", "sha256")},
    "columns = 0": mosaic_zip(meta(columns=0)),
    "columns = -1": mosaic_zip(meta(columns=-1)),
    "large tiles": mosaic_zip(meta(tile=1 << 20)),
    "count is text": mosaic_zip(meta(count={"train": "10", "test": "10"})),
    "count is huge": mosaic_zip(meta(count={"train": 1 << 40, "test": 10})),
    "too few images": mosaic_zip(meta(count={"train": 20, "test": 20})),
    "no picture": mosaic_zip(meta(), **{"train_00.png": b"no picture", "test_00.png": b"no picture"}),
    "torn picture": mosaic_zip(meta(), **{"train_00.png": picture()[:60], "test_00.png": picture()[:60]}),
    "wide picture": mosaic_zip(meta(), **{"train_00.png": picture(640), "test_00.png": picture(640)}),
    "odd picture": mosaic_zip(meta(), **{"train_00.png": picture(320, 33), "test_00.png": picture(320, 33)}),
    "another format": mosaic_zip(meta(), **{"train_00.png": picture(kind="EPS"), "test_00.png": picture(kind="EPS")}),
}  # fmt: skip


@pytest.mark.parametrize("kind", MOSAICS)
def test_zips_that_are_no_mosaics(kind, tmp_path):
    path = tmp_path / "images.zip"
    MOSAICS[kind](path)
    with pytest.raises(UsageError, match=r"images\.zip does not read as CIFAR-10 \(.+\)") as refused:
        load(path, CIFAR10)
    assert "\n" not in str(refused.value)
    if kind not in {"no classes", "no sha256"}:  # which are for training
        with pytest.raises(UsageError, match=r"images\.zip does not read as CIFAR-10 \(.+\)"):
            first_images(path, 20)


def test_a_picture_of_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaics, "PICTURE_BYTES", 1000)
    cifar_mosaics(tmp_path / "images.zip", CIFAR10, 10, 10)
    with pytest.raises(UsageError, match=r"train_00\.png in it unpacks to [\d,]+ bytes, more than 1,000"):
        load(tmp_path / "images.zip", CIFAR10)


def test_a_picture_of_many_pixels_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(mosaics, "IMAGES", 10)
    tall = picture(320, 64)
    mosaic_zip(meta(), **{"train_00.png": tall, "test_00.png": tall})(tmp_path / "images.zip")
    with pytest.raises(UsageError, match="has 320 x 64 pixels"):
        load(tmp_path / "images.zip", CIFAR10)


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "images.zip")
    with pytest.raises(UsageError, match="is no file or folder"):
        find(str(tmp_path / "images.zip"))


def tar(path, *members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), name
            archive.addfile(info, io.BytesIO(content))


BATCH = f"{FOLDER}/test_batch"
PIXELS = {b"data": np.zeros((10, 3072), dtype=np.uint8)}


def pickled(content):
    return lambda path: tar(path, (BATCH, pickle.dumps(content), tarfile.REGTYPE))


def cut(path):
    pickled({b"data": np.random.default_rng(0).integers(0, 255, (10, 3072), dtype=np.uint8)})(path)
    path.write_bytes(path.read_bytes()[:-5000])


def huge_header(path):
    """A header that says how the next member is called, in gigabytes."""
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    with gzip.open(path, "w") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            file.write(ZEROS)


TARS = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(1000)),
    "garbage behind the mark of gzip": lambda path: path.write_bytes(b"\x1f\x8b" + os.urandom(1000)),
    "cut short": cut,
    "without the file": lambda path: tar(path, ("a", b"", tarfile.REGTYPE)),
    "outside of the folder": lambda path: tar(path, ("../test_batch", pickle.dumps(PIXELS), tarfile.REGTYPE)),
    "link to itself": lambda path: tar(path, (BATCH, b"", tarfile.SYMTYPE)),
    "a folder": lambda path: tar(path, (BATCH, b"", tarfile.DIRTYPE)),
    "no pickle": lambda path: tar(path, (BATCH, b"no pickle", tarfile.REGTYPE)),
    "half a pickle": lambda path: tar(path, (BATCH, pickle.dumps(PIXELS)[:100], tarfile.REGTYPE)),
    "a planted pickle": pickled({b"data": print}),
    "a pickle of a number": pickled(3),
    "a pickle of lists": pickled({b"data": [1, 2]}),
    "other pixels": pickled({b"data": np.zeros((10, 3072))}),
    "other sizes": pickled({b"data": np.zeros((10, 7), dtype=np.uint8)}),
    "a header of gigabytes": huge_header,
}


@pytest.mark.parametrize("kind", TARS)
def test_tars_that_are_no_archives_of_images(kind, tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-python.tar.gz"
    monkeypatch.setattr(official, "UNPACKED", 1 << 20)
    TARS[kind](path)
    for read in (lambda: first_images(path, 1), lambda: load(path, CIFAR10)):
        with pytest.raises(UsageError, match=r"does not read as CIFAR-10 \(.+\)") as refused:
            read()
        assert "\n" not in str(refused.value)


def test_an_archive_of_gigabytes_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-python.tar.gz"
    tar(path, ("large", ZEROS * 4, tarfile.REGTYPE), (BATCH, pickle.dumps(PIXELS), tarfile.REGTYPE))
    assert len(first_images(path, 10)) == 10
    monkeypatch.setattr(official, "UNPACKED", 2 * len(ZEROS))
    with pytest.raises(UsageError, match=r"it unpacks to more than 131,072 bytes"):
        first_images(path, 10)


def trajectories(path, save):
    """A file with the record that `torchaca` writes beside its own."""
    with path.open("wb") as file:
        save(file)
    record = {"recipe": data.RECIPE, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(record))


NUMBERS = np.ones((2, *data.SHAPE), dtype=np.float32)


def half(file):
    whole = io.BytesIO()
    np.save(whole, NUMBERS)
    file.write(whole.getvalue()[:-100])


def claiming(file):
    """A header of more numbers than there is memory."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 45, *data.SHAPE)}
    )


HOPPERS = {
    "garbage": lambda file: file.write(b"garbage"),
    "empty": lambda file: None,
    "cut short": half,
    "more than there is": claiming,
    "objects": lambda file: np.save(file, np.array([print]), allow_pickle=True),
    "planted pickle": lambda file: file.write(pickle.dumps(print)),
    "no arrays": np.savez,
    "gigabytes": lambda file: np.savez_compressed(file, NUMBERS),
}


@pytest.mark.parametrize("kind", HOPPERS)
def test_files_that_are_no_trajectories(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "UNPACKED", 1000)
    trajectories(tmp_path / "hopper.npy", HOPPERS[kind])
    with pytest.raises(UsageError, match=r"hopper\.npy does not read as trajectories: .+") as refused:
        data.trajectories(str(tmp_path / "hopper.npy"))
    assert "\n" not in str(refused.value)
    assert ("unpacks to" in str(refused.value)) == (kind == "gigabytes")
