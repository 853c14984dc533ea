"""What autograd saves for a backward pass, weighed: of one evaluation of f, or of a whole solve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

CHANGED_IN_PLACE = "modified by an inplace operation"  # as autograd says it


class SavedTensors:
    """Within `with SavedTensors() as saved:`, `saved.peak` is the most bytes that autograd held at once.

    Counts the storage of every tensor saved for a backward pass, once however often it is saved, until the
    graph lets go of it; `held` are the bytes at present. Tensors of `besides` do not count: parameters, say, which are
    there anyway. Hooks that were in force before get the tensors as they would have.
    """

    def __init__(self, besides: Iterable[Tensor] = ()) -> None:
        self.besides = {tensor.untyped_storage().data_ptr() for tensor in besides}
        self.peak = 0
        self.held = 0
        self._users: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, Kept.unpacked)
        self._outer: Any = None

    def __enter__(self) -> SavedTensors:
        autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
        self._outer = autograd._top_saved_tensors_default_hooks(False)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def held_besides(self, tensors: Iterable[Tensor]) -> int:
        """The bytes that are held at present, without those of these tensors."""
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return sum(size for place, size in self._sizes.items() if self._users[place] and place not in known)

    def _pack(self, tensor: Tensor) -> Kept:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self.besides:
            return Kept(None, place, tensor, self._outer)
        if not self._users[place]:
            self._sizes[place] = storage.nbytes()
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
        self._users[place] += 1
        return Kept(self, place, tensor, self._outer)

    def release(self, place: int) -> None:
        """The graph has let go of a tensor."""
        self._users[place] -= 1
        if not self._users[place]:
            self.held -= self._sizes[place]


class Kept:
    """A saved tensor that reports its end. `outer` are the hooks in force around it, if there are any."""

    __slots__ = ("outer", "owner", "place", "saved", "version")

    def __init__(self, owner: SavedTensors | None, place: int, tensor: Tensor, outer: Any) -> None:
        self.owner, self.place, self.outer = owner, place, outer
        # Not the tensor itself: an output that its own graph keeps is a cycle which nobody can free.
        self.saved = tensor.detach() if outer is None else outer[0](tensor)
        self.version = None if outer is not None or tensor.is_inference() else tensor._version

    def unpacked(self) -> Tensor:
        """The tensor as it was.

        Raises
        ------
        RuntimeError
            If it was changed in place since, as autograd raises without hooks.
        """
        if self.outer is not None:
            return self.outer[1](self.saved)
        if self.version is not None and self.saved._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been "
                f"{CHANGED_IN_PLACE}: a tensor of shape {tuple(self.saved.shape)} is at version "
                f"{self.saved._version}; expected version {self.version} instead"
            )
        return self.saved

    def __del__(self) -> None:
        if self.owner is not None:
            self.owner.release(self.place)
