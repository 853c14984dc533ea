"""Operations that have no row of their own, replaced by others that have: by PyTorch's own definitions."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from ...torch_internals import decompositions
from .own_rules import own_rules


@cache
def rules(covered: frozenset[Any], composed: tuple[Any, ...]) -> dict[Any, Callable[..., Any]]:
    """How operations that are not covered are written by others, for `make_fx`."""
    known = {target: rule for target, rule in decompositions(composed).items() if target not in covered}
    return known | own_rules()


def decomposed(graph: fx.GraphModule, covered: Collection[Any], table: Mapping[Any, Any]) -> fx.GraphModule:
    """The graph without operations that are not covered, as far as PyTorch knows how to write them by others."""
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function" and is_tensor(node)}
    if all(target in covered or target is operator.getitem for target in targets):
        return graph
    holders = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    modes = [x.fake_mode for x in holders if hasattr(x, "fake_mode")]
    if modes:  # a constant that became an input may be a plain tensor
        holders = [modes[0].from_tensor(x) if _is_plain(x) else x for x in holders]
    run = functionalize(graph) if any(map(changes, targets)) else graph
    with modes[0] if modes else nullcontext(), torch.no_grad():
        again = make_fx(run, decomposition_table=table)(*holders)
    again.graph.eliminate_dead_code()
    return again


def _is_plain(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and not hasattr(x, "fake_mode")


def changes(target: Any) -> bool:
    """Whether an operation writes to one of its arguments."""
    name = str(target).split(".")[1] if "." in str(target) else ""
    return name.endswith("_") and not name.endswith("__")


def is_tensor(node: fx.Node) -> bool:
    """Whether a node gives a tensor, or several."""
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor | list | tuple)
