"""The gradients that docs/adding-a-gradient.md writes: every law that holds for a row of GRADIENTS holds for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_gradients import ROWS, page_classes

from torchaca.gradients import Facts

TESTS = Path(__file__).resolve().parents[1]
CLASSES = {row: page_classes()[name] for row, name in ROWS.items()}
OWN = {
    row: made for row, made in CLASSES.items() if not Facts.of(made()).records and made().name != "my direct"
}
"""Those with a backward pass of their own."""
on_page = pytest.mark.parametrize("row", CLASSES)


def laws(*options):
    """Run the laws over the rows of the page."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "page_gradients",
        "-p",
        "no:cacheprovider",
        *options,
    ]
    paths = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return int(done.stdout.split(" passed")[0].split()[-1])


def test_the_laws_hold_for_the_page():
    """Each law once, for the gradient with a backward pass of its own; the others in the slow run."""
    assert laws("gradients/test_laws.py", "-k", "page_step_by_step", f"--rootdir={TESTS.parent}") > 100


@pytest.mark.slow
@on_page
def test_every_law_holds_for_every_gradient_of_the_page(row):
    assert laws("gradients/test_laws.py", "-k", row, "-m", "slow or not slow") > 200
