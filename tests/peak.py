"""How much memory a computation needs at its peak, counted in numbers, on any device."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Peak(TorchDispatchMode):
    """The most numbers that were alive at one time in tensors other than `known`, and the largest of those tensors."""

    def __init__(self, known):
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in known}
        self.alive, self.total, self.peak, self.largest = {}, 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self._add(storage)
        return out

    def _add(self, storage):
        size = storage.nbytes() // 8
        self.largest = max(self.largest, size)
        self.total += size - self.alive.get(storage._cdata, (None, 0))[1]
        self.alive[storage._cdata] = StorageWeakRef(storage), size
        if self.total > self.peak:  # only then does it matter which of them are gone
            self.alive = {key: pair for key, pair in self.alive.items() if not pair[0].expired()}
            self.total = sum(size for _, size in self.alive.values())
            self.peak = max(self.peak, self.total)

    @property
    def now(self):
        """The numbers that are alive now."""
        return sum(size for reference, size in self.alive.values() if not reference.expired())
