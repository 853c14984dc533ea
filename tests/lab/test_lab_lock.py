"""One process at a time in the folder of a run."""

import errno
import importlib.util
import os
import re
import shutil
import signal
import sys
import types
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
from lab_helpers import run, small_toy

from torchaca.lab import cli, lock, toy
from torchaca.lab import run as runs
from torchaca.lab.cifar_node import evaluate
from torchaca.lab.experiment import UsageError
from torchaca.lab.files import write

SENTENCE = r"another process \(PID \d+ on \S+, since [\d-]+ [\d:]+ UTC\) is at work in \S+: wait for its end"


@contextmanager
def another_process(folder):
    """Another process at work in the folder, until it is killed."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        with lock.at_work(folder):
            os.write(go, b".")
            signal.pause()
    os.read(ready, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that came to its end."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "EXPERIMENT", small_toy())
        patch.setattr("torchaca.lab.toy.outcome.plot", lambda *args: args[-1].touch())
        assert run("toy", "--gradient", "aca", "--out", folder) == 0
    return folder


@pytest.fixture
def finished(small, whole, tmp_path):
    """A copy of that folder."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


COMMANDS = {
    "resume": lambda folder: ["run", "toy", "--resume", folder],
    "resume by another name": lambda folder: ["run", "toy", "--resume", folder / ".." / folder.name],
    "start": lambda folder: ["run", "toy", "--out", folder],
    "report": lambda folder: ["report", folder, "--out", folder / "report.html"],
}
"""The commands that write into the folder of a run."""


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_refused_while_another_process_is_at_work(command, finished, capsys):
    with another_process(finished) as child:
        before = files(finished)
        assert cli.main([str(word) for word in command(finished)]) == 2
        err = capsys.readouterr().err
        assert re.fullmatch(f"torchaca: error: {SENTENCE}.*\n", err)
        assert f"PID {child} " in err
        assert files(finished) == before


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_kill_frees_the_folder(command, finished, capsys):
    with another_process(finished):
        pass
    cli.main([str(word) for word in command(finished)])
    assert "another process" not in capsys.readouterr().err


def test_two_starts_in_one_new_folder(small, tmp_path, capsys):
    folder = tmp_path / "new" / "run"
    with another_process(folder):
        assert run("toy", "--out", folder) == 2
        assert re.search(SENTENCE, capsys.readouterr().err)
        assert [path.name for path in folder.iterdir()] == [lock.NAME]
    assert run("toy", "--gradient", "aca", "--out", folder) == 0


def test_a_resume_of_a_run_that_is_being_started(small, tmp_path, capsys):
    with another_process(tmp_path / "run"):
        assert run("toy", "--resume", tmp_path / "run") == 2
        assert re.search(SENTENCE, capsys.readouterr().err)
    assert run("toy", "--resume", tmp_path / "run") == 2
    assert "holds no run" in capsys.readouterr().err


def test_a_page_beside_a_run_at_work_is_no_matter(finished, tmp_path):
    with another_process(finished):
        assert cli.main(["report", str(finished), "--out", str(tmp_path / "page.html")]) == 0


def test_results_of_evaluate_in_a_run_at_work_are_refused(finished):
    with another_process(finished), pytest.raises(UsageError, match=SENTENCE), evaluate._writing(finished):
        raise AssertionError("it went on")


def test_evaluate_refuses_a_folder_that_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "solvers.png").mkdir()
    with (
        pytest.raises(UsageError, match=r"cannot write the results to .*: Not a dir"),
        evaluate._writing(tmp_path / "file" / "x"),
    ):
        raise AssertionError("it went on")
    with (
        pytest.raises(UsageError, match=r"cannot write the results to .*: Is a dir"),
        evaluate._writing(tmp_path),
    ):
        write(tmp_path / "solvers.png", b"")


@pytest.mark.parametrize(
    "left", [(), (lock.NAME,), ("checkpoints",), (lock.NAME, "checkpoints", "write-probe.tmp", "config.json.7.tmp")]
)  # fmt: skip
def test_what_a_killed_start_leaves_is_no_obstacle(left, tmp_path):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).mkdir() if name == "checkpoints" else (tmp_path / "run" / name).touch()
    assert runs.start(small_toy(), {}, tmp_path / "run")[0].metrics == []


