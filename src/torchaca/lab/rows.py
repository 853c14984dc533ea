"""The rows of experiments that train several models with several gradient methods."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One training: a model, its gradient method where it has one, and a seed.

    `between` stands between model and gradient method in names.
    """

    model: str
    gradient: str | None
    seed: int
    between: str = " "

    @property
    def label(self) -> str:
        """The row without its seed."""
        return self.model if self.gradient is None else f"{self.model}{self.between}{self.gradient}"

    @property
    def name(self) -> str:
        """As it is in the run folder."""
        return f"{self.label} seed {self.seed}"
