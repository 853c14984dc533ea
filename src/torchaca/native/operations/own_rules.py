"""Operations by others where PyTorch has no definition, or none for symbolic sizes: attention, padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

NAME = "_scaled_dot_product_flash_attention_for_cpu"


def own_rules() -> dict[Any, Callable[..., Any]]:
    """The definitions, by their operations."""
    forward, backward = attrgetter(f"{NAME}.default", f"{NAME}_backward.default")(torch.ops.aten)
    soft, hard = attrgetter("softshrink_backward.default", "hardshrink_backward.default")(torch.ops.aten)
    return {
        forward: attend,
        backward: pull,
        torch.ops.aten.constant_pad_nd.default: pad,
        soft: shrunk,
        hard: shrunk,
    }


def shrunk(grad: Tensor, x: Tensor, bound: float) -> Tensor:
    """The vector-Jacobian product of what is 0 between bounds."""
    return torch.where((x >= -bound) & (x <= bound), 0.0, grad)


def pad(x: Tensor, pad: Sequence[Any], value: Any = 0) -> Tensor:
    """A frame of a constant, or less than there was: each dimension with what comes before and after it."""
    for i in range(len(pad) // 2):
        dim, (before, after) = x.ndim - 1 - i, pad[2 * i : 2 * i + 2]
        less = max(-before, 0), max(-after, 0)
        if any(less):
            x = x.narrow(dim, less[0], x.shape[dim] - less[0] - less[1])
        frame = [(*x.shape[:dim], max(n, 0), *x.shape[dim + 1 :]) for n in (before, after)]
        first, last = (x.new_full(shape, value) for shape in frame)
        x = torch.cat([first, x, last], dim)
    return x


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`softmax(q k^T scale) v`, laid out as by the kernel, and the logarithm of the softmax's denominator."""
    scores = _scores(query, key, is_causal, attn_mask, scale)
    logsumexp = scores.logsumexp(-1)
    out = torch.exp(scores - logsumexp.unsqueeze(-1)) @ value
    return out.transpose(1, 2).contiguous().transpose(1, 2), logsumexp


def pull(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    dropout_p: float,
    is_causal: bool,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Its vector-Jacobian product in query, key and value."""
    by = query.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.exp(_scores(query, key, is_causal, attn_mask, scale) - logsumexp.unsqueeze(-1))
    ds = weights * (grad @ value.mT - (grad * out).sum(-1, keepdim=True)) * by
    return ds @ key, ds.mT @ query, weights.mT @ grad


def _scores(query: Tensor, key: Tensor, causal: bool, mask: Tensor | None, scale: float | None) -> Tensor:
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) != 0, -torch.inf)
    return scores if mask is None else scores + mask
