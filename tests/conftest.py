"""What every test starts from: the same seeds, one thread, all digits in messages, hypothesis without chance."""

import getpass
import os
import random
import signal
import tempfile

import hypothesis
import numpy as np
import pytest
import torch

# Native code of earlier sessions is used again, and the user's own cache left alone.
os.environ.setdefault(
    "TORCHACA_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"torchaca-tests-{getpass.getuser()}")
)
torch.set_num_threads(1)
torch.set_printoptions(precision=17, linewidth=120)
np.set_printoptions(precision=17, linewidth=120)
hypothesis.settings.register_profile("torchaca", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("torchaca")


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, also where the tests run in the background, which a shell starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
