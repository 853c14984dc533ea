"""Where the time of a minibatch of `torchaca run hopper` goes at the paper's size, and what shortens it.

    python benchmarks/hopper_profile.py [--rounds 7] [--seen 20] [--write docs/results/hopper/profile.md]

Waves instead of a hopper, float32, one thread; encoder, generator (the solve), decoder and optimizer apart, forward and
backward. All cases are interleaved in one process; medians of the processor's time. The generator's weights are twice
the initial ones, so that it takes about as many evaluations as a trained one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from machine import command_line, described, publish, table
from torch import Tensor

from torchaca import ACA
from torchaca.lab.hopper.data import seen
from torchaca.lab.hopper.outcome import matmul
from torchaca.nn import LatentODE
from torchaca.nn.series import Series, series

WINDOW, FEATURES, TRAINED = 100, 14, 8000


@dataclass(frozen=True)
class Case:
    """A way to compute a minibatch; the first one is the public code's recipe in eager PyTorch."""

    said: str
    matmul: str = "highest"
    compile: bool | str = False
    own: bool = False
    replay: bool = False
    samples: int = 3
    batch: int = 50


CASES = (
    Case("public recipe, steps taken again", replay=True),
    Case("graphs of the steps kept"),
    Case('kept, generator `compile="native"`', compile="native"),
    Case('kept, matrix products "medium"', matmul="medium"),
    Case('"medium", native', matmul="medium", compile="native"),
    Case('"medium", encoder between the seen points', matmul="medium", own=True),
    Case("and one latent sample", matmul="medium", own=True, samples=1),
    Case("and native", matmul="medium", own=True, samples=1, compile="native"),
    Case("not native, batch of 100", matmul="medium", own=True, samples=1, batch=100),
)


class Minibatch:
    """The model and data of a case."""

    def __init__(self, case: Case, fraction: float) -> None:
        torch.manual_seed(0)
        self.case = case
        gradient = ACA(checkpoints="all") if case.replay else ACA()
        options: dict[str, Any] = {"gradient": gradient, "rtol": 1e-3, "atol": 1e-4, "compile": case.compile}
        self.model = LatentODE(FEATURES, start=0.0, **options)
        with torch.no_grad():
            for parameter in self.model.dynamics.parameters():
                parameter.mul_(2)
        self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=0.0)
        self.times = torch.arange(WINDOW) / (2 * WINDOW)
        self.x = torch.sin(6 * torch.rand(case.batch, 1, FEATURES) + 10 * self.times[None, :, None])
        self.mask = seen(case.batch, WINDOW, fraction)

    def observed(self) -> Series:
        """What the encoder reads."""
        if not self.case.own:
            return series(self.x, self.times, self.mask[..., None].expand_as(self.x), FEATURES)
        index = self.mask.nonzero()[:, 1].view(len(self.x), -1)
        values = self.x.gather(1, index[..., None].expand(-1, -1, FEATURES))
        return series(values, self.times[index], None, FEATURES)

    def seconds(self) -> dict[str, float]:
        """The processor's time of each part of one step."""
        taken: dict[str, float] = {}
        model, observed = self.model, self.observed()
        torch.manual_seed(1)
        with matmul(self.case.matmul):
            with clock(taken, "encoder"):
                mean, std = model.encoder(observed, torch.zeros(()))
            z0 = cut(mean + std * torch.randn(self.case.samples, *mean.shape))
            with clock(taken, "generator"):
                ys = model.solved(z0, self.times)
            read = cut(ys)
            with clock(taken, "decoder"):
                (model.decoder(read).permute(1, 2, 0, 3) - self.x).square().mean().backward()
            with clock(taken, "generator, backward"):
                ys.backward(read.grad)
            with clock(taken, "encoder, backward"):
                (mean.sum() + std.sum()).backward()
            with clock(taken, "optimizer"):
                self.optimizer.step()
                self.optimizer.zero_grad()
        return taken


def cut(found: Tensor) -> Tensor:
    """The same values without their history."""
    return found.detach().requires_grad_(True)


@contextmanager
def clock(taken: dict[str, float], part: str) -> Iterator[None]:
    """Note how long the processor takes."""
    begin = time.process_time()
    yield
    taken[part] = time.process_time() - begin


def profile(rounds: int, fraction: float) -> list[dict[str, object]]:
    """A line for each case: milliseconds of each part, and seconds of an epoch."""
    made = [Minibatch(case, fraction) for case in CASES]
    taken: list[list[Mapping[str, float]]] = [[] for _ in made]
    for number in range(rounds + 2):
        for minibatch, lines in zip(made, taken, strict=True):
            found = minibatch.seconds()
            if number >= 2:
                lines.append(found)
    rows: list[dict[str, object]] = []
    for minibatch, lines in zip(made, taken, strict=True):
        parts = {part: statistics.median(line[part] for line in lines) for part in lines[0]}
        whole = sum(parts.values())
        rows.append(
            {
                "minibatch": minibatch.case.said,
                **{f"{part}, ms": 1e3 * value for part, value in parts.items()},
                "all, ms": 1e3 * whole,
                "s per epoch": whole * TRAINED / minibatch.case.batch,
                "NFE": minibatch.model.stats.nfe,
            }
        )
    return rows


def products() -> list[dict[str, object]]:
    """How fast products are in each precision, and how far from those in float64."""
    torch.manual_seed(0)
    x, w = torch.randn(150, 300), 0.1 * torch.randn(300, 300)
    rows: list[dict[str, object]] = []
    for precision in ("highest", "medium"):
        with matmul(precision):
            times = []
            for _ in range(300):
                begin = time.process_time()
                torch.mm(x, w)
                times.append(time.process_time() - begin)
            error = (torch.mm(x, w).double() - x.double() @ w.double()).abs().max()
        speed = 2 * x.numel() * w.shape[1] / statistics.median(times) / 1e9
        rows.append({"precision": f'"{precision}"', "GFLOP/s": speed, "largest error": f"{error:.1e}"})
    return rows


def page(rounds: int, percent: int, command: str) -> str:
    """The results as a page."""
    return (
        f"# Hopper: where a minibatch's time goes\n\n{described(command)}\n\n"
        f"The paper's size (300 units, 4 hidden layers), {percent} % of {WINDOW} points seen. Milliseconds of the "
        f"processor's time, medians of {rounds} interleaved rounds; an epoch is {TRAINED} series. Forward and backward "
        "of the decoder are one number.\n\n"
        f"{table(profile(rounds, percent / 100))}\n\n"
        "Products of 150 x 300 by 300 x 300 numbers by `torch.set_float32_matmul_precision`, and what their results "
        'are off: with "medium", oneDNN multiplies instead of MKL. On a processor without matrix tiles for bfloat16 '
        "it does so in float32, as the errors show.\n\n"
        f"{table(products())}\n"
    )


def main() -> None:
    args = command_line(__doc__, rounds=7, seen=20).parse_args()
    torch.set_num_threads(1)
    command = f"python benchmarks/hopper_profile.py --rounds {args.rounds} --seen {args.seen}"
    publish(page(args.rounds, args.seen, command), args.write)


if __name__ == "__main__":
    main()
