"""Seconds per epoch of the hopper's latent ODE beside the same model on torchdiffeq, and its encoder by itself.

    python benchmarks/latent_ode.py [--rounds 5] [--units 100] [--layers 1] [--write docs/results/latent_ode.md]

One minibatch of 50 series x 100 points x 14 dimensions, 10 % of them seen, dopri5 rtol 1e-3 atol 1e-4, 3 samples, one
thread, float32: loss and gradient, all contestants interleaved in one process; medians of the processor's time, for
the 160 minibatches of an epoch of 8,000 series. Weights are three times the initial ones, so that the solver has
something to do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torchdiffeq
from machine import command_line, described, publish, table
from peers.memory import resident_peak
from torch import Tensor, nn

from torchaca.core import Stats
from torchaca.nn import LatentODE
from torchaca.nn.series import series

SERIES, POINTS, FEATURES, SEEN = 50, 100, 14, 10
BATCHES = 160
OPTIONS = {"rtol": 1e-3, "atol": 1e-4}


class Counted(nn.Module):
    """The dynamics as torchdiffeq calls them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.calls = 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        return self.net(z)


class OnTorchdiffeq(LatentODE):
    """The same model, its ODE solved by torchdiffeq."""

    solver: Callable[..., Tensor] = torchdiffeq.odeint

    def solved(self, z0: Tensor, times: Tensor) -> Tensor:
        self.field = Counted(self.dynamics)
        # Two equal times are none to torchdiffeq.
        ys = type(self).solver(self.field, z0, times[1:], method="dopri5", **OPTIONS)
        self.stats = Stats(nfe=self.field.calls)
        return torch.cat((ys[:1], ys))


class OnTorchdiffeqAdjoint(OnTorchdiffeq):
    """The same, with its continuous adjoint."""

    solver = torchdiffeq.odeint_adjoint


CONTESTANTS: dict[str, tuple[type[LatentODE], dict[str, object]]] = {
    "torchaca, aca": (LatentODE, {"gradient": "aca"}),
    "torchaca, aca, compile=True": (LatentODE, {"gradient": "aca", "compile": True}),
    "torchaca, direct": (LatentODE, {"gradient": "direct"}),
    "torchaca, naive": (LatentODE, {"gradient": "naive"}),
    "torchaca, adjoint": (LatentODE, {"gradient": "adjoint"}),
    "torchdiffeq odeint": (OnTorchdiffeq, {}),
    "torchdiffeq odeint_adjoint": (OnTorchdiffeqAdjoint, {}),
}


def models(units: int, layers: int) -> dict[str, LatentODE]:
    """The contestants, all with the same weights."""
    made = {}
    for name, (kind, options) in CONTESTANTS.items():
        torch.manual_seed(0)
        model = kind(FEATURES, units=units, layers=layers, gru_units=50, **{**OPTIONS, **options})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
        made[name] = model
    return made


def minibatch() -> tuple[Tensor, Tensor, Tensor]:
    """Waves, their times, and which points are seen."""
    torch.manual_seed(1)
    times = torch.arange(POINTS) / 200
    values = torch.sin(6 * torch.rand(SERIES, 1, FEATURES) + 10 * times[None, :, None])
    mask = (torch.rand(SERIES, POINTS).argsort(1) < SEEN)[..., None].expand_as(values)
    return values, times, mask


def train(model: LatentODE) -> None:
    """One loss and its gradient."""
    values, times, mask = minibatch()
    torch.manual_seed(2)
    model.zero_grad()
    model.loss(values, times, mask, targets=values, samples=3).loss.backward()


def encode(model: LatentODE, one_by_one: bool) -> None:
    """The encoder alone: all series in one loop over the times, or each in a loop of its own."""
    values, times, mask = minibatch()
    parts = zip(values.split(1), mask.split(1), strict=True) if one_by_one else [(values, mask)]
    total = torch.zeros(())
    for x, seen in parts:
        mean, std = model.encode(x, times, seen)
        total = total + mean.sum() + std.sum()
    total.backward()


