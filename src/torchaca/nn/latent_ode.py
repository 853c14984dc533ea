"""Latent ODEs for irregularly sampled series (Rubanova, Chen, Duvenaud, NeurIPS 2019).

A series is encoded into the distribution of a latent state z0 at its first time by an ODE-RNN that runs backwards in
time; z0 evolves by an ODE, and a linear decoder reads the series off it, at any times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Stats
from ..options import check_options
from ..solve import solve
from .ode_rnn import ODERNN, mlp
from .series import Series, series

STEPS = ("own", "joint")
INIT_STD = 0.1  # of all weights, as in the authors' code


@dataclass(frozen=True)
class LatentLoss:
    """What `LatentODE.loss` finds.

    Attributes
    ----------
    loss : Tensor
        To be minimised: minus the bound.
    mse : Tensor
        Mean squared error over samples and target values.
    log_likelihood : Tensor
        Of a target value, mean.
    kl : Tensor
        Divergence of z0's distribution from the standard normal one, per latent dimension, mean.
    """

    loss: Tensor
    mse: Tensor
    log_likelihood: Tensor
    kl: Tensor


class LatentODE(nn.Module):
    """A variational autoencoder for series that are observed at irregular times.

    Parameters
    ----------
    features : int
        Dimensions D of an observation.
    latent : int
        Dimensions of z.
    units, layers : int
        The dynamics of z, and those of the encoder's state, are MLPs with `layers + 1` hidden layers of `units`
        tanh units.
    state : int
        Dimensions of the encoder's state.
    gru_units : int
        Hidden units of each of the encoder's gates.
    std : float
        Standard deviation of the observations around the decoded series.
    start : float, optional
        The time of z0; the earliest one of a batch where nothing is given. Series with times of their own are then
        reconstructed from where their batch begins: give a time before all of them, and they are independent of
        each other.
    steps : {"own", "joint"}
        Whether each series that has times of its own is solved with steps of its own between them (`batch=1` of
        `solve`), or all of them with the same ones, to the union of their times.
    objective : {"iwae", "elbo"}
        The bound: the logarithm of the mean over samples of the likelihood, or the mean of its logarithm. As in the
        authors' code, both are those of a minibatch, per value and per latent dimension.
    **options
        Options of `torchaca.solve` for the ODE of z: method, rtol, atol, gradient, compile, ...

    Attributes
    ----------
    stats : Stats
        Of the last solve (and, after `backward()`, of its backward pass).

    Raises
    ------
    TypeError
        For an option that `solve` does not have.
    ValueError
        For an unknown objective, or unknown steps.

    Notes
    -----
    A series is `values` `(B, T, D)`, `times` `(T,)` or `(B, T)`, not decreasing along T, and `mask` `(B, T, D)`, true
    where a value was observed. Samples share the encoder's loop: it takes T steps whatever B is. Outputs lie between
    the solver's steps, so that their number does not change its cost.

    Examples
    --------
    >>> model = LatentODE(2, latent=4, units=20, layers=1, state=8, gru_units=10, std=0.1)
    >>> values, times = torch.randn(3, 7, 2), torch.rand(3, 7).sort(1).values
    >>> mask = torch.rand(3, 7, 2) < 0.5
    >>> model.loss(values, times, mask, samples=3).loss.backward()
    >>> model(values, times, mask, at=torch.linspace(1, 2, 20), samples=10).shape
    torch.Size([10, 3, 20, 2])
    """

    def __init__(
        self,
        features: int,
        *,
        latent: int = 15,
        units: int = 300,
        layers: int = 3,
        state: int = 30,
        gru_units: int = 100,
        std: float = 1e-3,
        start: float | None = None,
        objective: str = "iwae",
        steps: str = "own",
        **options: Any,
    ) -> None:
        super().__init__()
        check_options(options, "LatentODE", self._rate)
        if steps not in STEPS:
            raise ValueError(f"steps is {steps!r}: it has to be 'own' or 'joint'")
        if objective not in ("iwae", "elbo"):
            raise ValueError(f"objective is {objective!r}: it has to be 'iwae' or 'elbo'")
        if not std > 0:
            raise ValueError(f"std is {std}: the observations' standard deviation has to be above 0")
        self.features, self.std, self.start, self.objective = features, std, start, objective
        self.steps, self.options = steps, options
        self.stats = Stats()
        self.encoder = ODERNN(features, latent, units, layers, state, gru_units)
        self.dynamics = mlp(latent, units, layers)
        self.decoder = nn.Linear(latent, features)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def encode(self, values: Tensor, times: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z0, `(B, latent)` each.

        Raises
        ------
        ValueError
            For shapes that do not fit, for values that are not finite where the mask has them observed, and for
            times that decrease or are before `start`.
        """
        return self._encoded(series(values, times, mask, self.features))

    def forward(
        self,
        values: Tensor,
        times: Tensor,
        mask: Tensor | None = None,
        at: Tensor | None = None,
        samples: int = 1,
    ) -> Tensor:
        """The series at the times `at`, for `samples` draws of z0: `(samples, B, len(at), D)`.

        Parameters
        ----------
        at : Tensor, optional
            Times, `(S,)` or `(B, S)`, none before that of z0; those of the observations where nothing is given.
        """
        observed = series(values, times, mask, self.features)
        mean, std = self._encoded(observed)
        return self._predict(observed, mean, std, at, samples)

    def loss(
        self,
        values: Tensor,
        times: Tensor,
        mask: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        target_mask: Tensor | None = None,
        at: Tensor | None = None,
        samples: int = 3,
        kl_weight: float = 1.0,
    ) -> LatentLoss:
        """Minus the bound on the likelihood of the targets, given the observations.

        Parameters
        ----------
        targets, at, target_mask : Tensor, optional
            Values `(B, S, D)` to be predicted, their times and which of them are known; the observations where no
            targets are given.
        samples : int
            Draws of z0.
        kl_weight : float
            Factor of the divergence, 1 for the bound itself; raised from 0 during the first epochs as a rule.
        """
        observed = series(values, times, mask, self.features)
        if targets is None and (target_mask is not None or at is not None):
            raise ValueError("target_mask and at have no effect without targets")
        wanted = (
            observed
            if targets is None
            else series(
                targets, observed.times if at is None else at, target_mask, self.features, name="targets"
            )
        )
        mean, std = self._encoded(observed)
        predicted = self._predict(observed, mean, std, None if targets is None else wanted.times, samples)
        error = _masked_mean((predicted - wanted.values).square(), wanted.mask)
        log_likelihood = -0.5 * error / self.std**2 - math.log(self.std) - 0.5 * math.log(2 * math.pi)
        kl = (0.5 * (mean.square() + std.square() - 1) - std.log()).mean()
        terms = log_likelihood - kl_weight * kl
        bound = terms.logsumexp(0) - math.log(samples) if self.objective == "iwae" else terms.mean()
        return LatentLoss(-bound, error.mean().detach(), log_likelihood.mean().detach(), kl.detach())

    def _predict(
        self, observed: Series, mean: Tensor, std: Tensor, at: Tensor | None, samples: int
    ) -> Tensor:
        noise = torch.randn(samples, *mean.shape, dtype=mean.dtype, device=mean.device)
        z0 = mean + std * noise
        times = observed.times if at is None else torch.as_tensor(at, dtype=mean.dtype, device=mean.device)
        start = self._time_of_z0(observed)
        if times.numel() and (first := times.min()) < start:
            raise ValueError(
                f"the earliest time in `at`, {first:g}, is before that of z0, {start:g}: give `start`"
            )
        if times.dim() == 2 and self.steps == "own":
            own = torch.cat((start.expand(len(times), 1), times), 1)
            ys = self.solved(z0.transpose(0, 1), own, batch=1)[1:]  # (S, B, samples, latent)
            return self.decoder(ys.permute(2, 1, 0, 3))
        union, place = times.unique(return_inverse=True)
        grid = torch.cat((start[None], union))
        ys = self.solved(z0, grid)[1:]  # (len(union), samples, B, latent)
        if times.dim() == 1:
            return self.decoder(ys[place].permute(1, 2, 0, 3))
        batch = torch.arange(len(mean), device=place.device)[:, None]
        return self.decoder(ys[place, :, batch].permute(2, 0, 1, 3))

    def _encoded(self, observed: Series) -> tuple[Tensor, Tensor]:
        return self.encoder(observed, self._time_of_z0(observed))

    def _time_of_z0(self, observed: Series) -> Tensor:
        first = observed.times.min()
        if self.start is None:
            return first
        if first < self.start:
            raise ValueError(f"the earliest time, {first:g}, is before `start`, {self.start:g}")
        return torch.full_like(first, self.start)

    def solved(self, z0: Tensor, times: Tensor, **batch: Any) -> Tensor:
        """The latent states `(n, *z0.shape)` from z0 at the first of the times on, which are `(n,)`.

        With `batch=1`, z0 is `(B, samples, latent)`, and times are `(B, n)`, of each series.
        """
        solution = solve(self._rate, z0, times, **self.options, **batch)
        self.stats = solution.stats
        return solution.ys

    def _rate(self, t: Tensor, z: Tensor) -> Tensor:
        return self.dynamics(z)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """`(samples,)`: the mean over known values of each feature of each series, then over those."""
    weight = mask.to(values.dtype)
    known = weight.sum(1)  # (B, D)
    per_feature = (values * weight).sum(2) / known.clamp(min=1)
    return per_feature.sum((1, 2)) / (known > 0).sum()
