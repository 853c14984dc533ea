"""`progress=True`: a bar over time."""

from __future__ import annotations

import importlib
from types import TracebackType
from typing import Any

from torch import Tensor

from .core import Stats, Times

FORMAT = "{l_bar}{bar}| t = {postfix[0]:.4g} of {postfix[1]:.4g} [{elapsed}<{remaining}, {postfix[2]}]"


class Bar:
    """A watcher of a solve, and the context around it: a bar of tqdm, as it fits a terminal or a notebook.

    It appears with the first step, and reads no device.

    Raises
    ------
    ImportError
        If tqdm is not installed.
    """

    def __init__(self) -> None:
        try:
            self._make: Any = importlib.import_module("tqdm.auto").tqdm
        except ImportError as error:
            raise ImportError(
                "progress=True shows a bar of tqdm: pip install 'torchaca[progress]'"
            ) from error
        self._bar: Any = None

    def over(self, ts: Times, stats: Stats) -> Bar:
        """Watch a solve between these times, whose costs are noted in `stats`."""
        self.start, self.last, self.end, self.stats = ts.values[0], ts.values[0], ts.values[-1], stats
        return self

    def __call__(self, event: str, t: float, y: Tensor, dt: float) -> None:
        """See a trial; see `torchaca.core.Watcher`."""
        if event == "trial":
            self._move(t, dt)
        self.last = t if event == "rejected" else t + dt

    def _move(self, t: float, dt: float) -> None:
        if self._bar is None:
            total, shown = abs(self.end - self.start), [self.start, self.end, ""]
            self._bar = self._make(total=total, bar_format=FORMAT, postfix=shown)
        self._bar.postfix[:] = [t, self.end, f"{self.stats.nfe} evaluations, dt {abs(dt):.2g}"]
        self._bar.update(abs(t - self.start) - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show how far the solve has come."""
        if self._bar is None:
            return
        self._move(self.last, 0.0)
        self._bar.refresh()
        self._bar.close()
