"""Files that a power cut leaves whole: content first, then the name, then the folder's own list of names."""

import errno
import io
import os
import stat
import urllib.request
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
import torch
from lab_helpers import run, small_toy

from torchaca.lab import files
from torchaca.lab import run as runs
from torchaca.lab.cifar import CIFAR10, official
from torchaca.lab.hopper import data
from torchaca.lab.plots import figure, save
from torchaca.lab.report import Report, publish


def inode(path):
    found = os.stat(path)
    return found.st_dev, found.st_ino


@pytest.fixture
def disk(monkeypatch):
    """Calls that bring something to the disk, in their order: `("fsync", inode)` and `("rename", file, folder)`."""
    calls, fsync, rename = [], os.fsync, os.replace

    def watched_fsync(file):
        calls.append(("fsync", inode(file)))
        fsync(file)

    def watched_rename(old, new):
        calls.append(("rename", inode(old), inode(os.path.dirname(new) or ".")))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_rename)
    return calls


def assert_durable(calls):
    """Each file is on the disk before its rename, and the folder after it."""
    renames = [i for i, call in enumerate(calls) if call[0] == "rename"]
    assert renames
    for i in renames:
        _, file, folder = calls[i]
        assert ("fsync", file) in calls[:i]
        assert ("fsync", folder) in calls[i:]


def download(folder, monkeypatch):
    content = b"an archive"
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(content))
    official.download(replace(CIFAR10, md5=md5(content).hexdigest()), folder)


def publish_a_run(folder, monkeypatch):
    made, _ = runs.start(small_toy(), {}, folder / "run")
    for name in ("summary.md", "summary.json", "a.png"):
        (made.folder / name).touch()
    publish(made, small_toy(), Report([], {"a.png": ""}, {}), folder / "docs")


def save_parts(folder, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 1000)
    files.save_state(folder / "row.pt", {"x": torch.ones(1000)})


WRITERS = {
    "file": lambda folder, monkeypatch: files.write(folder / "file", b"content"),
    "checkpoint": lambda folder, monkeypatch: files.save_state(folder / "row.pt", {"x": torch.ones(3)}),
    "checkpoint in parts": save_parts,
    "run": lambda folder, monkeypatch: run("toy", "--out", folder / "runs" / "run"),
    "published": publish_a_run,
    "plot": lambda folder, monkeypatch: save(figure(1, 1), folder / "plot.png"),
    "trajectories": lambda folder, monkeypatch: data._keep(folder / "data" / "h.npy", np.ones((2, 3, 4))),
    "download": download,
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_names_survive_a_power_cut(writer, disk, small, tmp_path, monkeypatch):
    writer(tmp_path, monkeypatch)
    assert_durable(disk)
    assert not list(tmp_path.rglob("*.tmp"))


def test_folders_survive_a_power_cut(disk, tmp_path):
    files.make(tmp_path / "a" / "b")
    for folder in (tmp_path, tmp_path / "a"):
        assert ("fsync", inode(folder)) in disk


def test_the_first_line_of_metrics_survives_a_power_cut(disk, tmp_path):
    made, _ = runs.start(small_toy(), {}, tmp_path / "run")
    disk.clear()
    made.log({"row": "a"})
    assert disk == [("fsync", inode(made.folder / "metrics.jsonl")), ("fsync", inode(made.folder))]
    made.log({"row": "b"})
    assert disk[2:] == [("fsync", inode(made.folder / "metrics.jsonl"))]


@pytest.mark.parametrize("number", files.UNSYNCED, ids=errno.errorcode.get)
def test_file_systems_that_sync_no_folder_are_no_error(number, tmp_path, monkeypatch):
    fsync = os.fsync

    def no_folders(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(file)

    monkeypatch.setattr(os, "fsync", no_folders)
    files.write(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_folder_that_does_not_come_to_the_disk_is_an_error(tmp_path, monkeypatch):
    def broken(file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.sync(tmp_path)


@pytest.mark.parametrize("out", [".", "/", "file/below"])
def test_a_name_that_is_no_file_s_is_an_os_error(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"\[Errno"):
        files.write(type(tmp_path)(out), b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
