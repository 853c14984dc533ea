"""What every test starts from: the same seeds, one thread, all digits in messages, hypothesis without chance."""

import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
torch.set_printoptions(precision=17, linewidth=120)
np.set_printoptions(precision=17, linewidth=120)
hypothesis.settings.register_profile("torchaca", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.load_profile("torchaca")


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
