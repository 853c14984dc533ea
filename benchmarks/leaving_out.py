"""What it costs to leave samples that are done out of a batch, in trials of those that are carried.

    python -m benchmarks.leaving_out

The break-even of `torchaca.loops.rows.PRICE`: of batches in which one sample after the other is done.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from torchaca import solve
from torchaca.loops.row_search import Search

SIZES = (16, 256, 4096, 40_000)


class Timed:
    """A method of the search, and what it took in all."""

    def __init__(self, name: str) -> None:
        self.name, self.inner = name, getattr(Search, name)
        self.seconds, self.calls = 0.0, 0

    def __enter__(self) -> Timed:
        def timed(search: Search, *args: Any) -> Any:
            since = perf_counter()
            found = self.inner(search, *args)
            self.seconds, self.calls = self.seconds + perf_counter() - since, self.calls + 1
            return found

        setattr(Search, self.name, timed)
        return self

    def __exit__(self, *raised: Any) -> None:
        setattr(Search, self.name, self.inner)

    @property
    def each(self) -> float:
        """Milliseconds."""
        return self.seconds / max(self.calls, 1) * 1e3


def problems() -> dict[str, tuple[Callable[..., Tensor], int]]:
    """Each f, and the size of a sample."""
    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 8)).double()
    return {
        "linear": (lambda t, y, rate: -rate[:, None] * y, 1),
        "network": (lambda t, y, rate: rate[:, None] * net(y), 8),
    }


@torch.no_grad()
def main() -> None:
    """Print a line for each f and batch size."""
    torch.set_num_threads(1)
    for name, (f, dim) in problems().items():
        for size in SIZES:
            y0, rate = torch.rand(size, dim).double() + 0.5, torch.linspace(0.5, 3, size).double()
            t = torch.stack([torch.zeros(size), torch.linspace(0.5, 6, size)], 1).double()
            with Timed("_try") as trial, Timed("_leave") as left:
                solve(f, y0, t, batch=1, rows=(rate,), rtol=1e-5, check_rows=False)
            print(
                f"{name}, {size} samples: {trial.calls} trials of {trial.each:.2f} ms, left out {left.calls} times for "
                f"{left.each:.2f} ms, {left.each / trial.each:.2f} trials"
            )


if __name__ == "__main__":
    main()
