"""The house: how many rooms a solve goes through. No wall times."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

import torchaca
from torchaca import solve

ROOT = str(Path(torchaca.__file__).parent)


def frames_below(f: Callable, call: Callable[[Callable], object]) -> int:
    """The most frames of the package that stand between a call and f."""
    depths = []

    def counting(*args):
        frame, depth = sys._getframe(1), 0
        while frame is not None:
            depth += frame.f_code.co_filename.startswith(ROOT)
            frame = frame.f_back
        depths.append(depth)
        return f(*args)

    call(counting)
    return max(depths)


def changes_of_file(call: Callable[[], object]) -> list[str]:
    """The files of the package in the order in which a call goes through them, each as often as it is entered anew."""
    files = []

    def entered(frame, event, arg):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(ROOT) and "/lab/" not in name:
            files.append(name.removeprefix(ROOT))

    before = sys.getprofile()
    sys.setprofile(entered)
    try:
        call()
    finally:
        sys.setprofile(before)
    return [files[0], *(b for a, b in pairwise(files) if a != b)]


def three_steps(f: Callable) -> None:
    solve(f, torch.ones(3), [0, 1], method="rk4", n_steps=3)


def decay(t, y):
    return -y


def test_frames_between_a_solve_and_f():
    three_steps(decay)
    assert frames_below(decay, three_steps) <= 9


def test_changes_of_file_in_a_solve():
    three_steps(decay)
    path = changes_of_file(lambda: three_steps(decay))
    assert len(path) - 1 <= 40, path
