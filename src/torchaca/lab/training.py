"""Training a row so that a kill at any moment costs at most one epoch and no digit."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Protocol

import torch
from rich.console import Console

from torchaca.errors import SolverError

from .progress import bar
from .run import Run


class Trainee(Protocol):
    """What is trained: everything that changes is in its state."""

    def epoch(self, number: int) -> dict[str, Any]:
        """Train one epoch; the metrics hold `loss`, and of a model with a solver `nfe`, `nfe_backward`, `rejected`."""
        ...

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and containers of them: weights, optimizer, the best weights so far."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        ...


def train(
    run: Run,
    console: Console,
    row: str,
    trainee: Trainee,
    *,
    seed: int,
    epochs: int,
    seconds: float | None = None,
    least: int = 0,
) -> None:
    """Train a row to its last epoch, from where the run folder says it is.

    A solve that fails ends the row: its last line of metrics then has `failed`, the error's kind.

    Parameters
    ----------
    seconds : float, optional
        Start no epoch after this time, except the first `least` ones.
    """
    done, failed = _restore(run, row, trainee, seed)
    started = perf_counter()
    with bar(console, row, epochs, done, seconds) as progress:
        while done < epochs and not failed:
            if done >= least and seconds is not None and perf_counter() - started >= seconds:
                break
            metrics = _epoch(trainee, done)
            failed = "failed" in metrics
            run.log({"row": row, "epoch": done, **metrics})
            done += 1
            about = {"row": row, "epochs": done, "failed": failed}
            run.save(row, {**about, "trainee": trainee.state(), "random": random_state()})
            progress.advance(metrics)


def _epoch(trainee: Trainee, number: int) -> dict[str, Any]:
    begin = perf_counter()
    try:
        metrics = trainee.epoch(number)
    except SolverError as error:
        metrics = {"failed": error.kind, "backward": error.backward, "message": str(error)}
    return {**metrics, "seconds": perf_counter() - begin}


def _restore(run: Run, row: str, trainee: Trainee, seed: int) -> tuple[int, bool]:
    """The number of epochs done and whether the row has failed; the metrics cut to that."""
    state = run.load(row)
    with run.reading(row):
        done, failed = (int(state["epochs"]), bool(state["failed"])) if state else (0, False)
        check_row(state or {}, row)
    run.cut(row, done, keep=lambda line: line["epoch"] < done)
    if state is None:
        torch.manual_seed(seed)
        random.seed(seed)
        return 0, False
    with run.reading(row):
        trainee.load(state["trainee"])
        set_random_state(state["random"])
    return done, failed


def check_row(about: Mapping[str, Any], row: str) -> None:
    """Refuse what a checkpoint of another row says about itself; earlier versions did not say their row.

    Raises
    ------
    ValueError
    """
    if about.get("row", row) != row:
        raise ValueError(f"it is of {about['row']!r}")


def random_state() -> dict[str, Any]:
    """The state of the global random generators that the experiments draw from."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": devices, "python": random.getstate()}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on drawing where `random_state` was called."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])


def share(run: Run, limit: float | None, rows: Sequence[str], first: Sequence[str]) -> float | None:
    """Seconds for the first of the `rows` that are left, out of what is left of `limit`.

    The rows among `first` share it equally; the others then share what those have not used.
    """
    if limit is None:
        return None
    left = max(limit - run.elapsed(), 0.0)
    return left / (len([row for row in rows if row in first]) or len(rows))
