"""Files of a run that were changed after they were written: one sentence that names the file, and nothing is lost."""

import io
import json
import os
import pickle
import re
import shutil
import zipfile

import lab_helpers
import pytest
import torch
from covering import pairs
from lab_helpers import metrics, run

from torchaca.lab import cli, files, three_body
from torchaca.lab.experiment import UsageError
from torchaca.lab.metrics import CLOCKS, read_metrics

OPTIONS = ("--gradient", "aca", "--seeds", "1")


class Planted:
    """Leaves a file where it is unpickled."""

    def __reduce__(self):
        return open, (os.environ["PLANTED"], "w")


def archive(content, compression=zipfile.ZIP_STORED):
    """A zip as of `torch.save`, with this as its pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as zipped:
        zipped.writestr("archive/data.pkl", content)
        zipped.writestr("archive/version", "3\n")
        zipped.writestr("archive/byteorder", "little")
    return made


def flipped(content):
    middle = len(content) // 2
    return (
        content[:middle]
        + bytes(byte ^ 0xFF for byte in content[middle : middle + 16])
        + content[middle + 16 :]
    )


HARMS = {
    "flipped bytes": flipped,
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "garbage": lambda content: bytes(range(256)) * 4,
    "text": lambda content: b"not what it was\n",
    "no UTF-8": lambda content: b'{"a": "\xff"}\n',
    "a number": lambda content: b"3\n",
    "a list": lambda content: b"[]\n",
    "without names": lambda content: b"{}\n",
    "nested": lambda content: b"[" * 100_000 + b"\n",
    "pickle": lambda content: pickle.dumps(Planted()),
    "archive of a pickle": lambda content: archive(pickle.dumps(Planted())).getvalue(),
    "archive of a pickle with the right sum": lambda content: bytes(
        files.seal(archive(pickle.dumps(Planted())))
    ),
    "archive of gigabytes": lambda content: archive(bytes(20 << 20), zipfile.ZIP_DEFLATED).getvalue(),
}
"""Kind of harm -> the content after it."""


def folder_instead(path):
    path.unlink()
    path.mkdir()


def pipe_instead(path):
    path.unlink()
    os.mkfifo(path)


def dangling_link(path):
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


REPLACED = {"a folder": folder_instead, "a pipe": pipe_instead, "a dangling link": dangling_link}
"""What else may stand in a file's place."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that came to its end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        assert run("three-body", *OPTIONS, "--out", folder) == 0
    return folder


