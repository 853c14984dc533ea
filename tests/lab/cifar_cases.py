"""What two processes do in test_lab_cifar_distributed.py, and what one process does instead."""

import numpy as np
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchaca.lab.cifar import CIFAR10
from torchaca.lab.cifar_node.images import Samples
from torchaca.lab.cifar_node.module import Training
from torchaca.lab.cifar_node.recipe import Settings, row_of
from torchaca.lab.engine import Batches

SETTINGS = Settings(width=2, side=8, rtol=1e-6, atol=1e-6)
COUNT, BATCH = 12, 7  # minibatches of 7 and 5 images: shares of 4 and 3, then of 3 and 2
ROWS = {
    "anode18": row_of("anode18", None, 0),
    "node18-aca": row_of("node18", "aca", 0),
    "node18-adjoint": row_of("node18", "adjoint", 0),
}


class Step(nn.Module):
    """A training step as a forward pass.

    Batch normalisation is in evaluation mode: in training mode it takes its statistics from a share of the minibatch.
    """

    def __init__(self, row):
        super().__init__()
        self.training_module = Training(SETTINGS, CIFAR10, row, COUNT).double().eval()

    def forward(self, batch):
        return self.training_module.training_step(batch, 0)

    def gradients(self):
        return {name: p.grad.clone() for name, p in self.training_module.model.named_parameters()}

    def nfe(self):
        return sum(stats.nfe for stats in self.training_module.model.stats())


def samples():
    """The first images of each minibatch are dark: f is steep for some and flat for others."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    images[::2] //= 32
    return Samples(images, np.arange(COUNT) % 10, SETTINGS.side)


def minibatches():
    """This process's share of each minibatch, in the order of the data."""
    data = samples()
    return [data[indices] for indices in Batches(COUNT, BATCH)]


def work(rank):
    """All rows in one process group."""
    results = {}
    for name, row in ROWS.items():
        for number, batch in enumerate(minibatches()):
            step = Step(row)
            wrapped = DistributedDataParallel(step)  # has to live until its gradients are reduced
            wrapped(batch).backward()
            results[f"{name} {number}"] = {
                "gradients": step.gradients(),
                "nfe": step.nfe(),
                "images": len(batch[1]),
            }
    return results
