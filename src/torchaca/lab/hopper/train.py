"""One row of the table: a model, a fraction of points that it sees, and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchaca import ACA
from torchaca.core import Stats
from torchaca.nn import LatentLoss, LatentODE

from ..distances import When, flat_gradient, relative_distances
from ..engine import Batches, Trained
from ..variants import gradient_of
from .data import Data, seen
from .networks import CELLS, Recurrent, latent_parameters
from .settings import MUON, Settings, epochs_at, kl_weight, lr_factor

VALIDATION_SEED = 7


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
            start=0.0,
            method=settings.method,
            rtol=settings.rtol,
            atol=settings.atol,
            gradient=ACA() if gradient == "aca" and not settings.replay else gradient_of(gradient),
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
        self.epochs = epochs_of(name, fraction, settings)
        self.steps = self.epochs * len(Batches(len(data.train), settings.batch))
        self.register_buffer("times", data.times)
        self.last: tuple[float, float, Stats] = (0.0, 0.0, Stats())
        self.automatic_optimization = settings.optimizer != MUON

    def training_step(self, batch: tuple[Tensor]) -> Tensor:
        """Minus the bound for one minibatch."""
        (x,) = batch
        mask = seen(len(x), x.shape[1], self.fraction).to(x.device)
        found = self.loss(x, mask, self.settings.train_samples, kl_weight(self.current_epoch))
        if not self.automatic_optimization:
            self._step(found.loss)
        self.last = found.loss.item(), found.mse.item(), self.net.stats
        return found.loss

    def _step(self, loss: Tensor) -> None:
        """What Lightning does by itself where there is one optimizer."""
        self.manual_backward(loss)
        for optimizer, rates in zip(_list(self.optimizers()), _list(self.lr_schedulers()), strict=True):
            optimizer.step()
            optimizer.zero_grad()
            rates.step()

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """The error after an epoch, with draws that leave those of the training as they are."""
        x, mask = batch
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(VALIDATION_SEED)
            error = self.loss(x, mask, self.settings.samples).mse
        self.log("test_mse", error, batch_size=len(x), on_epoch=True, sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """The error over all points and samples, for the mask that comes with the data."""
        x, mask = batch
        self.log("mse", self.loss(x, mask, self.settings.samples).mse, batch_size=len(x))

    def loss(self, x: Tensor, mask: Tensor, samples: int, kl_weight: float = 0.0) -> LatentLoss:
        """The loss of predicting all of `x` from the points `(B, window)` in the mask."""
        return self.net.loss(
            *self.given(x, mask), targets=x, samples=samples, kl_weight=kl_weight, **self._at()
        )

    def draws(self, x: Tensor, mask: Tensor, samples: int) -> Tensor:
        """`(samples, B, window, D)`: predictions of all of `x` from the points in the mask."""
        return self.net(*self.given(x, mask), samples=samples, **self._at())

    def given(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, times and mask as the network takes them.

        With `encode="seen"`, a latent ODE is given the seen points alone, at times of each series' own: as many in
        all of them. A recurrent network, which predicts at each point, takes all.
        """
        times = self.get_buffer("times")
        if self.settings.encode == "all" or isinstance(self.net, Recurrent):
            return x, times, mask[..., None].expand_as(x)
        index = mask.nonzero()[:, 1].view(len(x), -1)
        values = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
        return values, times[index], torch.ones_like(values, dtype=torch.bool)

    def _at(self) -> dict[str, Tensor]:
        return {} if isinstance(self.net, Recurrent) else {"at": self.get_buffer("times")}

    def measures(self) -> Mapping[str, float]:
        loss, mse, stats = self.last
        counts = {name: getattr(stats, name) for name in ("nfe", "nfe_backward", "rejected")}
        return {"loss": loss, "mse": mse, **counts}

    def configure_optimizers(self) -> Any:
        found = [
            {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": self._rates(optimizer), "interval": "step"},
            }
            for optimizer in optimizers(self.net, self.settings)
        ]
        return found[0] if len(found) == 1 else found

    def _rates(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(self.settings, step, self.steps)
        )


def optimizers(net: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """One for all weights; or Muon for the matrices between hidden units, and Adam for all others."""
    if settings.optimizer != MUON:
        made = {"adamax": torch.optim.Adamax, "adam": torch.optim.Adam}[settings.optimizer]
        return [made(net.parameters(), lr=settings.lr)]
    hidden = between_hidden(net)
    known = {id(matrix) for matrix in hidden}
    adam = torch.optim.Adam([p for p in net.parameters() if id(p) not in known], lr=settings.lr)
    if not hidden:
        return [adam]
    return [torch.optim.Muon(hidden, lr=settings.muon_lr, weight_decay=0.0), adam]


def between_hidden(net: nn.Module) -> list[nn.Parameter]:
    """The matrices that map hidden units to hidden units: of both MLPs, or of the recurrent cell."""
    if isinstance(net, Recurrent):
        return [net.cell.get_parameter("weight_hh_l0")]
    assert isinstance(net, LatentODE)
    found = []
    for layers in (net.encoder.dynamics, net.dynamics):
        found += [layer.weight for layer in layers if isinstance(layer, nn.Linear)][1:-1]
    return found


def _list(found: Any) -> list[Any]:
    """What Lightning gives as a list, unless there is only one."""
    return list(found) if isinstance(found, list | tuple) else [found]


def epochs_of(name: str, fraction: float, settings: Settings) -> int:
    """How many epochs the schedule of a network is for."""
    own = settings.baseline_epochs if name in CELLS else None
    return epochs_at(fraction, settings) if own is None else own


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
            fit.loss(x, mask, settings.train_samples, 1.0).loss.backward()
        return flat_gradient(fit)

    return relative_distances(settings.gradient, gradient)
