"""Training on Lightning: what the experiments with data sets and minibatches share.

An experiment brings a `Trained` module and a `Loader`; `fit` trains a row of it inside the run folder, so that a kill
at any moment, in the middle of an epoch too, costs no digit.
"""

from __future__ import annotations

from .fit import evaluate, fit
from .hardware import SHARDED, Hardware, check_hardware
from .loader import Batches, Loader
from .record import Trained
from .sharded import shard, share_buffers

__all__ = [
    "SHARDED",
    "Batches",
    "Hardware",
    "Loader",
    "Trained",
    "check_hardware",
    "evaluate",
    "fit",
    "shard",
    "share_buffers",
]
