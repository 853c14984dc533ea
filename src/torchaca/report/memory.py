"""How much a forward pass keeps for its backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor


class SavedTensors:
    """Within `with SavedTensors() as saved:`, `saved.peak` is the most bytes that autograd held at once.

    Counts the storage of every tensor saved for a backward pass, once however often it is saved, until the
    graph lets go of it. Forward and backward belong inside the block. Tensors of `besides` do not count: parameters,
    say, which are there anyway.
    """

    def __init__(self, besides: Sequence[Tensor] = ()) -> None:
        self.besides = {tensor.untyped_storage().data_ptr() for tensor in besides}
        self.peak = 0
        self.held = 0
        self._users: Counter[int] = Counter()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> Kept:
        tensor = tensor.detach()  # an output that its own graph keeps would keep the graph
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.besides:
            return Kept(None, tensor)
        if not self._users[storage.data_ptr()]:
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
        self._users[storage.data_ptr()] += 1
        return Kept(self, tensor)

    def release(self, tensor: Tensor) -> None:
        """The graph has let go of a tensor."""
        storage = tensor.untyped_storage()
        self._users[storage.data_ptr()] -= 1
        if not self._users[storage.data_ptr()]:
            self.held -= storage.nbytes()


class Kept:
    """A saved tensor that reports its end."""

    def __init__(self, owner: SavedTensors | None, tensor: Tensor) -> None:
        self.owner, self.tensor = owner, tensor

    def __del__(self) -> None:
        if self.owner is not None:
            self.owner.release(self.tensor)
