"""On a device that is not the host: a double of one, in a process of its own, whose torch.accelerator it changes."""

import subprocess
import sys
from pathlib import Path


def test_solves_on_a_device():
    cases = Path(__file__).with_name("on_double.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
