"""The callback that keeps the run folder: metrics of every epoch, checkpoints, progress, the time limit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from torch import distributed

from torchaca.errors import SolverError

from ..progress import Bar, bar
from ..run import Run
from ..table import terminal
from ..training import random_state, set_random_state

KEY = "record"
"""The callback's entry in a checkpoint."""


class Trained(LightningModule, ABC):
    """A Lightning module that says what each of its steps cost.

    Where its experiment may run on torchrun's processes, `configure_model` shards it for the strategy "fsdp2".
    """

    @abstractmethod
    def measures(self) -> Mapping[str, float]:
        """Of the last training step, its backward pass included: at least loss, nfe, nfe_backward, rejected.

        The names are the same after every step; an epoch's metrics are their means.
        """


class Record(Callback):
    """Writes a row's metrics and checkpoints, and restores random numbers, so that a resumed row is the same row.

    Parameters
    ----------
    run, console, row, seed
        As for `fit`.
    seconds, least
        Start no epoch after `seconds`, except the first `least` ones.
    every : float
        Seconds between checkpoints within an epoch.
    """

    def __init__(
        self,
        run: Run,
        console: Console,
        row: str,
        *,
        seed: int,
        seconds: float | None,
        least: int,
        every: float,
    ) -> None:
        self.run, self.row, self.seed = run, row, seed
        self.seconds, self.least, self.every = seconds, least, every
        self.epochs = 0
        self._console: Console | None = console
        self._sums: dict[str, float] = {}
        self._batches = 0
        self._spent = 0.0
        self._random: list[dict[str, Any]] = []
        self._open = ExitStack()
        self._bar: Bar | None = None

    def __getstate__(self) -> dict[str, Any]:
        # For the processes of several devices: a console and an open bar stay where they are.
        return {**self.__dict__, "_console": None, "_bar": None, "_open": ExitStack()}

    # What Lightning calls, in the order of an epoch.

    @property
    def state_key(self) -> str:
        return KEY

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs, self._sums = state_dict["epochs"], dict(state_dict["sums"])
        self._batches, self._spent = state_dict["batches"], state_dict["spent"]
        self._random = state_dict["random"]

    def state_dict(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "epochs": self.epochs,
            "sums": self._sums,
            "batches": self._batches,
            "spent": self._spent + perf_counter() - self._resumed,
            "random": _of_all_processes(random_state()),
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank < len(self._random):
            set_random_state(self._random[trainer.global_rank])
        else:  # at the start, or where there were fewer processes before
            seed_everything(self.seed + trainer.global_rank, verbose=False)
        self._started = self._resumed = self._saved = perf_counter()
        if trainer.is_global_zero:
            total, done = (
                n * int(trainer.num_training_batches) for n in (trainer.max_epochs or 0, self.epochs)
            )
            shown = bar(self._console or terminal(), self.row, total, done + self._batches, self.seconds)
            self._open = ExitStack()
            self._bar = self._open.enter_context(shown)
        self._stop_where_late(trainer, self.seconds is not None and self.seconds <= 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Trained)  # `fit` takes no other
        for name, value in pl_module.measures().items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._batches += 1
        if self._bar:
            self._bar.advance(self._means())
        last = self._batches == trainer.num_training_batches  # the epoch's own checkpoint follows
        if not last and _agreed(trainer, perf_counter() - self._saved > self.every):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = perf_counter()
        spent, self._resumed = self._spent + now - self._resumed, now
        means = _over_devices(trainer, self._means())
        validated = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name not in means
        }
        line = {"row": self.row, "epoch": self.epochs, **means, **validated, "seconds": spent}
        if trainer.is_global_zero:
            self.run.log(line)
            for logger in trainer.loggers:
                logger.log_metrics({**means, **validated, "seconds": spent}, step=self.epochs)
        self.epochs += 1
        self._sums, self._batches, self._spent = {}, 0, 0.0
        self._save(trainer)
        self._stop_where_late(trainer, self.seconds is not None and now - self._started >= self.seconds)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SolverError):
            failure = {"failed": exception.kind, "backward": exception.backward, "message": str(exception)}
            self.run.log({"row": self.row, "epoch": self.epochs, **failure})
            if self._bar:
                self._bar.advance(failure)
        self.close()

    def close(self) -> None:
        """Let go of the terminal."""
        self._open.close()
        self._bar = None

    def _stop_where_late(self, trainer: Trainer, late: bool) -> None:
        if _agreed(trainer, late and self.epochs >= self.least):
            trainer.should_stop = True

    def _means(self) -> dict[str, float]:
        return {name: value / self._batches for name, value in self._sums.items()}

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.run.checkpoint(self.row))
        self._saved = perf_counter()


def _agreed(trainer: Trainer, decision: bool) -> bool:
    """The decision of the first process, for all of them."""
    return trainer.strategy.broadcast(decision) if trainer.world_size > 1 else decision


def _over_devices(trainer: Trainer, means: Mapping[str, float]) -> dict[str, float]:
    if trainer.world_size == 1:
        return dict(means)
    values = torch.tensor(list(means.values()), dtype=torch.float32, device=trainer.strategy.root_device)
    reduced = trainer.strategy.reduce(values, reduce_op="mean")
    return dict(zip(means, torch.as_tensor(reduced).tolist(), strict=True))


def _of_all_processes(own: dict[str, Any]) -> list[dict[str, Any]]:
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, own)
    return states
