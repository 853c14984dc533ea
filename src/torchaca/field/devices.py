"""Tensors of several devices or dtypes: named, with the cure, when f's first evaluation fails because of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_internals import pytree
from .places import label
from .reach import reach

SHOWN = 6  # names in a message
WORDS = ("device", "weight type")  # of PyTorch's errors; the second are a convolution's
DTYPE_WORDS = ("same dtype", "scalar type", "bias type", "should be the same")  # of PyTorch's errors
OTHERS = ("CUDA error", "out of memory")  # which name a device for other reasons


def explain_devices(
    error: RuntimeError, f: Callable[..., Any], args: tuple[Any, ...], device: torch.device
) -> None:
    """Explain an error of f, if it is about devices.

    Raises
    ------
    ValueError
        Naming the tensors that f reads on another device than the state's, and what to do.
    """
    text = str(error)
    if any(word in text for word in OTHERS) or not any(word in text for word in WORDS):
        return
    if elsewhere := _elsewhere(f, args, device):
        raise ValueError(f"f failed: {elsewhere}. ({text.splitlines()[0]})") from error


def explain_dtypes(
    error: RuntimeError, f: Callable[..., Any], args: tuple[Any, ...], dtypes: Sequence[torch.dtype]
) -> None:
    """Explain an error of f, if it is about dtypes; `dtypes` are those of the state.

    Raises
    ------
    TypeError
        Naming the first tensor that f reads in another dtype than the state's, and what to do.
    """
    text = str(error)
    if not any(word in text for word in DTYPE_WORDS):
        return
    for path, x in reach(f, args).tensors:
        if x.is_floating_point() and x.dtype not in dtypes:
            name = f"{_kind(x)}{label(path).removeprefix('f.')}"
            raise TypeError(
                f"f failed: {name} is {x.dtype} and y0 is {dtypes[0]}. Convert one of them: y0.to({x.dtype}), or "
                f"model.to({dtypes[0]}) for a module. ({text.splitlines()[0]})"
            ) from error


def refuse_result_elsewhere(
    out: Any, f: Callable[..., Any], args: tuple[Any, ...], device: torch.device
) -> None:
    """Refuse a derivative on another device than the state's.

    Raises
    ------
    ValueError
    """
    for k in pytree.tree_leaves(out):
        if isinstance(k, Tensor) and k.device != device:
            cure = _elsewhere(f, args, device) or "f has to return it where y is: k.to(y.device)"
            raise ValueError(f"f(t, y) returned a tensor on {k.device} where y0 is on {device}; {cure}")


def _elsewhere(f: Callable[..., Any], args: tuple[Any, ...], device: torch.device) -> str:
    """Which tensors f reads on other devices, and how to move them; empty if there are none."""
    found = [(path, x) for path, x in reach(f, args).tensors if x.device != device]
    # A number that happens to be a tensor of the host goes with tensors of every device.
    found = [(path, x) for path, x in found if x.ndim or x.device.type != "cpu"]
    if not found:
        return ""
    names = [f"{_kind(x)}{label(path).removeprefix('f.')} is on {x.device}" for path, x in found[:SHOWN]]
    more = f" (and {len(found) - SHOWN} more)" if len(found) > SHOWN else ""
    return (
        f"it reads tensors on other devices than y0, which is on {device}: {', '.join(names)}{more}. Move them: "
        "model.to(y0.device) for the parameters and buffers of a module, x.to(y0.device) for a tensor x"
    )


def _kind(x: Tensor) -> str:
    return "f's parameter " if isinstance(x, nn.Parameter) else ""
