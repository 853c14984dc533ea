"""Operations that have no row of their own, replaced by others that have: by PyTorch's own definitions."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from ...torch_internals import decompositions


def decomposed(graph: fx.GraphModule, covered: Collection[Any]) -> fx.GraphModule:
    """The graph without operations that are not covered, as far as PyTorch knows how to write them by others."""
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function" and _is_tensor(node)}
    if all(target in covered or getattr(target, "__name__", "") == "getitem" for target in targets):
        return graph
    table = {target: rule for target, rule in decompositions().items() if target not in covered}
    holders = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    modes = [x.fake_mode for x in holders if hasattr(x, "fake_mode")]
    with modes[0] if modes else nullcontext(), torch.no_grad():
        again = make_fx(graph, decomposition_table=table)(*holders)
    again.graph.eliminate_dead_code()
    return again


def _is_tensor(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor | list | tuple)
