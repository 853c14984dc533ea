"""The run folder: opened once, written whole, resumed as it was."""

import errno
import json
import os

import pytest
import torch
from lab_helpers import small_three_body, small_toy

from torchaca.lab import run as runs
from torchaca.lab.experiment import UsageError


@pytest.fixture
def full_disk(monkeypatch):
    """From now on the disk is full."""

    def fail():
        def fsync(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)

    return fail


def test_the_configuration_is_complete(tmp_path):
    run, settings = runs.start(small_toy(), {"gradient": ["aca"]}, tmp_path / "run")
    config = json.loads((run.folder / "config.json").read_text())
    assert config["settings"]["gradient"] == ["aca"] == list(settings.gradient)
    assert config["settings"]["rtol"] == settings.rtol
    (session,) = config["sessions"]
    assert session["versions"]["torch"] == torch.__version__
    assert session["machine"]["cpu"]
    assert session["machine"]["torch_threads"] == torch.get_num_threads()


def test_the_default_folder_has_name_and_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, _ = runs.start(small_toy(), {}, None)
    assert run.folder.parent.name == "runs"
    assert run.folder.name.startswith("toy-20")


def test_a_folder_in_use_is_refused(tmp_path):
    runs.start(small_toy(), {}, tmp_path / "run")
    with pytest.raises(UsageError, match="--resume"):
        runs.start(small_toy(), {}, tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="not empty"):
        runs.start(small_toy(), {}, tmp_path / "other")


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(UsageError, match="cannot write the run to"):
            runs.start(small_toy(), {}, type(tmp_path)(folder))


def test_a_full_disk_is_refused(tmp_path, full_disk):
    full_disk()
    with pytest.raises(UsageError, match="No space left"):
        runs.start(small_toy(), {}, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_failed_checkpoint_leaves_the_old_one(tmp_path, full_disk):
    run, _ = runs.start(small_toy(), {}, tmp_path / "run")
    run.save("aca seed 0", {"epochs": 1})
    full_disk()
    with pytest.raises(OSError, match="No space left"):
        run.save("aca seed 0", {"epochs": 2})
    assert run.load("aca seed 0") == {"epochs": 1}
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["aca-seed-0.pt"]


def test_a_torn_last_line_is_cut_off(tmp_path):
    run, _ = runs.start(small_toy(), {}, tmp_path / "run")
    run.log({"row": "a"})
    path = run.folder / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-3])
    run, _ = runs.resume(small_toy(), {}, run.folder)
    assert [line["row"] for line in run.metrics] == ["a"]
    assert path.read_bytes() == whole


def test_the_clock_goes_on(tmp_path):
    run, _ = runs.start(small_toy(), {}, tmp_path / "run")
    run.log({"row": "a"})
    path = run.folder / "metrics.jsonl"
    path.write_text(json.dumps({"row": "a", "elapsed": 1000.0}) + "\n")
    run, _ = runs.resume(small_toy(), {}, run.folder)
    assert 1000 <= run.elapsed() < 1010


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gradient": ["adjoint"]}, r"gradient = \['aca'\], not \['adjoint'\]"),
        ({"seeds": 3}, "seeds = 2, not 3"),
        ({"method": "tsit5"}, "method = dopri5, not tsit5"),
    ],
    ids=["gradient", "seeds", "method"],
)
def test_another_configuration_is_refused(options, said, tmp_path):
    runs.start(small_three_body(), {"gradient": ["aca"]}, tmp_path / "run")
    with pytest.raises(UsageError, match=said):
        runs.resume(small_three_body(), options, tmp_path / "run")


def test_settings_that_the_code_has_changed_are_refused(tmp_path):
    run, _ = runs.start(small_toy(), {}, tmp_path / "run")
    run.config["settings"]["z0"] = 2.0
    (run.folder / "config.json").write_text(json.dumps(run.config))
    with pytest.raises(UsageError, match=r"z0 = 2\.0, not 1\.0"):
        runs.resume(small_toy(), {}, run.folder)


def test_another_experiment_is_refused(tmp_path):
    runs.start(small_toy(), {}, tmp_path / "run")
    with pytest.raises(UsageError, match="a run of toy, not of three-body"):
        runs.resume(small_three_body(), {}, tmp_path / "run")


def test_the_time_limit_may_change(tmp_path):
    runs.start(small_three_body(), {"time_limit": 5.0}, tmp_path / "run")
    _, settings = runs.resume(small_three_body(), {}, tmp_path / "run")
    assert settings.time_limit == 5.0
    _, settings = runs.resume(small_three_body(), {"time_limit": 50.0}, tmp_path / "run")
    assert settings.time_limit == 50.0


def test_changed_packages_are_named(tmp_path, monkeypatch):
    runs.start(small_toy(), {}, tmp_path / "run")
    new = {**runs.versions(), "torch": "99.0"}
    monkeypatch.setattr(runs, "versions", lambda: new)
    run, _ = runs.resume(small_toy(), {}, tmp_path / "run")
    assert runs.changed_versions(run.config) == [f"started with torch {torch.__version__}, now 99.0"]
