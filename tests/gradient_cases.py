"""One problem that uses tensors in every way a gradient has to find, and its gradients by name.

Groups of rows of `GRADIENTS`: a new row counts as exact on the accepted grid until it is named in one of the sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import torchaca
from torchaca import ACA, GRADIENTS, METHODS, Adjoint, Solution

DOUBLE = torch.float64

CONTINUOUS = {"adjoint"}  # right up to a tolerance
REVERSING = {"mali"}  # takes reversible methods alone: test_mali.py
THROUGH_SEARCH = {"naive"}  # differentiates the step-size search: exact, but of another function
REPLAYED = ACA(checkpoints="all")  # the paper's algorithm, which is not the default
ALL = [*sorted(set(GRADIENTS) - REVERSING), REPLAYED]
EXACT = [name for name in ALL if name not in CONTINUOUS]
FROZEN = [name for name in EXACT if name not in THROUGH_SEARCH]
"""Exact with step sizes held constant: equal to `direct`."""
ADAPTIVE = sorted(name for name, method in METHODS.items() if method.adaptive)


SETTINGS = {
    **{name: make() for name, make in GRADIENTS.items()},
    **{f"aca-{kept}": ACA(checkpoints=kept) for kept in ("all", "none", "sqrt", "binomial", 2)},
    "aca-budget": ACA(memory_budget="1MB"),
    "aca-stagewise": ACA(stagewise=True),
    "adjoint-interpolated": Adjoint(state="interpolated"),
    "adjoint-gauss": Adjoint(quadrature="gauss"),
}
"""Every row of GRADIENTS, and the settings that store or evaluate something else on the way."""


def takes(gradient: str) -> list[str]:
    """The methods that a setting takes, dopri5 first if it is one of them."""
    if gradient not in REVERSING:
        return ["dopri5", *(name for name in METHODS if name != "dopri5")]
    return ["alf", "reversible_heun"]


def others(names: Sequence[str]) -> list[str]:
    """All but `direct`, which they are compared with."""
    return [name for name in names if name != "direct"]


class Net(nn.Module):
    """A matrix that is used twice, a 0-dim factor, a frozen offset and a parameter without effect."""

    def __init__(self, weight: Tensor, scale: Tensor, frozen: Tensor, unused: Tensor):
        super().__init__()
        self.weight, self.scale = nn.Parameter(weight), nn.Parameter(scale)
        self.frozen = nn.Parameter(frozen, requires_grad=False)
        self.unused = nn.Parameter(unused)
        self.tied = self.weight

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        inner = torch.tanh(self.weight @ z + self.frozen * torch.sin(3 * t))
        return self.scale * (self.tied.T @ inner)


class Everything:
    """dy/dt = f(t, y, a, {"b": b}) for y = {"z": (3,), "l": (1,)}, as a function of the leaves in `inputs`.

    f uses a module, a captured leaf, a captured tensor with a history (of which a part is used directly as well)
    and nested arguments. With `differentiate_times`, the times are one of the leaves.
    """

    def __init__(
        self,
        times: Sequence[float],
        differentiate_times: bool = True,
        dtypes: Sequence[Any] = (DOUBLE, DOUBLE),
    ):
        generator = torch.Generator().manual_seed(7)

        def leaf(*shape: int) -> Tensor:
            return (0.6 * torch.randn(shape, generator=generator, dtype=DOUBLE)).requires_grad_()

        self.net = Net(leaf(3, 3).detach(), leaf().detach() + 1, leaf(3).detach(), leaf(2).detach())
        self.dtypes = tuple(dtypes)
        self.times = torch.tensor(times, dtype=DOUBLE, requires_grad=differentiate_times)
        self.inputs = {
            "z0": leaf(3),
            "l0": leaf(1),
            "root": leaf(3),
            "captured": leaf(3),
            "a": leaf(3),
            "b": leaf(),
            **{f"net.{name}": p for name, p in self.net.named_parameters() if p.requires_grad},
        }
        if differentiate_times:
            self.inputs["times"] = self.times

    def solve(self, gradient: str, **options: Any) -> Solution:
        x, net = self.inputs, self.net
        history = torch.sin(2 * x["root"]) + 0.1 * x["captured"]
        z_dtype, l_dtype = self.dtypes

        def f(t: Tensor, y: dict[str, Tensor], a: Tensor, rest: dict[str, Tensor]) -> dict[str, Tensor]:
            z, l = y["z"].to(DOUBLE), y["l"].to(DOUBLE)  # noqa: E741
            dz = net(t, z) + history * torch.cos(2 * t) + x["root"] * t - rest["b"] * a * z
            dl = (z * x["captured"]).sum() - l * torch.sin(t)
            return {"z": dz.to(z_dtype), "l": dl.to(l_dtype)}

        y0 = {"z": 2 * x["z0"].to(z_dtype), "l": x["l0"].to(l_dtype)}
        args = (3 * x["a"], {"b": x["b"]})
        return torchaca.solve(f, y0, self.times, args=args, gradient=gradient, **options)

    def gradients(self, gradient: str, **options: Any) -> dict[str, Tensor | None]:
        return gradients_of(self.solve(gradient, **options).ys, self.inputs)


def loss_of(outputs: Any) -> Tensor:
    """A scalar in which every number of every output has its own weight."""
    generator = torch.Generator().manual_seed(11)
    total = torch.zeros((), dtype=DOUBLE)
    for leaf in pytree.tree_leaves(outputs):
        parts = torch.view_as_real(leaf) if leaf.is_complex() else leaf
        total = total + (torch.randn(parts.shape, generator=generator, dtype=DOUBLE) * parts).sum()
    return total


def gradients_of(
    outputs: Any, inputs: dict[str, Tensor], loss: Callable[[Any], Tensor] = loss_of
) -> dict[str, Any]:
    """dL / d input, by name; None where there is none."""
    grads = torch.autograd.grad(loss(outputs), list(inputs.values()), allow_unused=True)
    return dict(zip(inputs, grads, strict=True))


def differences(got: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    """max|got - want| / max|want| of every gradient; a missing one counts as zeros."""
    assert got.keys() == want.keys()
    found = {}
    for name, right in want.items():
        mine = got[name]
        if right is None:
            found[name] = 0.0 if mine is None else mine.abs().max().item()
            continue
        assert torch.isfinite(right).all(), name
        mine = torch.zeros_like(right) if mine is None else mine
        size = max(right.abs().max().item(), 1e-3)
        found[name] = (mine - right).abs().max().item() / size
    return found


def assert_same(got: dict[str, Any], want: dict[str, Any], tolerance: float) -> None:
    worse = {name: d for name, d in differences(got, want).items() if not d <= tolerance}
    assert not worse, f"relative differences above {tolerance}: {worse}"


def central_difference(program: Callable[[Tensor], Tensor], at: Tensor, eps: float = 1e-6) -> Tensor:
    """The gradient of a program with a 0-dim result, without autograd."""
    base = at.detach()
    slopes = []
    with torch.no_grad():
        for i in range(base.numel()):
            shift = torch.zeros(base.numel(), dtype=base.dtype)
            shift[i] = eps
            shift = shift.reshape(base.shape)
            slopes.append((program(base + shift) - program(base - shift)) / (2 * eps))
    return torch.stack(slopes).reshape(base.shape)


class Counter:
    """f that counts its calls and keeps (t, y) of each."""

    def __init__(self, f: Callable[..., Any]):
        self.f = f
        self.calls = 0
        self.seen: list[tuple[float, Tensor]] = []

    def __call__(self, t: Tensor, y: Any, *args: Any) -> Any:
        self.calls += 1
        if isinstance(y, Tensor):
            self.seen.append((t.item(), y.detach().clone()))
        return self.f(t, y, *args)
