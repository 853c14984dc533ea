"""CIFAR images for training: archives, checksums, and what is made of them on the device."""

import io
import pickle
import tarfile
import urllib.error
import urllib.request
from dataclasses import replace
from hashlib import md5

import numpy as np
import pytest
import torch
from lab_helpers import cifar_mosaics

from torchaca.lab import cifar
from torchaca.lab.cifar import CIFAR10, CIFAR100, load, official
from torchaca.lab.cifar_node.images import Normalised, Samples, crop_and_flip, draws
from torchaca.lab.experiment import UsageError


@pytest.fixture(autouse=True)
def forget():
    """What one test has loaded is not the next one's."""
    load.cache_clear()


def unpacked(folder, classes=10):
    """An official archive of a few images, unpacked, and the kind that it is."""
    folder.mkdir(exist_ok=True)
    rng, sums = np.random.default_rng(0), {}
    for name in (*CIFAR10.train, *CIFAR10.test):
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = pickle.dumps({b"data": pixels, b"labels": [i % classes for i in range(20)]})
        (folder / name).write_bytes(content)
        sums[name] = md5(content).hexdigest()
    train = {name: sums[name] for name in CIFAR10.train}
    return replace(CIFAR10, train=train, test={"test_batch": sums["test_batch"]})


def packed(folder, kind):
    """The same as one file."""
    path = folder.parent / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, kind.folder)
    return path, replace(kind, md5=md5(path.read_bytes()).hexdigest())


def test_official_archive_packed_and_unpacked(tmp_path):
    kind = unpacked(tmp_path / "batches")
    path, packed_kind = packed(tmp_path / "batches", kind)
    one, two = load(tmp_path / "batches", kind), load(path, packed_kind)
    assert one.train.shape == (100, 32, 32, 3)
    assert one.test.shape == (20, 32, 32, 3)
    assert one.standard
    for name in ("train", "train_labels", "test", "test_labels"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
    assert one.train_labels[:12].tolist() == [*range(10), 0, 1]


def test_truncated_and_changed_archives_are_refused(tmp_path):
    kind = unpacked(tmp_path / "batches")
    path, packed_kind = packed(tmp_path / "batches", kind)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"its MD5 sum is .*: cut short, or another file"):
        load(path, packed_kind)
    (tmp_path / "batches" / "data_batch_2").write_bytes(b"something else")
    with pytest.raises(UsageError, match="the checksum of data_batch_2 is not that of the official file"):
        load(tmp_path / "batches", kind)
    (tmp_path / "batches" / "data_batch_2").unlink()
    with pytest.raises(UsageError, match="does not read as CIFAR-10"):
        load(tmp_path / "batches", kind)


def test_mosaics(tmp_path):
    train, test = cifar_mosaics(tmp_path / "images.zip", CIFAR10, 30, 10)
    found = load(tmp_path / "images.zip", CIFAR10)
    assert np.array_equal(found.train, train)
    assert np.array_equal(found.test, test)
    assert found.train_labels.tolist() == [*range(10)] * 3
    assert found.standard


def test_mosaics_with_loss_say_so(tmp_path):
    cifar_mosaics(tmp_path / "images.zip", CIFAR100, 100, 100, encoding="JPEG 4:4:4")
    assert not load(tmp_path / "images.zip", CIFAR100).standard


def test_mosaics_with_other_pixels_or_classes_are_refused(tmp_path):
    path = tmp_path / "images.zip"
    cifar_mosaics(path, CIFAR10, 30, 10, sha256={"train": "0" * 64, "test": "0" * 64})
    with pytest.raises(
        UsageError, match=r"the checksum of its train images is not the one in its meta\.json"
    ):
        load(path, CIFAR10)
    with pytest.raises(UsageError, match=r"has 10 classes, CIFAR-100 has 100"):
        load(path, CIFAR100)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UsageError, match="does not read as CIFAR-10"):
        load(path, CIFAR10)


def test_a_class_that_is_missing_is_refused(tmp_path):
    kind = unpacked(tmp_path / "batches", classes=9)
    with pytest.raises(UsageError, match="has 9 classes, CIFAR-10 has 10"):
        load(tmp_path / "batches", kind)


def answering(monkeypatch, content):
    """The network answers every request with this, or with an error."""

    def answer(url, timeout):
        assert url == CIFAR10.url
        if isinstance(content, Exception):
            raise content
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)


def test_download(tmp_path, monkeypatch):
    content = b"an archive"
    kind = replace(CIFAR10, md5=md5(content).hexdigest())
    answering(monkeypatch, content)
    path = official.download(kind, tmp_path / "data")
    assert path == tmp_path / "data" / "cifar-10-python.tar.gz"
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"half an arch", "its MD5 sum is"), (urllib.error.URLError("no route to host"), "no route to host")],
    ids=["cut short", "no network"],
)
def test_a_failed_download_leaves_nothing(content, said, tmp_path, monkeypatch):
    answering(monkeypatch, content)
    with pytest.raises(UsageError, match=f"could not be downloaded .*{said}.*--data PATH"):
        official.download(CIFAR10, tmp_path)
    assert not list(tmp_path.iterdir())


def test_download_only_where_there_is_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = b"an archive"
    kind = replace(CIFAR10, md5=md5(content).hexdigest())
    answering(monkeypatch, content)
    assert str(cifar.place(None, kind, download=True)) == "data/cifar-10-python.tar.gz"
    answering(monkeypatch, urllib.error.URLError("asked twice"))
    assert str(cifar.place(None, kind, download=True)) == "data/cifar-10-python.tar.gz"
    with pytest.raises(UsageError, match="--download"):
        cifar.place(None, CIFAR100, download=False)


def pictures(count=5, side=8):
    return torch.randint(1, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()


def test_crops_are_those_of_a_loop():
    images = pictures()
    drawn = draws(3, 1, len(images), 8)
    found = crop_and_flip(images, drawn)
    for image, (down, right, mirrored), got in zip(images, drawn.tolist(), found, strict=True):
        frame = torch.zeros(3, 10, 10, dtype=torch.uint8)
        frame[:, 1:9, 1:9] = image
        want = frame[:, down : down + 8, right : right + 8]
        assert torch.equal(got, want.flip(2) if mirrored else want)


def test_draws_are_those_of_seed_and_epoch():
    one = draws(0, 0, 1000, 32)
    assert torch.equal(one, draws(0, 0, 1000, 32))
    assert not torch.equal(one, draws(0, 1, 1000, 32))
    assert not torch.equal(one, draws(1, 0, 1000, 32))
    assert one[:, :2].unique().tolist() == [*range(9)]
    assert 400 < one[:, 2].sum() < 600


def test_samples_and_their_scale():
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    whole, small = (Samples(images, np.arange(6), side) for side in (32, 16))
    got, labels, indices = small[[4, 1]]
    assert labels.tolist() == indices.tolist() == [4, 1]
    tile = images[4, :2, :2].reshape(4, 3).mean(0)
    assert np.abs(got[0, :, 0, 0].numpy() - tile).max() <= 0.5
    pixels, _, _ = whole[[0]]
    want = (images[0, 3, 5] / 255 - CIFAR10.mean) / CIFAR10.std
    torch.testing.assert_close(
        Normalised(CIFAR10)(pixels)[0, :, 3, 5], torch.tensor(want, dtype=torch.float32), rtol=1e-5, atol=1e-6
    )
