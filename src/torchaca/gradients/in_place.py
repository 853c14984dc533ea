"""The sentence about a change in place, for gradients whose graph is a part of the caller's.

There, autograd's error comes up in the middle of the caller's backward pass, out of reach. So before that pass enters
the solve, the tensors that f started with are looked at; if one has changed, so are those that the graph has saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from functools import partial

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import unserializable_hook

from ..core import Outcome, Problem
from ..field.histories import used
from ..torch_internals import is_functorch_wrapped_tensor
from .replay import CHANGED_IN_PLACE, IN_PLACE


def guarded(p: Problem, outcome: Outcome, others: Iterable[Tensor] = ()) -> Outcome:
    """The outcome; its backward pass says what to do about a tensor that was changed in place since.

    `others` may have been saved as well: buffers, say.

    Holds the nodes behind the outputs, not that of the outputs, which holds the hook: no cycle.
    """
    ys = outcome.ys
    if ys.grad_fn is None or is_functorch_wrapped_tensor(ys):
        return outcome
    outside: Set[Node] = {x.grad_fn for x in (p.y0,) if x.grad_fn is not None}
    leaves = used(p.f0, 0, outside)[0] if p.f0 is not None else []
    seen = {id(x): x for x in (p.y0, *leaves, *others) if not x.is_inference()}
    watched = [(x, x._version) for x in seen.values()]
    nodes = [node for node, _ in ys.grad_fn.next_functions]
    ys.register_hook(unserializable_hook(partial(_check, watched, nodes, outside)))
    return outcome


def _check(
    watched: Sequence[tuple[Tensor, int]], nodes: Sequence[Node | None], outside: Set[Node], grad: Tensor
) -> None:
    """Raise autograd's error early, in words, if it is going to come."""
    if all(x._version == version for x, version in watched):
        return
    pending, visited = list(nodes), set(outside)
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        pending.extend(other for other, _ in node.next_functions)
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                _look_at(node, name)


def _look_at(node: Node, name: str) -> None:
    try:
        getattr(node, name)
    except RuntimeError as error:
        if CHANGED_IN_PLACE in str(error):
            raise RuntimeError(f"{IN_PLACE}. ({error})") from None
