"""`torchaca run conv-reconstruct`, and the reader of its images."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from lab_helpers import metrics, mosaic, run, summary

from torchaca.lab.cifar import CIFAR10, find, first_images
from torchaca.lab.conv_reconstruct import flow
from torchaca.lab.conv_reconstruct.flow import Flow, Settings, there_and_back
from torchaca.lab.conv_reconstruct.plots import plot_errors, plot_images
from torchaca.lab.experiment import UsageError


def official(path, images):
    content = pickle.dumps({b"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1)})
    info = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    info.size = len(content)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(info, io.BytesIO(content))


def test_mosaics_and_the_official_archive_hold_the_same_images(tmp_path):
    images = mosaic(tmp_path / "small.zip")
    official(tmp_path / "cifar-10-python.tar.gz", images)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    for name in ("small.zip", "cifar-10-python.tar.gz", "cifar-10-batches-py"):
        assert np.array_equal(first_images(tmp_path / name, 3), images[:3])


def test_the_usual_places_are_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r"no CIFAR-10 images: none of data/.*--data PATH, or download https"
    ):
        find(None)
    (tmp_path / "data").mkdir()
    mosaic(tmp_path / CIFAR10.places[-1])
    assert str(find(None)) == CIFAR10.places[-1]


def test_a_pickle_runs_nothing(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": print}))
    with pytest.raises(UsageError, match=r"it asks for builtins\.print"):
        first_images(folder, 1)


def test_other_files_are_refused(tmp_path):
    mosaic(tmp_path / "small.zip")
    with pytest.raises(UsageError, match="has 4 test images, 5 are wanted"):
        first_images(tmp_path / "small.zip", 5)
    (tmp_path / "thesis.zip").write_bytes(b"no zip")
    with pytest.raises(UsageError, match="does not read as CIFAR-10"):
        first_images(tmp_path / "thesis.zip", 1)


def test_without_images_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("conv-reconstruct") == 2
    assert "no CIFAR-10 images" in capsys.readouterr().err
    assert run("conv-reconstruct", "--data", "nowhere.zip") == 2
    assert "--data nowhere.zip: there is no such file or folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_right_hand_side_is_a_convolution():
    f = Flow(Settings(), "relu", 0)
    z = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    z[0, 1, 5, 7] = 1.0
    expected = torch.relu(f.kernel[:, 1].flip(1, 2))
    assert torch.equal(f(torch.tensor(0.0), z)[0, :, 4:7, 6:9], expected)


def test_a_tight_solve_returns():
    z0 = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    trip = there_and_back(Settings(rtol=1e-11, atol=1e-12), z0, "tanh", 0, 1.0)
    torch.testing.assert_close(trip.reverse, z0, rtol=0, atol=1e-8)
    assert torch.equal(trip.recorded, z0)


def test_from_command_to_page(small, tmp_path, capsys):
    mosaic(tmp_path / "small.zip")
    folder = tmp_path / "run"
    args = ("--data", tmp_path / "small.zip", "--out", folder, "--docs", tmp_path / "docs")
    assert run("conv-reconstruct", *args) == 0
    found = {(line["activation"], line["T"]): line for line in metrics(folder)}
    assert found["relu", 3.0]["reverse"] > 10 * found["relu", 1.0]["reverse"]
    assert found["relu", 3.0]["reverse"] > 10 * found["linear", 3.0]["reverse"]
    assert all(line["recorded"] == 0 for line in found.values())
    assert "The first 2 test images of small.zip" in capsys.readouterr().out
    assert summary(folder)["images"] == "2 of small.zip"
    published = {path.name for path in (tmp_path / "docs" / "conv-reconstruct").iterdir()}
    plots = {"errors.png", "images-T1.png", "images-T3.png"}
    assert published == {"summary.md", "summary.json", "config.json", *plots}


def test_a_solve_that_fails_is_counted(small, tmp_path, monkeypatch, capsys):
    mosaic(tmp_path / "small.zip")
    original = flow.there_and_back

    def short(settings, *args):
        return original(flow.Settings(max_steps=5), *args)

    monkeypatch.setattr(flow, "there_and_back", short)
    assert run("conv-reconstruct", "--data", tmp_path / "small.zip", "--out", tmp_path / "run") == 0
    assert {line["failed"] for line in metrics(tmp_path / "run")} == {"max-steps"}
    assert "relu         3               -" in capsys.readouterr().out


def test_the_plots(tmp_path):
    settings = Settings(activations=("relu",))
    z0 = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    plot_images(there_and_back(settings, z0, "relu", 0, 0.5), 0.5, tmp_path / "images.png")
    line = {"activation": "relu", "T": 1.0, "reverse": 0.1, "recorded": 0.0}
    plot_errors(
        {"a": line, "b": {**line, "T": 2.0}, "c": {"failed": "blow-up"}}, settings, tmp_path / "errors.png"
    )
    for name in ("images.png", "errors.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
