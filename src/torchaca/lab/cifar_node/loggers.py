"""TensorBoard, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ..experiment import UsageError

PACKAGES = ("tensorboard", "tensorboardX")


def check_tensorboard() -> None:
    """Refuse to log for TensorBoard without its package.

    Raises
    ------
    UsageError
    """
    if not any(map(find_spec, PACKAGES)):
        raise UsageError("--tensorboard needs tensorboard: pip install tensorboard")


def tensorboard(folder: Path, row: str) -> Logger:
    """Logs a row's epochs to `folder/tensorboard/ROW`."""
    return TensorBoardLogger(folder, name="tensorboard", version=row.replace(" ", "-"))
