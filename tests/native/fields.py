"""Vector fields as people write them: f(t, y), its modules, and a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from generated import N
from torch import Tensor, nn
from torch.nn import functional as F

D = torch.float64


@dataclass(frozen=True)
class Case:
    """`f(m, t, y)` with a state of that shape, N where it may change."""

    name: str
    f: Callable[[Any, Tensor, Tensor], Tensor]
    shape: tuple[int, ...]
    modules: Callable[[], list[nn.Module]] = list
    fixed: bool = False  # PyTorch captures it for this size alone

    def made(self, dtype: torch.dtype = D) -> nn.Module:
        """The module `(t, y)`, always with the same weights."""
        torch.manual_seed(0)
        return Module(self.f, self.modules()).to(dtype)


class Module(nn.Module):
    def __init__(self, f: Callable[..., Tensor], modules: list[nn.Module]) -> None:
        super().__init__()
        self.m, self.f = nn.ModuleList(modules), f

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(self.m, t, y)


def mlp(act: Callable[[], nn.Module], *sizes: int) -> nn.Sequential:
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1])


def linears(*sizes: tuple[int, int]) -> Callable[[], list[nn.Module]]:
    return lambda: [nn.Linear(*size) for size in sizes]


def three_bodies(m, t, y):
    x, v = y[:3], y[3:]
    apart = x[None] - x[:, None]
    cubed = (apart.square().sum(-1, keepdim=True) + torch.eye(3, dtype=y.dtype)[..., None]) ** 1.5
    return torch.cat([v, (apart / cubed).sum(1)])


def attention(m, t, y):
    heads = lambda x: x.reshape(*x.shape[:-1], 2, 4).transpose(-3, -2)  # noqa: E731
    q, k, v = (heads(x) for x in m[0](y).chunk(3, -1))
    weights = torch.softmax(q @ k.mT / 2, -1)
    return m[1]((weights @ v).transpose(-3, -2).reshape(y.shape)) - y


def fused_attention(m, t, y):
    q, k, v = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in m[0](y).chunk(3, -1))
    return m[1](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)) - y


def gru(m, t, y):
    r, z = torch.sigmoid(m[0](y)), torch.sigmoid(m[1](y))
    return (1 - z) * (torch.tanh(m[2](r * y)) - y)


def hamiltonian(m, t, y):
    energy = torch.func.grad(lambda x: m[0](x).sum())(y)
    q, p = energy.chunk(2, -1)
    return torch.cat([p, -q], -1)


def divergence(m, t, y):
    """A continuous normalizing flow with the exact trace."""
    x = y[:, :2]
    f = lambda x: torch.tanh(m[0](x)) @ m[1].weight.T  # noqa: E731
    jacobian = torch.func.vmap(torch.func.jacrev(f))(x)
    return torch.cat([f(x), -jacobian.diagonal(dim1=1, dim2=2).sum(-1, keepdim=True)], -1)


def hutchinson(m, t, y):
    """A continuous normalizing flow with a fixed direction."""
    x = y[:, :3]
    e = torch.ones_like(x)
    f, pull = torch.func.vjp(m[0], x)
    return torch.cat([f, -(pull(e)[0] * e).sum(-1, keepdim=True)], -1)


def energy_model(m, t, y):
    return -torch.func.grad(lambda x: F.softplus(m[0](x)).sum())(y)


def lagrangian(m, t, y):
    """Accelerations of a learned Lagrangian of one coordinate: second derivatives inside of f."""
    energy = lambda q, v: (0.5 * v.square() * (1 + m[0](q).square()) - q.square()).sum()  # noqa: E731
    q, v = y[:, :1], y[:, 1:]
    force = torch.func.grad(energy, 0)(q, v)
    slope = torch.func.grad(energy, 1)
    _, mass = torch.func.jvp(lambda x: slope(q, x), (v,), (torch.ones_like(v),))
    _, drift = torch.func.jvp(lambda x: slope(x, v), (q,), (v,))
    return torch.cat([v, (force - drift) / mass], 1)


def controlled(m, t, y):
    """A control that is interpolated linearly at t."""
    times = torch.linspace(0, 1, 9, dtype=y.dtype)
    values = torch.cos(3 * times)
    i = torch.searchsorted(times, t.reshape(1), right=True).clamp(1, 8)
    t0, t1 = times[i - 1], times[i]
    u = values[i - 1] + (values[i] - values[i - 1]) * (t - t0) / (t1 - t0)
    return torch.tanh(m[0](y)) + u


def neural_cde(m, t, y):
    slope = torch.stack([torch.ones_like(t), torch.cos(t), -torch.sin(t)])
    return (torch.tanh(m[0](y)).reshape(-1, 4, 3) @ slope[:, None]).squeeze(-1)


def time_embedding(m, t, y):
    angles = t * 2.0 ** torch.arange(4, dtype=y.dtype)
    features = torch.cat([angles.sin(), angles.cos()]).expand(y.shape[0], 8)
    return m[0](torch.cat([y, features], 1))


def graph_network(m, t, y):
    source = torch.tensor([0, 1, 2, 3, 4, 0])
    target = torch.tensor([1, 2, 3, 4, 0, 2])
    messages = torch.tanh(m[0](torch.cat([y[source], y[target]], -1)))
    return m[1](torch.zeros(5, 6, dtype=y.dtype).index_add(0, target, messages)) - y


def chemistry(m, t, y):
    a, b, c = y.unbind(-1)
    slow, fast, last = 0.04 * a, 10.0 * b * c, 3.0 * b**2
    return torch.stack([fast - slow, slow - fast - last, last], -1)


def reaction_diffusion(m, t, y):
    laplace = y.roll(1, -1) + y.roll(-1, -1) + y.roll(1, -2) + y.roll(-1, -2) - 4 * y
    u, v = y[:, 0], y[:, 1]
    return 0.1 * laplace + torch.stack([u - u**3 - v, u - v], 1)


def burgers(m, t, y):
    padded = F.pad(y, (1, 1))
    right, left = padded[:, 2:], padded[:, :-2]
    return -y * (right - left) / 2 + 0.1 * (right - 2 * y + left)


def in_place(m, t, y):
    dy = torch.zeros_like(y)
    dy[:, 0] = y[:, 1]
    dy[:, 1] = -torch.sin(y[:, 0]) - 0.1 * y[:, 1]
    return dy


def masked_in_place(m, t, y):
    """A constant, and a tensor of its own that f fills."""
    dy = -y * torch.tensor([1.0, 2.0], dtype=y.dtype)
    dy[:, 0] += y[:, 1]
    return dy


def augmented(m, t, y):
    return torch.cat([m[0](y)[:, :2], y.chunk(2, 1)[0][:, :1] * t], 1)


def gated(m, t, y):
    return torch.tanh(m[0](y) * torch.sigmoid(m[1](t.reshape(1, 1))) + m[2](t.reshape(1, 1)))


def saturated(m, t, y):
    x = torch.where(y.abs() > 1, y.sign(), y)
    return -x + torch.clamp(y.roll(1, -1), -0.5, 0.5) + torch.minimum(x, torch.maximum(y, x * 0.5))


def hyper_network(m, t, y):
    weights = m[0](t.reshape(1)).reshape(2, 3, 3)
    return torch.tanh(y @ weights[0]) @ weights[1]


def switched(m, t, y):
    return torch.where(t < 0.5, -y, torch.exp(-y) * m[0](y))


def mixture(m, t, y):
    experts = torch.stack([m[0](y), m[1](y), m[2](y)], 1)
    return torch.einsum("be,bed->bd", torch.log_softmax(y, 1).exp(), experts)


def complex_rotation(m, t, y):
    angle = torch.atan2(y[:, 1], y[:, 0])
    r = torch.hypot(y[:, 0], y[:, 1])
    return torch.stack([-r * angle.sin(), r * angle.cos()], 1) * (1 - r[:, None] ** 2)


def kuramoto(m, t, y):
    return 1.0 + torch.sin(y[..., None, :] - y[..., :, None]).mean(-1)


def bilinear(m, t, y):
    return torch.einsum("bi,bj,kij->bk", y, y, m[0].weight.reshape(3, 3, 3)) - y.cumsum(1).flip(1)


ACTIVATIONS = (
    *(nn.Tanh, nn.ReLU, nn.ELU, nn.SELU, nn.SiLU, nn.Softplus, nn.GELU, nn.Sigmoid, nn.LeakyReLU, nn.Mish),
    *(nn.Hardtanh, nn.Softsign, nn.CELU, nn.Hardswish, nn.LogSigmoid, nn.Tanhshrink),
)
ROWS, WIDE, PAIRS = (N, 3), (N, 5, 8), (N, 2)
FIELDS = (
    *(
        Case(act.__name__, lambda m, t, y: m[0](y), ROWS, lambda act=act: [mlp(act, 3, 16, 16, 3)])
        for act in ACTIVATIONS
    ),
    Case(
        "cat-t",
        lambda m, t, y: m[0](torch.cat([y, t.expand(y.shape[0], 1)], 1)),
        ROWS,
        lambda: [mlp(nn.Tanh, 4, 16, 3)],
    ),
    Case(
        "layer-norm", lambda m, t, y: m[0](m[1](y)), ROWS, lambda: [mlp(nn.Tanh, 3, 16, 3), nn.LayerNorm(3)]
    ),
    Case("group-norm", lambda m, t, y: torch.tanh(m[0](y)), (N, 4), lambda: [nn.GroupNorm(2, 4)]),
    Case("attention", attention, WIDE, linears((8, 24), (8, 8))),
    Case("fused-attention", fused_attention, WIDE, linears((8, 24), (8, 8))),
    Case("three-axes", lambda m, t, y: torch.tanh(m[0](y)), (N, 5, 4), linears((4, 4))),
    Case("spiral", lambda m, t, y: y**3 @ torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=y.dtype), PAIRS),
    Case(
        "lotka",
        lambda m, t, y: torch.stack([y[..., 0] * (1.5 - y[..., 1]), y[..., 1] * (y[..., 0] - 3)], -1),
        PAIRS,
    ),
    Case(
        "pendulum", lambda m, t, y: torch.stack([y[:, 1], -y[:, 0].sin() - 0.1 * y[:, 1] + t.cos()], 1), PAIRS
    ),
    Case(
        "lorenz",
        lambda m, t, y: torch.stack(
            [10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]]
        ),
        (3,),
    ),
    Case(
        "van-der-pol",
        lambda m, t, y: torch.stack([y[:, 1], 5 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], 1),
        PAIRS,
    ),
    Case("scalar", lambda m, t, y: -y * t + y.sin(), ()),
    Case("three-bodies", three_bodies, (6, 3)),
    Case("gru", gru, (N, 4), linears((4, 4), (4, 4), (4, 4))),
    Case(
        "gru-cell",
        lambda m, t, y: m[0](torch.ones_like(y[:, :2]), y) - y,
        (N, 4),
        lambda: [nn.GRUCell(2, 4)],
        fixed=True,
    ),
    Case(
        "einsum",
        lambda m, t, y: torch.einsum("bi,ij->bj", torch.tanh(y), m[0].weight),
        (N, 4),
        linears((4, 4)),
    ),
    Case(
        "normalized",
        lambda m, t, y: m[0](y) - y / torch.linalg.vector_norm(y, dim=-1, keepdim=True),
        ROWS,
        linears((3, 3)),
    ),
    Case("hamiltonian", hamiltonian, (N, 4), lambda: [mlp(nn.Tanh, 4, 8, 1)]),
    Case("divergence", divergence, ROWS, linears((2, 5), (5, 2))),
    Case("hutchinson", hutchinson, (N, 4), lambda: [mlp(nn.Tanh, 3, 8, 3)]),
    Case("energy-model", energy_model, ROWS, lambda: [mlp(nn.SiLU, 3, 8, 1)]),
    Case("lagrangian", lagrangian, PAIRS, lambda: [mlp(nn.Tanh, 1, 6, 1)], fixed=True),
    Case("controlled", controlled, ROWS, linears((3, 3))),
    Case("neural-cde", neural_cde, (N, 4), linears((4, 12))),
    Case("time-embedding", time_embedding, ROWS, lambda: [mlp(nn.SiLU, 11, 8, 3)]),
    Case("graph-network", graph_network, (5, 3), linears((6, 6), (6, 3))),
    Case("chemistry", chemistry, ROWS),
    Case("reaction-diffusion", reaction_diffusion, (N, 2, 5, 6)),
    Case("burgers", burgers, (N, 9)),
    Case("in-place", in_place, PAIRS),
    Case("masked-in-place", masked_in_place, PAIRS),
    Case("augmented", augmented, ROWS, linears((3, 3))),
    Case("gated", gated, ROWS, lambda: [nn.Linear(3, 3), nn.Linear(1, 3), nn.Linear(1, 3, bias=False)]),
    Case("saturated", saturated, ROWS),
    Case("hyper-network", hyper_network, ROWS, linears((1, 18))),
    Case("switched", switched, ROWS, linears((3, 3))),
    Case("mixture", mixture, ROWS, linears((3, 3), (3, 3), (3, 3))),
    Case("rotation", complex_rotation, PAIRS),
    Case("kuramoto", kuramoto, (N, 5)),
    Case("bilinear", bilinear, ROWS, linears((9, 3))),
    Case(
        "cubic-features",
        lambda m, t, y: m[0](torch.cat([y, y**2, y[:, :1] * y[:, 1:]], 1)),
        PAIRS,
        linears((5, 2)),
    ),
    Case("residual", lambda m, t, y: y + F.glu(m[0](F.layer_norm(y, (4,)))), (N, 4), linears((4, 8))),
    Case("wide", lambda m, t, y: m[0](y), (N, 64), lambda: [mlp(nn.Tanh, 64, 64, 64)]),
)
VARIED = tuple(case for case in FIELDS if case.name not in {act.__name__ for act in ACTIVATIONS[1:]})
"""Without the activations of the rows of the table, but for one."""
