"""Every experiment, killed in the middle as a process of its own and resumed, ends as an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from lab_helpers import metrics, mosaic, summary

TIMES = {"seconds", "elapsed", "finished", "sessions", "options", "data"}
"""What differs between two runs of the same settings."""


def command(name, *args):
    return [sys.executable, "-m", "torchaca.lab.cli", "run", name, *map(str, args)]


def without_times(content):
    """JSON without what the clock says, in tables too."""
    if isinstance(content, list):
        return [without_times(item) for item in content]
    if not isinstance(content, dict):
        return content
    kept = {key: without_times(value) for key, value in content.items() if key not in TIMES}
    if "columns" in kept:
        timed = [i for i, column in enumerate(kept["columns"]) if "seconds" in column]
        kept["rows"] = [[cell for i, cell in enumerate(row) if i not in timed] for row in kept["rows"]]
    return kept


def lines(folder):
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy", "van-der-pol", "conv-reconstruct", "cost", "three-body"])
def test_killed_and_resumed_equals_uninterrupted(name, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    args = ["--size", "smoke"]
    if name == "conv-reconstruct":
        mosaic(tmp_path / "images.zip")
        args += ["--data", tmp_path / "images.zip"]
    subprocess.run(command(name, *args, "--out", whole), check=True)
    with subprocess.Popen(command(name, *args, "--out", killed)) as process:
        while lines(killed) < lines(whole) // 2:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "summary.json").exists()
    subprocess.run(command(name, "--resume", killed), check=True)
    assert metrics(killed) == metrics(whole)
    assert without_times(summary(killed)) == without_times(summary(whole))
    assert len(json.loads((killed / "config.json").read_text())["sessions"]) == 2
    for plot in summary(whole)["plots"]:
        assert os.path.getsize(killed / plot) == os.path.getsize(whole / plot)
