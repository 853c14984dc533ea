"""Minibatches that depend on the seed, the epoch and their number alone, so that training can go on at any of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, Sampler


class Batches(Sampler[list[int]]):
    """The indices of each minibatch; in a permutation that is a function of seed and epoch, or in order.

    Parameters
    ----------
    count : int
        The number of samples.
    size : int
        Samples in a minibatch, over all devices together; the last minibatch may be smaller.
    seed : int, optional
        Of the permutations; without it, the order is that of the data.
    """

    def __init__(self, count: int, size: int, seed: int | None = None) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.epoch = 0
        self.first = 0

    def set_epoch(self, epoch: int) -> None:
        """Take the permutation of this epoch, from its first minibatch; Lightning calls it."""
        if epoch != self.epoch:
            self.epoch, self.first = epoch, 0

    def __len__(self) -> int:
        # The devices take turns in a minibatch; one that has no sample for each of them is left out.
        last = self.count % self.size
        return self.count // self.size + (last >= _share()[1] if last else 0)

    def __iter__(self) -> Iterator[list[int]]:
        rank, devices = _share()
        order = np.arange(self.count)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for number in range(self.first, len(self)):
            yield order[number * self.size : (number + 1) * self.size][rank::devices].tolist()


class Loader(DataLoader[Any]):
    """Loads whole minibatches, and goes on in the middle of an epoch.

    The global random generators are left alone, so that they are the same in a resumed run.

    Parameters
    ----------
    data : Dataset
        `data[indices]` is a minibatch for a list of indices, as that of `torch.utils.data.TensorDataset`. Where it
        draws random numbers with `workers > 0`, it has to derive them from the indices: the workers are new
        processes after a resumption.
    batches : Batches
    workers : int
        Processes that load.
    """

    def __init__(self, data: Dataset[Any], batches: Batches, workers: int = 0) -> None:
        own = torch.Generator().manual_seed(0)
        super().__init__(data, batch_size=None, sampler=batches, num_workers=workers, generator=own)
        self.batches = batches
        self._handed = 0

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._handed = self.batches.first
        for batch in super().__iter__():
            self._handed += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where training is; Lightning keeps it in its checkpoints."""
        return {"epoch": self.batches.epoch, "handed": self._handed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the minibatches that were handed out."""
        self.batches.epoch, self.batches.first = state["epoch"], state["handed"]


def _share() -> tuple[int, int]:
    """The number of this process, and how many share the minibatches."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
