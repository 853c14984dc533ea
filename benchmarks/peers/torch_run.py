"""What the workers of all PyTorch libraries share: a training step, timed, counted, its memory measured."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from .fields_torch import field_of
from .memory import resident_peak
from .workloads import Arrays, Counts, Result, Workload

Solve = Callable[[Tensor], Tensor]
Statistics = Callable[[], Counts]


class TorchRun:
    """`solve` takes y0 and returns y(t1), differentiable by y0 and by the parameters of `field`.

    `statistics` is called after a training step and returns what the library knows about it; evaluations that it does
    not count are counted by a hook of the module.
    """

    def __init__(
        self,
        w: Workload,
        field: nn.Module,
        solve: Solve,
        statistics: Statistics = Counts,
        device: str = "cpu",
    ) -> None:
        torch.set_num_threads(1)
        self.field, self.solve, self.statistics, self.device = field, solve, statistics, device
        self.y0 = torch.from_numpy(w.y0).to(device).requires_grad_()
        self.calls = 0
        self.before_backward = 0

    def train(self) -> tuple[float, float]:
        self.field.zero_grad()
        self.y0.grad = None
        self._wait()
        start = time.perf_counter()
        self.y1 = self.solve(self.y0)
        self._wait()
        middle = time.perf_counter()
        self.before_backward = self.calls
        self.y1.square().mean().backward()
        self._wait()
        return middle - start, time.perf_counter() - start

    def result(self) -> Result:
        self.train()
        if self.statistics().forward is None:
            self._train_counting()
        return Result(self.y1.detach().cpu().numpy(), self._gradients(), self._counts())

    def peak(self) -> int | None:
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.train()
            return torch.cuda.max_memory_allocated() - before
        del self.y1
        return resident_peak(self.train)

    def syncs(self) -> int | None:
        """How often a training step on a GPU makes the host wait; None elsewhere."""
        if self.device == "cpu":
            return None
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    def _train_counting(self) -> None:
        """A training step with a hook, which a library that compiles f would have to trace."""
        hook = self.field.register_forward_pre_hook(self._count)
        try:
            self.calls = 0
            self.train()
        finally:
            hook.remove()

    def _count(self, *_: object) -> None:
        self.calls += 1

    def _counts(self) -> Counts:
        known = self.statistics()
        if known.forward is not None:
            return known
        return replace(known, forward=self.before_backward, backward=self.calls - self.before_backward)

    def _gradients(self) -> Arrays:
        named = {"y0": self.y0, **dict(self.field.named_parameters())}
        return {name: x.grad.cpu().numpy() for name, x in named.items() if x.grad is not None}

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


def span(w: Workload, device: str) -> Tensor:
    """`[0, t1]` in the dtype of the state."""
    return torch.tensor([0.0, w.t1], dtype=getattr(torch, w.dtype), device=device)


def prepared(w: Workload, device: str) -> tuple[nn.Module, Tensor]:
    """The field, and the span."""
    torch.set_num_threads(1)
    return field_of(w, device), span(w, device)
