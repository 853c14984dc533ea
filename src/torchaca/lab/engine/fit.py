"""Training a row, and measuring what it has learned."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from pytorch_lightning import seed_everything
from pytorch_lightning.loggers import Logger
from rich.console import Console
from torch import multiprocessing

from torchaca.errors import SolverError

from ..processes import launched, machines
from ..run import Run
from ..training import check_row
from .hardware import Hardware, silence, trainer
from .loader import Loader
from .record import KEY, Record, Trained
from .sharded import Sharded

CHECKPOINT_SECONDS = 60.0
LIGHTNINGS = ("callbacks", "state_dict", "optimizer_states", "lr_schedulers", "loops")
"""What a checkpoint has to hold for Lightning to go on with it."""


def fit(
    run: Run,
    console: Console,
    row: str,
    module: Trained,
    loader: Loader,
    *,
    hardware: Hardware,
    seed: int,
    epochs: int,
    seconds: float | None = None,
    least: int = 0,
    validation: Iterable[object] | None = None,
    loggers: Sequence[Logger] = (),
    every: float = CHECKPOINT_SECONDS,
) -> None:
    """Train a row to its last epoch, from where the run folder says it is; `module` then has its weights.

    A line of metrics for every epoch holds the means of `module.measures()`, and what its validation has logged. On
    one device, a solve that fails ends the row: its last line of metrics then has `failed`, the error's kind.

    Parameters
    ----------
    module : Trained
        With the row's initial weights.
    loader : Loader
        Random numbers are those of the global generators, which `seed` sets before the first epoch: drawn in
        `training_step`, they are the same in a resumed run.
    hardware : Hardware
        The settings of the experiment.
    seconds : float, optional
        Start no epoch after this time, except the first `least` ones.
    validation : iterable of batches, optional
        For the module's `validation_step`, after each epoch.
    loggers : sequence of Lightning loggers
        Further places for the metrics, such as TensorBoard.
    every : float
        Seconds between checkpoints within an epoch.
    """
    state = run.load(row)
    with run.reading(row):
        done = _epochs(state, row) if state else 0
        if state:
            module.load_state_dict(state["state_dict"])
    run.cut(row, done, keep=lambda line: line["epoch"] < done or "failed" in line)
    # torchrun's processes have a clock each: the first one's decides, once they have found each other.
    late = done >= least and seconds is not None and seconds <= 0 and not launched()
    if _failed(run, row) or done >= epochs or late:
        return
    record = Record(run, console, row, seed=seed, seconds=seconds, least=least, every=every)
    interrupt = signal.getsignal(signal.SIGINT)
    with silence(), _shared_by_files():
        made = trainer(hardware, max_epochs=epochs, callbacks=[record], logger=list(loggers))
        sharded = isinstance(made.strategy, Sharded)
        try:
            made.fit(
                deepcopy(module) if sharded else module,  # what is sharded stays so
                loader,
                validation,
                ckpt_path=run.checkpoint(row) if state else None,
                weights_only=True,
            )
        except SolverError:
            if not _failed(run, row):
                raise
        except SystemExit as stop:
            if made.interrupted:
                raise KeyboardInterrupt from stop  # what Lightning has made of it
            raise
        finally:
            record.close()
            signal.signal(signal.SIGINT, interrupt)
    if hardware.devices * machines() > 1:
        run.reread()
    if sharded and (state := run.load(row)):
        module.load_state_dict(state["state_dict"])


def evaluate(module: Trained, loader: Loader, *, hardware: Hardware, seed: int) -> dict[str, float]:
    """What the module's `test_step` logs over these data, on one device, with random numbers of this seed."""
    with silence():
        seed_everything(seed, verbose=False)
        found = trainer(hardware, devices=1).test(module, loader, verbose=False)
    return {name: float(value) for name, value in found[0].items()}


@contextmanager
def _shared_by_files() -> Iterator[None]:
    """Send tensors to new processes by name: by descriptor, one that is sent twice is refused."""
    before = multiprocessing.get_sharing_strategy()
    multiprocessing.set_sharing_strategy("file_system")
    try:
        yield
    finally:
        multiprocessing.set_sharing_strategy(before)


def _epochs(state: Mapping[str, Any], row: str) -> int:
    """How many epochs the checkpoint of a row is of.

    Raises
    ------
    ValueError
        When it is a checkpoint of something else.
    """
    missing = [name for name in LIGHTNINGS if name not in state]
    if missing or KEY not in state["callbacks"]:
        raise ValueError(f"it has no {missing[0] if missing else 'record of its epochs'}")
    check_row(state["callbacks"][KEY], row)
    return int(state["callbacks"][KEY]["epochs"])


def _failed(run: Run, row: str) -> bool:
    return any("failed" in line for line in run.of(row))
