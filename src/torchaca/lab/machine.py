"""Where and with what a run was made."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import torchaca as aca

PACKAGES = ("torch", "numpy", "rich", "matplotlib", "pytorch-lightning")


def versions() -> dict[str, str]:
    """The versions of Python and of every package that a run's numbers or plots depend on."""
    packages = {package: metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "torchaca": aca.__version__, **packages}


def machine() -> dict[str, Any]:
    """The hardware, the operating system and the number of threads that torch uses."""
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