RAGGED = {
    'steps="joint", to the union of times': {"steps": "joint"},
    "steps of each series": {"steps": "own"},
    "steps of each series, compile=True": {"steps": "own", "compile": True},
}


def ragged(units: int, layers: int, rounds: int) -> list[dict[str, object]]:
    """What a minibatch costs whose series have times of their own: seconds, the peak of memory, outputs computed."""
    torch.manual_seed(1)
    times = torch.rand(SERIES, POINTS).sort(1).values
    values = torch.sin(6 * torch.rand(SERIES, 1, FEATURES) + 10 * times[..., None])
    runs, made = {}, {}
    for name, options in RAGGED.items():
        torch.manual_seed(0)
        model = LatentODE(FEATURES, units=units, layers=layers, gru_units=50, start=0.0, **OPTIONS, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)

        def run(model: LatentODE = model) -> None:
            """The decoder and its ODE alone, from some z0."""
            torch.manual_seed(2)
            observed = series(values, times, None, FEATURES)
            mean = torch.zeros(SERIES, 15, requires_grad=True)
            model.zero_grad()
            model._predict(observed, mean, torch.ones(SERIES, 15), None, 3).square().mean().backward()

        runs[name], made[name] = run, model
    taken = seconds(runs, rounds)
    return [
        {
            "decoder, forward and backward": name,
            "s per epoch": taken[name] * BATCHES,
            "peak, MB": (resident_peak(run) or 0) / 1e6,
            "NFE forward": made[name].stats.nfe,
        }
        for name, run in runs.items()
    ]


def seconds(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Medians over interleaved rounds, after a warm-up."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def page(rounds: int, units: int, layers: int, command: str) -> str:
    """The results as a page."""
    made = models(units, layers)
    taken = seconds({name: lambda model=model: train(model) for name, model in made.items()}, rounds)
    ours = taken["torchaca, aca"]
    rows: list[dict[str, object]] = [
        {
            "model": name,
            "s per epoch": value * BATCHES,
            "of aca's": value / ours,
            "NFE forward": made[name].stats.nfe,
            "NFE backward": _backward(made[name]),
        }
        for name, value in taken.items()
    ]
    model = made["torchaca, aca"]
    alone = seconds({"all": lambda: encode(model, False), "each": lambda: encode(model, True)}, 1)
    encoder: list[dict[str, object]] = [
        {"encoder, forward and backward": "one loop over the times", "s per epoch": alone["all"] * BATCHES},
        {"encoder, forward and backward": "a loop for each series", "s per epoch": alone["each"] * BATCHES},
    ]
    hidden = f"{layers + 1} hidden layers of {units} units"
    return (
        f"# Latent ODE: seconds per epoch\n\n{described(command)}\n\n"
        f"The model of `torchaca run hopper`, {hidden}: loss and gradient of a minibatch of {SERIES} series of "
        f"{POINTS} points, {SEEN} of them seen, times {BATCHES}. All contestants have the same encoder and weights, "
        "and run interleaved in one process; the processor's time, which other processes do not count in, medians of "
        f"{rounds}.\n\n{table(rows)}\n\n{table(encoder)}\n\n"
        f"The same number of series, each of which has {POINTS} times of its own, so that their union has "
        f"{SERIES * POINTS}: the decoder and its ODE.\n\n{table(ragged(units, layers, rounds))}\n"
    )


def _backward(model: LatentODE) -> object:
    if isinstance(model, OnTorchdiffeq):
        return model.field.calls - model.stats.nfe
    return model.stats.nfe_backward


def main() -> None:
    args = command_line(__doc__, rounds=5, units=100, layers=1).parse_args()
    torch.set_num_threads(1)
    command = "python benchmarks/latent_ode.py"
    command += f" --rounds {args.rounds} --units {args.units} --layers {args.layers}"
    found = page(args.rounds, args.units, args.layers, command)
    publish(found, args.write)


if __name__ == "__main__":
    main()