def test_nothing_is_left_behind(finished, tmp_path, capsys):
    assert not (finished / lock.NAME).exists()
    assert run("toy", "--resume", finished) == 0
    assert not (finished / lock.NAME).exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    assert run("toy", "--out", tmp_path / "thesis") == 2
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_the_lock_is_held_from_the_start_to_the_end(small, tmp_path, monkeypatch):
    seen = []

    def write_report(run, *args):
        seen.append((run.folder / lock.NAME).read_text())

    monkeypatch.setattr("torchaca.lab.session.write_report", write_report)
    assert run("toy", "--gradient", "aca", "--out", tmp_path / "run") == 0
    (said,) = seen
    assert lock.HOLDER.match(said)
    assert f"PID {os.getpid()} " in said


def test_a_child_that_leaves_the_block_does_not_free_it(tmp_path):
    with lock.at_work(tmp_path):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            assert (tmp_path / lock.NAME).exists()
    if child == 0:
        os._exit(0)
    assert not (tmp_path / lock.NAME).exists()


@pytest.mark.parametrize("content", ["", "garbage", "PID 1 on x, since\n" * 1000])
def test_a_holder_that_is_not_told_is_refused_all_the_same(content, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TRIES", 2)
    with lock.at_work(tmp_path):
        (tmp_path / lock.NAME).write_text(content)
        with pytest.raises(UsageError, match="another process is at work in"), lock.at_work(tmp_path):
            raise AssertionError("it went on")


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_lock_file_that_is_none_is_refused(kind, tmp_path):
    (tmp_path / "thesis.tex").write_text("content")
    place = tmp_path / "run" / lock.NAME
    place.parent.mkdir()
    place.symlink_to(tmp_path / "thesis.tex") if kind == "link" else place.mkdir()
    with (
        pytest.raises(UsageError, match=f"cannot write the run to .*: {lock.NAME}: "),
        lock.at_work(place.parent),
    ):
        raise AssertionError("it went on")
    assert (tmp_path / "thesis.tex").read_text() == "content"


@pytest.mark.parametrize("number", lock.WITHOUT, ids=errno.errorcode.get)
def test_file_systems_without_locks_are_told_of(number, tmp_path, monkeypatch, capsys):
    def without(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "_lock", without)
    with lock.at_work(tmp_path):
        pass
    assert re.fullmatch("torchaca: note: the file system of .* has no locks: .*\n", capsys.readouterr().err)


def test_a_lock_file_that_its_holder_removes_is_not_taken_for_the_folder_s(tmp_path, monkeypatch):
    """Opened before its holder removes it, locked after that: another process may have made a new one."""
    original, opened = lock._lock, []

    def removed_meanwhile(file):
        if not opened:
            (tmp_path / lock.NAME).unlink()
        opened.append(os.fstat(file).st_ino)
        original(file)

    monkeypatch.setattr(lock, "_lock", removed_meanwhile)
    with lock.at_work(tmp_path):
        assert (tmp_path / lock.NAME).stat().st_ino == opened[-1]
    assert len(opened) == 2


def test_windows(tmp_path, monkeypatch):
    """As the module is there, on a system of `msvcrt`'s calls."""
    held = set()

    def locking(file, mode, count):
        place = (os.fstat(file).st_ino, os.lseek(file, 0, os.SEEK_CUR))
        if place in held:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        held.add(place)

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(sys, "platform", "win32")
    spec = importlib.util.spec_from_file_location("torchaca.lab.lock_of_windows", lock.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.at_work(tmp_path):
        ((_, place),) = held
        assert place > os.path.getsize(tmp_path / lock.NAME)
        with pytest.raises(UsageError, match=SENTENCE), module.at_work(tmp_path):
            raise AssertionError("it went on")
    assert not list(tmp_path.iterdir())


def test_starts_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    class Stopped(datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 1, 12)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchaca.lab.run.datetime", Stopped)
    for _ in range(3):
        runs.start(small_toy(), {}, None)
    names = {path.name for path in Path("runs").iterdir()}
    assert names == {f"toy-20260101-120000{more}" for more in ("", "-2", "-3")}
