"""What autograd saves for a backward pass, weighed: of one evaluation of f, or at the peak of a solve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import TracebackType

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..torch_internals import number_of, pytree


def graph_bytes(out: Tensor, since: int, besides: Iterable[Tensor]) -> int:
    """The bytes that the graph of `out` holds, of what was made from the sequence number `since` on.

    Each storage counts once, those of `besides` do not. Nothing is unpacked: what a checkpoint inside f will compute
    again weighs nothing.
    """
    known = {_place_and_size(tensor)[0] for tensor in besides}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no id comes back
    pending, visited = [out.grad_fn], set[Node]()
    while pending:
        node = pending.pop()
        if node is None or node in visited or number_of(node) < since:
            continue
        visited.add(node)
        for x in _saved_by(node):
            held.append(x)
            place, size = _place_and_size(x)
            sizes[place] = size
        pending.extend(other for other, _ in node.next_functions)
    return sum(size for place, size in sizes.items() if place not in known)


def _place_and_size(x: Tensor) -> tuple[int, int]:
    """Where a tensor's storage is, and its bytes; one that has none (sparse, of a transform) is counted by itself."""
    try:
        storage = x.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except RuntimeError:
        return id(x), x.numel() * x.element_size()


def _saved_by(node: Node) -> Iterator[Tensor]:
    """The tensors that a node holds, as they are or as saved-tensor hooks have packed them."""
    for name in _names_of_saved(type(node)):
        found = getattr(node, name)
        for saved in found if isinstance(found, (tuple, list)) else (found,):
            yield from (x for x in pytree.tree_leaves(saved.data) if isinstance(x, Tensor))


@lru_cache(maxsize=512)
def _names_of_saved(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


class SavedTensors:
    """Within `with SavedTensors() as saved:`, `saved.peak` is the most bytes that autograd held at once.

    Counts the storage of every tensor saved for a backward pass, once however often it is saved, until the
    graph lets go of it. Forward and backward belong inside the block. Tensors of `besides` do not count: parameters,
    say, which are there anyway.
    """

    def __init__(self, besides: Iterable[Tensor] = ()) -> None:
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
