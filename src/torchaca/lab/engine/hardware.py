"""Which devices a row is trained on, in which precision, and Lightning's trainer for them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ..experiment import UsageError, check_name
from ..files import load_state, save_state
from ..processes import launched, machines, on_this_machine
from .sharded import Sharded

PRECISIONS = ("32", "bf16-mixed")
ACCELERATORS = ("cpu", "gpu", "mps", "auto")
SHARDED = "fsdp2"
STRATEGIES = ("auto", "ddp_spawn", "ddp_fork", SHARDED)
"""DDP starts its processes from this one; where torchrun has started them, it is "auto", or `SHARDED`."""


class Hardware(Protocol):
    """Settings of an experiment that the command line's options of the same names set."""

    @property
    def precision(self) -> str:
        """Of the arithmetic: "32", or "bf16-mixed", bfloat16 under autocast and weights in float32."""
        ...

    @property
    def accelerator(self) -> str:
        """The kind of device: "cpu", "gpu", "mps", or "auto", the fastest that there is."""
        ...

    @property
    def devices(self) -> int:
        """How many devices share a minibatch."""
        ...

    @property
    def strategy(self) -> str:
        """How several devices work together: "auto" is DDP, "fsdp2" shards the weights."""
        ...


def check_hardware(hardware: Hardware) -> None:
    """Refuse devices that do not exist, before anything is written.

    Raises
    ------
    UsageError
    """
    for option, known in (("precision", PRECISIONS), ("accelerator", ACCELERATORS), ("strategy", STRATEGIES)):
        check_name(option, getattr(hardware, option), known)
    if hardware.devices < 1:
        raise UsageError(f"--devices {hardware.devices}: at least one device is needed")
    if hardware.devices * machines() == 1 and hardware.strategy != "auto":
        raise UsageError(
            f"--strategy {hardware.strategy} has no effect on one device: give --devices as well"
        )
    if launched():
        _check_launched(hardware)
    elif hardware.strategy == SHARDED:
        raise UsageError(
            f"--strategy {SHARDED} needs torchrun's processes: give the same options to torchrun --standalone "
            f"--nproc-per-node {hardware.devices} -m torchaca.lab.cli"
        )
    with silence():
        try:
            trainer(hardware)
        except (MisconfigurationException, ValueError) as error:
            raise UsageError(f"--accelerator {hardware.accelerator}: {error}") from error


def _check_launched(hardware: Hardware) -> None:
    """torchrun starts a process for each device, on each of its machines."""
    if hardware.strategy not in ("auto", SHARDED):
        raise UsageError(f"--strategy {hardware.strategy} starts processes: under torchrun leave it out")
    if hardware.devices != on_this_machine():
        raise UsageError(
            f"--devices {hardware.devices}, but torchrun has started {on_this_machine()} processes on this machine"
        )


def trainer(hardware: Hardware, *, devices: int | None = None, **options: Any) -> Trainer:
    """A trainer without files, bars and words of its own; `devices` instead of the settings' number."""
    devices = hardware.devices if devices is None else devices
    return Trainer(
        accelerator=hardware.accelerator,
        devices=devices,
        num_nodes=machines(),
        strategy=_strategy(hardware, devices * machines()),
        precision="32-true" if hardware.precision == "32" else "bf16-mixed",
        # A CPU's kernels give the same digits each time for one number of threads; a GPU's are asked to.
        deterministic=hardware.accelerator != "cpu",
        plugins=[Checkpoints()],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, **options},
    )


def _strategy(hardware: Hardware, processes: int) -> str | Strategy:
    if processes == 1:
        return "auto"
    if hardware.strategy == SHARDED:
        return Sharded(processes)
    if launched():
        return "ddp"
    return "ddp_spawn" if hardware.strategy == "auto" else hardware.strategy


class Checkpoints(CheckpointIO):
    """Lightning's checkpoints, written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_state(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_state(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


IRRELEVANT = (
    "The .*dataloader.* does not have many workers",  # the data are in memory
    "GPU available but not used",  # a single process on the CPU is the default
    "MPS available but not used",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and PyTorch
    "`weights_only` was not set",  # `Checkpoints` loads weights only
    r"FSDP2-wrapped module \(.*\) returned a view tensor",  # nothing is done to it in place
)


@contextmanager
def silence() -> Iterator[None]:
    """Without Lightning's hints; its warnings stay, but for the irrelevant ones."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in IRRELEVANT:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
