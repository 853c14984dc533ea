"""Solves in inference mode, whose tensors are kept out of what is compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


@contextlib.contextmanager
def outside_inference() -> Iterator[None]:
    """Outside of inference mode, without recording: its tensors would have everything compiled anew."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def normal(x: Tensor) -> Tensor:
    """The tensor; of one that belongs to inference mode, a copy that does not."""
    return x.clone() if x.is_inference() else x
