"""What two processes do in test_distributed.py: one spawn runs all of it, each case leaves its result."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from gradient_cases import ALL
from ranks import RANKS
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import torchaca
from torchaca.nn import NeuralODE

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
FIXED = {"method": "rk4", "n_steps": 4}


class Field(nn.Module):
    """With a parameter that is used twice, one that f never uses and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        self.scale = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.full((3,), 0.1), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.scale * self.net(self.scale * y) + self.frozen * torch.cos(t)


class Model(nn.Module):
    """Layers around a block, as people build it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.before = nn.Linear(3, 3, bias=False)
        self.block = NeuralODE(Field(), **options)
        self.after = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.block(self.before(x)))


def model(**options: Any) -> Model:
    torch.manual_seed(0)
    return Model(**options).double()


def data() -> Tensor:
    """The first half is small, where f is steep: its rank needs more evaluations."""
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x * torch.tensor([0.01] * 4 + [3.0] * 4, dtype=torch.float64)[:, None]


def share(rank: int) -> Tensor:
    return data().chunk(RANKS)[rank]


def loss(net: nn.Module, x: Tensor) -> Tensor:
    return net(x).square().mean()


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    """By name, whole: sharded ones are gathered."""
    names = (name.removeprefix("module.") for name, _ in net.named_parameters())
    grads = (p.grad for p in net.parameters())
    whole = (g.full_tensor() if g is not None and hasattr(g, "full_tensor") else g for g in grads)
    return {name: None if g is None else g.clone() for name, g in zip(names, whole, strict=True)}


Result = dict[str, Any]


def result(net: Model, wrapped: nn.Module) -> Result:
    return {"nfe": net.block.stats.nfe, "grads": gradients(wrapped)}


def ddp(rank: int, gradient: Any, find_unused: bool = False) -> Result:
    """Two iterations: what the first leaves behind, the second one would stumble over."""
    net = model(gradient=gradient, **TIGHT)
    net.block.f.unused.requires_grad_(find_unused)
    wrapped = DistributedDataParallel(net, find_unused_parameters=find_unused)
    for _ in range(2):
        wrapped.zero_grad()
        loss(wrapped, share(rank)).backward()
    return result(net, wrapped)


def ddp_hooks(rank: int) -> Result:
    """A hook of a parameter and a communication hook see whole gradients, once."""
    net, seen, buckets = model(**TIGHT), [], []
    wrapped = DistributedDataParallel(net)
    net.block.f.scale.register_hook(lambda g: seen.append(g.clone()))

    def reduce(state, bucket):  # torch accepts no annotations that are strings
        buckets.append(bucket.index())
        work = dist.all_reduce(bucket.buffer() / RANKS, async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    wrapped.register_comm_hook(None, reduce)
    loss(wrapped, share(rank)).backward()
    return {**result(net, wrapped), "seen": seen, "buckets": len(buckets)}


def ddp_accumulates(rank: int) -> Result:
    """`no_sync` for all but the last of two parts of a rank's data."""
    net = model(**TIGHT)
    wrapped = DistributedDataParallel(net)
    parts = share(rank).chunk(2)
    with wrapped.no_sync():
        (loss(wrapped, parts[0]) / 2).backward()
    (loss(wrapped, parts[1]) / 2).backward()
    return result(net, wrapped)


def fsdp(rank: int, gradient: Any, **sharding: Any) -> Result:
    """Layers and the whole block sharded, then the model: parameters are gathered once for a whole solve."""
    net = model(gradient=gradient, **TIGHT)
    for part in (net.before, net.block, net.after):
        fully_shard(part, **sharding)
    fully_shard(net)
    for _ in range(2):
        net.zero_grad()
        loss(net, share(rank)).backward()
    return result(net, net)


def fsdp_inside(rank: int, gradient: Any, **options: Any) -> Result:
    """f itself is sharded: each evaluation gathers."""
    net = model(gradient=gradient, **options)
    fully_shard(net.block.f)
    try:
        loss(net, share(rank)).backward()
    except ValueError as error:
        return {"refused": str(error)}
    inside = [p for p in net.parameters() if type(p).__name__ != "DTensor" and p.grad is not None]
    for p in inside:
        dist.all_reduce(p.grad)
        p.grad /= RANKS
    return result(net, net)


def fsdp_inside_without_grad(rank: int) -> Result:
    net = model(**TIGHT)
    fully_shard(net.block.f)
    try:
        with torch.no_grad():
            net(share(rank))
    except ValueError as error:
        return {"refused": str(error)}
    return {}


CASES: dict[str, Any] = {
    **{f"ddp {g}": (ddp, g) for g in ALL},
    "ddp sqrt": (ddp, torchaca.ACA(checkpoints="sqrt")),
    "ddp none": (ddp, torchaca.ACA(checkpoints="none")),
    "ddp stagewise": (ddp, torchaca.ACA(stagewise=True)),
    **{f"ddp find-unused {g}": (ddp, g, True) for g in ALL},
    "ddp hooks": (ddp_hooks,),
    "ddp accumulates": (ddp_accumulates,),
}
SHARDED: dict[str, Any] = {
    **{f"fsdp {g}": (fsdp, g) for g in ALL},
    "fsdp sqrt": (fsdp, torchaca.ACA(checkpoints="sqrt")),
}
INSIDE: dict[str, Any] = {
    **{f"inside {g}": (fsdp_inside, g) for g in ALL},
    "inside none": (fsdp_inside, torchaca.ACA(checkpoints="none")),
}


def work(rank: int) -> dict[str, Any]:
    """All cases in one process group."""
    results = {name: case(rank, *arguments) for name, (case, *arguments) in {**CASES, **SHARDED}.items()}
    for name, (case, gradient) in INSIDE.items():
        results[f"{name} adaptive"] = case(rank, gradient, **TIGHT)
        results[f"{name} fixed"] = case(rank, gradient, **FIXED)
    results["inside no-grad"] = fsdp_inside_without_grad(rank)
    return results
