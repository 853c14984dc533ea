"""A training step of NODE18 beside torchdiffeq in the same network.

    python benchmarks/node18.py [--width 16] [--side 16] [--batch 64] [--rounds 5] [--write docs/results/node18.md]

The network is that of `torchaca run cifar10`; the contestants differ in who solves its blocks, from 0 to 1 at
rtol = atol = 1e-2. All of them have the same weights and images; steps are interleaved, medians. Peak memory: the most
bytes that PyTorch's allocator held in a step beyond what was there before it, counted by PyTorch's profiler in a step
of its own. Heun-Euler is the method of the paper; torchdiffeq's adaptive_heun evaluates f once a step, because it
starts from the last stage of the step before, which is not f(t1, y1). bosh3 is the same method in both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torchdiffeq
from machine import command_line, described, publish, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import torchaca as aca
from torchaca.lab.cifar_node.models import Classifier, Dynamics
from torchaca.nn import NeuralODE

TOLERANCES = {"rtol": 1e-2, "atol": 1e-2}
PEER = "torchdiffeq odeint"
METHODS = {"heun_euler": "adaptive_heun", "bosh3": "bosh3"}
"""Our name -> torchdiffeq's."""


class Counted(Dynamics):
    """Counts its evaluations."""

    calls = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        Counted.calls += 1
        return super().forward(t, z)


class Peer(nn.Module):
    """An ODE block of torchdiffeq's; `landing` makes it step onto t = 1 instead of past it."""

    def __init__(self, f: nn.Module, method: str, solve: Callable[..., Tensor], landing: bool) -> None:
        super().__init__()
        self.f, self.method, self.solve = f, method, solve
        self.options = {"step_t": torch.ones(1)} if landing else None

    def forward(self, z: Tensor) -> Tensor:
        span = torch.tensor([0.0, 1.0])
        return self.solve(self.f, z, span, method=self.method, options=self.options, **TOLERANCES)[-1]


def contestants(width: int, method: str) -> dict[str, Classifier]:
    """The same network by several solvers."""

    def ours(gradient: object) -> Callable[[int], nn.Module]:
        return lambda channels: NeuralODE(
            Counted(channels, 0.01), method=method, gradient=gradient, **TOLERANCES
        )

    def theirs(solve: Callable[..., Tensor], landing: bool = False) -> Callable[[int], nn.Module]:
        return lambda channels: Peer(Counted(channels, 0.01), METHODS[method], solve, landing)

    blocks = {
        "torchaca, aca": ours("aca"),
        'torchaca, ACA(checkpoints="all")': ours(aca.ACA(checkpoints="all")),
        'torchaca, ACA(checkpoints="none")': ours(aca.ACA(checkpoints="none")),
        "torchaca, adjoint": ours("adjoint"),
        PEER: theirs(torchdiffeq.odeint),
        f"{PEER}, landing on t1": theirs(torchdiffeq.odeint, landing=True),
        "torchdiffeq odeint_adjoint": theirs(torchdiffeq.odeint_adjoint),
    }
    made = {}
    for name, block in blocks.items():
        torch.manual_seed(0)
        made[name] = Classifier(width, 10, block)
    return made


def step(net: Classifier, images: Tensor, labels: Tensor) -> tuple[float, int, int]:
    """Seconds of a step without the optimizer's, evaluations of f forward and backward."""
    net.zero_grad()
    Counted.calls = 0
    start = time.perf_counter()
    loss = cross_entropy(net(images), labels)
    forward = Counted.calls
    loss.backward()
    return time.perf_counter() - start, forward, Counted.calls - forward


def peak(net: Classifier, images: Tensor, labels: Tensor) -> float:
    """MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step(net, images, labels)
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def measure(method: str, width: int, side: int, batch: int, rounds: int) -> list[dict[str, object]]:
    """Medians over interleaved rounds, a warm-up round first."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, side, side, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    nets = contestants(width, method)
    found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in nets}
    for _ in range(rounds + 1):
        for name, net in nets.items():
            found[name].append(step(net, images, labels))
    medians = {name: statistics.median(seconds for seconds, *_ in steps[1:]) for name, steps in found.items()}
    peaks = {name: peak(net, images, labels) for name, net in nets.items()}
    return [
        {
            "": name,
            "f calls forward": found[name][-1][1],
            "f calls backward": found[name][-1][2],
            "step, ms": 1e3 * medians[name],
            "of torchdiffeq odeint's": medians[name] / medians[PEER],
            "peak memory, MiB": peaks[name],
            "of its": peaks[name] / peaks[PEER],
        }
        for name in nets
    ]


def main() -> None:
    args = command_line(__doc__, width=16, side=16, batch=64, rounds=5).parse_args()
    torch.set_num_threads(1)
    size = (args.width, args.side, args.batch, args.rounds)
    tables = "\n\n".join(f"## {method}\n\n{table(measure(method, *size))}" for method in METHODS)
    command = "python benchmarks/node18.py --width {} --side {} --batch {} --rounds {}".format(*size)
    about = " ".join(__doc__.split("\n\n")[2].split())
    text = f"""# A training step of NODE18

{about}

Width {args.width}, {args.batch} images of {args.side} x {args.side} pixels, weights at random, float32.

{tables}

{described(command)}
"""
    publish(text, args.write)


if __name__ == "__main__":
    main()