def shrink(patch):
    patch.setattr(files, "PROBE_BYTES", 1)  # a run is opened many times here
    patch.setattr(three_body, "EXPERIMENT", lab_helpers.small_three_body())
    for name in ("plot_motion", "plot_losses", "animate"):
        patch.setattr(f"torchaca.lab.three_body.outcome.{name}", lambda *args: args[-1].touch())


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy of that folder, and a place for what a planted pickle leaves."""
    shrink(monkeypatch)
    monkeypatch.setenv("PLANTED", str(tmp_path / "planted"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def in_parts(folder):
    """The checkpoint of the run, rewritten in parts."""
    path = CHECKPOINT(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PART_BYTES", path.stat().st_size // 3 + 1)
        files.save_state(path, files.load_state(path))
    return path


CHECKPOINT = lambda folder: folder / "checkpoints" / "ode-aca-seed-0.pt"  # noqa: E731
RESUME, REPORT = (
    (lambda folder: ["run", "three-body", "--resume", folder]),
    (lambda folder: ["report", folder]),
)
PLACES = {
    "checkpoint": (CHECKPOINT, RESUME),
    "list of parts": (in_parts, RESUME),
    "part": (lambda folder: next(in_parts(folder).parent.glob("*.1")), RESUME),
    "metrics.jsonl": (lambda folder: folder / "metrics.jsonl", RESUME),
    "config.json": (lambda folder: folder / "config.json", RESUME),
    "config.json, report": (lambda folder: folder / "config.json", REPORT),
    "summary.json, report": (lambda folder: folder / "summary.json", REPORT),
}
"""Kind of file -> where it is, and the command that reads it."""


def contents(folder):
    """What is in the folder, but for the list of sessions."""
    kept = (path for path in folder.rglob("*") if path.is_file() and path.name != "config.json")
    return {path: path.read_bytes() for path in kept}


def said(words, capsys):
    """The sentence that a refused command says."""
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert re.fullmatch(r"torchaca: error: .+\n", err), err
    assert "plots, table and numbers" not in out
    return err


OTHERS = [place for place in PLACES if place != "checkpoint"]  # the one that is unpickled


@pytest.mark.parametrize(
    ("place", "harm"), [*(("checkpoint", harm) for harm in HARMS), *pairs(OTHERS, HARMS)]
)
def test_a_damaged_file_is_named_and_left_as_it_is(place, harm, folder, tmp_path, capsys):
    find, command = PLACES[place]
    path = find(folder)
    path.write_bytes(HARMS[harm](path.read_bytes()))
    before = contents(folder) | {path: path.read_bytes()}
    assert path.name in said(command(folder), capsys)
    torn = (
        {path} if path.name == "metrics.jsonl" else set()
    )  # a line without its end is cut off, as after a kill
    assert {p: before[p] for p in before if p not in torn} == {
        p: c for p, c in (contents(folder) | {path: path.read_bytes()}).items() if p not in torn
    }
    assert not (tmp_path / "planted").exists()
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("place", "what"), pairs(PLACES, REPLACED))
def test_what_is_no_file_is_named(place, what, folder, capsys):
    find, command = PLACES[place]
    path = find(folder)
    REPLACED[what](path)
    assert path.name in said(command(folder), capsys)
    assert os.path.lexists(path)


@pytest.mark.parametrize("name", ["summary.json", "summary.md"])
def test_a_folder_in_the_place_of_a_result_is_named_before_anything_is_trained(name, folder, capsys):
    folder_instead(folder / name)
    (folder / "metrics.jsonl").write_bytes(b"")
    CHECKPOINT(folder).unlink()
    assert str(folder / name) in said(RESUME(folder), capsys)
    assert (folder / "metrics.jsonl").read_bytes() == b""


def test_a_folder_in_the_place_of_a_plot_is_named(folder, capsys, monkeypatch):
    plot = folder / "loss-ode.png"
    folder_instead(plot)
    monkeypatch.setattr(
        "torchaca.lab.three_body.outcome.plot_losses", lambda *args: files.write(args[-1], b"")
    )
    err = said(RESUME(folder), capsys)
    assert str(plot) in err
    assert f"--resume {folder}" in err


@pytest.mark.parametrize(
    ("place", "harm"), {"checkpoint": "flipped bytes", "list of parts": "empty", "part": "cut short"}.items()
)
def test_what_the_sentence_says_to_do_trains_the_row_anew(place, harm, whole, folder, capsys):
    path = PLACES[place][0](folder)
    path.write_bytes(HARMS[harm](path.read_bytes()))
    (told,) = re.findall(r"or delete (\S+) to train this row anew", said(RESUME(folder), capsys))
    os.unlink(told)
    assert run("three-body", "--resume", folder) == 0
    assert metrics(folder) == metrics(whole)
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [CHECKPOINT(folder).name]


def test_a_garbage_line_goes_and_the_rest_stays(whole, folder, capsys):
    path = folder / "metrics.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, b"garbage\n", *others]))
    assert f"line 2 of {path} is damaged" in said(RESUME(folder), capsys)
    path.write_bytes(first + b"".join(others))
    assert run("three-body", "--resume", folder) == 0
    assert metrics(folder) == metrics(whole)


def test_a_damaged_line_of_an_epoch_trains_its_row_anew(whole, folder, capsys):
    path = folder / "metrics.jsonl"
    first, second, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b'"epoch": 1', b'"epoch": 7') + b"".join(others))
    assert f"line 2 of {path} is damaged" in said(RESUME(folder), capsys)
    path.write_bytes(first + b"".join(others))
    assert "2 of the 3 epochs of 'ode aca seed 0'" in said(RESUME(folder), capsys)
    CHECKPOINT(folder).unlink()
    assert run("three-body", "--resume", folder) == 0
    assert metrics(folder) == metrics(whole)


def test_lines_that_are_there_twice_are_told_of(folder, capsys):
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() * 2)
    assert "0 of the 3 epochs of 'ode aca seed 0' once" in said(RESUME(folder), capsys)


def test_a_line_that_a_kill_has_torn_is_written_again(whole, folder):
    """The last epoch is torn, and the checkpoint before it is gone: the kill came before the first one."""
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    CHECKPOINT(folder).unlink()
    assert run("three-body", "--resume", folder) == 0
    assert metrics(folder) == metrics(whole)


def test_a_checkpoint_of_another_row_is_refused(folder, capsys):
    path = CHECKPOINT(folder)
    files.save_state(path, {**files.load_state(path), "row": "ode aca seed 1"})
    assert "it is of 'ode aca seed 1'" in said(RESUME(folder), capsys)


def earlier_version(folder):
    """The folder as the version before checksums has written it."""
    path = CHECKPOINT(folder)
    state = files.load_state(path)
    del state["row"]
    torch.save(state, path)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    without = [{name: value for name, value in json.loads(line).items() if name != "check"} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))
    return path


def test_a_run_of_the_version_before_checksums_goes_on(whole, folder):
    earlier_version(folder)
    (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes() + b'{"row": "ode')
    assert run("three-body", "--resume", folder) == 0
    assert metrics(folder) == metrics(whole)


def test_its_checkpoints_are_checked_by_the_sums_of_the_zip(folder, capsys):
    path = earlier_version(folder)
    content = path.read_bytes()
    at = content.index(b"data/0") + 80  # within the numbers
    path.write_bytes(content[:at] + bytes(byte ^ 0xFF for byte in content[at : at + 16]) + content[at + 16 :])
    assert f"{path} is damaged" in said(RESUME(folder), capsys)


def test_no_flip_changes_a_metric_without_a_word(whole, tmp_path):
    path, good = tmp_path / "metrics.jsonl", (whole / "metrics.jsonl").read_bytes()
    want = [
        {k: v for k, v in line.items() if k not in CLOCKS} for line in read_metrics(whole / "metrics.jsonl")
    ]
    assert len(want) == 3
    refused = 0
    for at in range(0, len(good), 11):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x01]) + good[at + 1 :])
        try:
            found = read_metrics(path)
        except UsageError:
            refused += 1
        else:
            for line, expected in zip(found, want):  # without its end the last line is torn
                assert {k: line[k] for k in expected} == expected
    assert refused > len(good) / 22
