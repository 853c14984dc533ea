"""Compilers that are missing, fail or hang; caches that are damaged, full, read-only or shared; threads; Ctrl-C."""

import math
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch

from torchaca import solve
from torchaca.native import build, cache, driver
from torchaca.native.build import Build, CannotBuild

DOUBLE = torch.float64
TEXT = "int answer(void) {{ return {0}; }}\n#pragma GCC visibility push(default)\nint shown(void) {{ return {0}; }}"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No code is known, on disk or in this process."""
    home = tmp_path / "cache"
    monkeypatch.setenv("TORCHACA_CACHE_DIR", str(home))
    monkeypatch.setattr(build, "_LOADED", {})
    forget()
    yield home
    forget()


def forget():
    for known in (driver.started, driver.loops_for, build._machine):
        known.cache_clear()


def answer(n=42):
    return Build(TEXT.format(n), "answer").result().function("shown")()


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_code_is_kept_for_this_user_alone(fresh):
    assert answer() == 42
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    (kept,) = fresh.iterdir()
    assert cache.sound(kept)


def test_kept_code_is_not_compiled_again(fresh, monkeypatch):
    answer()
    monkeypatch.setattr(build, "_LOADED", {})
    monkeypatch.setattr(build, "_compile", None)
    assert answer() == 42


@pytest.mark.parametrize("damage", [b"", b"\x7fELF and nothing more", None])
def test_damaged_code_is_made_again(fresh, monkeypatch, damage):
    answer()
    (kept,) = fresh.iterdir()
    other = kept.with_suffix(".damaged")  # a library that is loaded must not be written into
    other.write_bytes(kept.read_bytes()[:-100] if damage is None else damage)
    other.replace(kept)
    monkeypatch.setattr(build, "_LOADED", {})
    assert answer() == 42
    assert cache.sound(kept)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_not_used(fresh, mode):
    fresh.mkdir()
    fresh.chmod(mode)
    assert answer() == 42
    assert list(fresh.iterdir()) == []


def test_a_cache_that_cannot_be_written_to(fresh):
    fresh.write_text("a file where the folder should be")
    assert answer() == 42


def test_a_disk_that_is_full(fresh, monkeypatch):
    made = build._made

    def full(text, own, path):
        if path.is_relative_to(fresh):
            raise OSError(28, "No space left on device")
        return made(text, own, path)

    monkeypatch.setattr(build, "_made", full)
    assert answer() == 42
    monkeypatch.setattr(build, "_LOADED", {})
    monkeypatch.setattr(build, "_made", lambda *args: full("", None, fresh / "x"))
    with pytest.raises(CannotBuild, match="No space left"):
        answer()


@pytest.mark.slow
def test_two_processes_may_compile_the_same_at_once(fresh):
    code = (
        "from torchaca.native.build import Build\n"
        f"print(Build({TEXT.format(7)!r}, 'answer').result().function('shown')())"
    )
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["7", "7"]
    assert len(list(fresh.iterdir())) == 1


COMPILERS = {
    "missing": (None, "cannot be started"),
    "fails": ("echo 'code.c:1: error: its own words'; exit 1", "its own words"),
    "hangs": ("sleep 60", "was not done after"),
    "makes nothing": ("exit 0", "it said nothing"),
    "makes rubbish": (
        'while [ "$1" != "-o" ]; do shift; done; echo rubbish > "$2"',
        "cannot be written or loaded",
    ),
}


@pytest.mark.parametrize("kind", COMPILERS)
def test_a_compiler_that_does_not_work(fresh, monkeypatch, tmp_path, kind):
    text, words = COMPILERS[kind]
    rate = 1 + 0.1 * [*COMPILERS].index(kind)  # no two are one f
    path = str(tmp_path / "no-compiler") if text is None else script(tmp_path / "compiler", text)
    monkeypatch.setenv("CC", path)
    monkeypatch.setattr(build, "SECONDS", 0.2)
    forget()
    try:
        with pytest.raises(CannotBuild, match=words):
            answer()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ys = solve(lambda t, y: -rate * y, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], compile="native").ys
        assert words in str(caught[-1].message)
        assert "runs in the eager loop" in str(caught[-1].message)
        torch.testing.assert_close(ys[-1, 0].item(), math.exp(-rate), rtol=1e-2, atol=0)
    finally:
        monkeypatch.undo()


def test_a_machine_without_compiler(fresh, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    forget()
    with pytest.raises(CannotBuild, match="there is no C compiler on this machine"):
        answer()


def test_the_text_can_be_kept(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHACA_KEEP_SOURCE", str(tmp_path / "kept"))
    answer(43)
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.read_text() == TEXT.format(43)


def test_another_compiler_may_not_know_the_flags(fresh, monkeypatch, tmp_path):
    refusing = 'for x; do [ "$x" = "-march=native" ] && exit 1; done; exec cc "$@"'
    monkeypatch.setenv("CC", script(tmp_path / "plain", refusing))
    forget()
    assert answer() == 42


def swinging(t, y):
    return torch.stack([y[1], -y[0]])


def test_threads_solve_at_once():
    want, found = solve(swinging, torch.ones(2, dtype=DOUBLE), [0.0, 50.0], compile="native").ys, []

    def work():
        for _ in range(5):
            y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
            ys = solve(swinging, y0, [0.0, 50.0], compile="native").ys
            found.append((ys.detach(), torch.autograd.grad(ys.sum(), y0)[0]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [x.start() for x in threads]
    [x.join() for x in threads]
    assert len(found) == 20
    assert all(torch.equal(ys, want) and torch.equal(g, found[0][1]) for ys, g in found)


@pytest.mark.usefixtures("interruptible")
def test_the_lock_is_released_and_ctrl_c_is_heard():
    options = {"rtol": 1e-10, "atol": 1e-10, "max_steps": 10**9, "compile": "native"}
    with torch.no_grad():
        solve(swinging, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], **options)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            solve(swinging, torch.ones(2, dtype=DOUBLE), [0.0, 1e7], **options)
        assert time.monotonic() - start < 20
    solve(swinging, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], **options)
