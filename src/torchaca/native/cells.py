"""Recurrent cells by their formulas: PyTorch computes them piece by piece for the sizes at hand, and for no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


def gru_cell(x: Tensor, h: Tensor, *weights: Any) -> Tensor:
    """As `torch.gru_cell`."""
    (a, b, c), (u, v, w) = (gates.chunk(3, -1) for gates in _gates(x, h, *weights))
    new = torch.tanh(c + torch.sigmoid(a + u) * w)
    return new + torch.sigmoid(b + v) * (h - new)


def lstm_cell(x: Tensor, state: Sequence[Tensor], *weights: Any) -> tuple[Tensor, Tensor]:
    """As `torch.lstm_cell`."""
    h, c = state
    entry, kept, new, shown = torch.add(*_gates(x, h, *weights)).chunk(4, -1)
    c = torch.sigmoid(kept) * c + torch.sigmoid(entry) * torch.tanh(new)
    return torch.sigmoid(shown) * torch.tanh(c), c


def rnn_tanh_cell(x: Tensor, h: Tensor, *weights: Any) -> Tensor:
    """As `torch.rnn_tanh_cell`."""
    return torch.tanh(torch.add(*_gates(x, h, *weights)))


def rnn_relu_cell(x: Tensor, h: Tensor, *weights: Any) -> Tensor:
    """As `torch.rnn_relu_cell`."""
    return torch.relu(torch.add(*_gates(x, h, *weights)))


def _gates(
    x: Tensor, h: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
) -> Any:
    """What the gates get from the input, and from the hidden state."""
    return linear(x, w_x, b_x), linear(h, w_h, b_h)


CELLS: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (gru_cell, lstm_cell, rnn_tanh_cell, rnn_relu_cell)
}


class Cells(TorchFunctionMode):
    """Inside, PyTorch's recurrent cells are these."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        own = CELLS[name] if name in CELLS and func is getattr(torch, name) else func
        return own(*args, **(kwargs or {}))
