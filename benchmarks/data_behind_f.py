"""A training step of an f that is a method of an object which also holds the data: its time must not grow with them.

`python benchmarks/data_behind_f.py` prints medians of interleaved steps, and the ratio to none at all.
"""

import statistics
import time

import torch
from torch import nn

import torchaca as aca

SAMPLES = (0, 1_000, 60_000)
ROUNDS = 60


class Holder:
    """What a trainer is to f: in reach, and of no concern."""

    def __init__(self, samples):
        self.data = [(torch.zeros(2), i) for i in range(samples)]


class Model(nn.Module):
    def __init__(self, samples):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.owner = nn.Linear(3, 3), Holder(samples)

    def field(self, t, y):
        return torch.tanh(self.net(y))


def main():
    torch.set_num_threads(1)
    y0, models = torch.randn(4, 3), {samples: Model(samples) for samples in SAMPLES}
    took = {samples: [] for samples in SAMPLES}
    for _ in range(ROUNDS):
        for samples, model in models.items():
            start = time.perf_counter()
            aca.solve(model.field, y0, [0.0, 1.0]).ys[-1].sum().backward()
            took[samples].append(time.perf_counter() - start)
    medians = {samples: statistics.median(times) for samples, times in took.items()}
    for samples, seconds in medians.items():
        print(f"{samples:6d} samples: {1e3 * seconds:.2f} ms a step, {seconds / medians[0]:.2f} of none")


if __name__ == "__main__":
    main()
