"""One row of the table: a model, a fraction of points that it sees, and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchaca.core import Stats
from torchaca.nn import LatentLoss, LatentODE

from ..distances import When, flat_gradient, relative_distances
from ..engine import Trained
from ..variants import gradient_of
from .data import Data, seen
from .networks import CELLS, Recurrent, latent_parameters

KL_WAIT, KL_BASE = 10, 0.99  # the divergence counts 0 for 10 epochs, then 1 - 0.99^(epochs since)
LR, LR_DECAY, LR_LEAST = 1e-2, 0.999, 0.1  # Adamax; after each step, down to a tenth


@dataclass(frozen=True)
class Settings:
    """Those of the public latent-ODE code at the paper's size."""

    gradient: tuple[str, ...] = ("aca", "direct", "naive", "adjoint")
    baselines: tuple[str, ...] = ("rnn", "rnn-gru")
    fractions: tuple[float, ...] = (0.1, 0.2, 0.5)
    seeds: int = 3
    method: str = "dopri5"
    rtol: float = 1e-3
    atol: float = 1e-4
    data: str | None = None
    sequences: int = 10_000
    window: int = 100
    batch: int = 50
    epochs: int = 300
    latent: int = 15
    units: int = 300
    layers: int = 3
    state: int = 30
    gru_units: int = 100
    std: float = 1e-3
    samples: int = 3
    precision: str = "32"
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    time_limit: float | None = None
    threads: int = 1


def network(name: str, settings: Settings, features: int, seed: int) -> LatentODE | Recurrent:
    """A baseline, or the latent ODE with the gradient method of this name; the initial weights depend on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gradient = "aca" if name in CELLS else name
        latent = LatentODE(
            features,
            latent=settings.latent,
            units=settings.units,
            layers=settings.layers,
            state=settings.state,
            gru_units=settings.gru_units,
            std=settings.std,
            method=settings.method,
            rtol=settings.rtol,
            atol=settings.atol,
            gradient=gradient_of(gradient),
        )
        if name in CELLS:
            return Recurrent(name, features, latent_parameters(latent), settings.std)
        return latent


class Fit(Trained):
    """Trains a network on random subsets of the points; the targets are all points.

    Parameters
    ----------
    name : str
        Of the network.
    fraction : float
        The part of the points that is seen.
    """

    def __init__(self, name: str, settings: Settings, data: Data, fraction: float, seed: int) -> None:
        super().__init__()
        self.settings, self.fraction = settings, fraction
        self.net = network(name, settings, data.train.shape[-1], seed)
        self.register_buffer("times", data.times)
        self.last: tuple[float, float, Stats] = (0.0, 0.0, Stats())

    def training_step(self, batch: tuple[Tensor]) -> Tensor:
        """Minus the bound for one minibatch."""
        (x,) = batch
        mask = seen(len(x), x.shape[1], self.fraction).to(x.device)
        found = self.loss(x, mask, kl_weight=kl_weight(self.current_epoch))
        self.last = found.loss.item(), found.mse.item(), self.net.stats
        return found.loss

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """The error over all points and samples, for the mask that comes with the data."""
        x, mask = batch
        self.log("mse", self.loss(x, mask, kl_weight=0.0).mse, batch_size=len(x))

    def loss(self, x: Tensor, mask: Tensor, kl_weight: float) -> LatentLoss:
        """The loss of predicting all of `x` from the points `(B, window)` in the mask."""
        given = mask[..., None].expand_as(x)
        samples = self.settings.samples
        return self.net.loss(
            x, self.get_buffer("times"), given, targets=x, samples=samples, kl_weight=kl_weight
        )

    def measures(self) -> Mapping[str, float]:
        loss, mse, stats = self.last
        counts = {name: getattr(stats, name) for name in ("nfe", "nfe_backward", "rejected")}
        return {"loss": loss, "mse": mse, **counts}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adamax(self.parameters(), lr=LR)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: max(LR_DECAY ** (step + 1), LR_LEAST)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def kl_weight(epoch: int) -> float:
    """The factor of the divergence in an epoch."""
    return 0.0 if epoch < KL_WAIT else 1 - KL_BASE ** (epoch - KL_WAIT)


def gradient_distances(settings: Settings, data: Data, trained: Fit, seed: int) -> dict[str, float]:
    """How far each method's gradient is from that of `direct` on the first batch; see `lab.distances`."""
    x = data.train[: settings.batch]
    mask = seen(len(x), x.shape[1], trained.fraction, torch.Generator().manual_seed(seed))

    def gradient(name: str, when: When) -> Tensor:
        fit = Fit(name, settings, data, trained.fraction, seed)
        if when == "trained":
            fit.load_state_dict(trained.state_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fit.loss(x, mask, kl_weight=1.0).loss.backward()
        return flat_gradient(fit)

    return relative_distances(settings.gradient, gradient)
