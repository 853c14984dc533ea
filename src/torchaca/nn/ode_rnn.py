"""ODE-RNN: the encoder of a latent ODE (Rubanova, Chen, Duvenaud, NeurIPS 2019)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .series import Series


class ODERNN(nn.Module):
    """The encoder: Euler steps between observation times, a gated update at each, from the last time to the first.

    Its state is a mean and a standard deviation, `(B, state)` each. The inputs' part of all gates is computed for
    all times at once; a sample that has no value at a time keeps its state there.
    """

    def __init__(
        self, features: int, latent: int, units: int, layers: int, state: int, gru_units: int
    ) -> None:
        super().__init__()
        self.size, self.gru_units = state, gru_units
        self.dynamics = mlp(state, units, layers)
        inputs = 2 * state + 2 * features
        self.gates_in = nn.Linear(inputs, 2 * gru_units)  # of update and reset, side by side
        self.update_out = nn.Linear(gru_units, state)
        self.reset_out = nn.Linear(gru_units, state)
        self.new_in = nn.Linear(inputs, gru_units)
        self.new_out = nn.Linear(gru_units, 2 * state)
        self.to_z0 = nn.Sequential(nn.Linear(2 * state, 100), nn.Tanh(), nn.Linear(100, 2 * latent))

    def forward(self, observed: Series, start: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z0, which is at the time `start`."""
        values, mask = observed.values, observed.mask
        inputs = torch.cat((values, mask.to(values.dtype)), -1).transpose(0, 1)  # (T, B, 2 D)
        own = 2 * self.size
        gates_own, gates_given = self.gates_in.weight.tensor_split([own], 1)
        new_own, new_given = self.new_in.weight.tensor_split([own], 1)
        seen = mask.any(-1).transpose(0, 1)[..., None]  # (T, B, 1)
        # From each time back to the one before it, and from the first one to the start.
        gaps = torch.cat((observed.times[..., :1] - start, observed.times.diff(dim=-1)), -1)
        gaps = gaps[:, None, None] if gaps.dim() == 1 else gaps.T[..., None]  # (T, B or 1, 1)
        # Unbound once: to index in the loop would cost a gradient of full size for each step.
        gates = F.linear(inputs, gates_given, self.gates_in.bias).unbind()
        new = F.linear(inputs, new_given, self.new_in.bias).unbind()
        state = values.new_zeros(len(values), own)
        for i in range(len(inputs) - 1, -1, -1):
            updated = self._updated(state, gates[i], new[i], gates_own, new_own)
            mean, std = torch.where(seen[i], updated, state).chunk(2, -1)
            state = torch.cat((torch.addcmul(mean, gaps[i], self.dynamics(mean), value=-1), std), -1)
        mean, std = self.to_z0(state).chunk(2, -1)
        return mean, std.abs()

    def _updated(
        self, state: Tensor, gates: Tensor, new: Tensor, gates_own: Tensor, new_own: Tensor
    ) -> Tensor:
        """The state after a value was seen at every sample's present time."""
        for_update, for_reset = torch.tanh(torch.addmm(gates, state, gates_own.T)).chunk(2, -1)
        update = torch.sigmoid(self.update_out(for_update)).repeat(1, 2)
        reset = torch.sigmoid(self.reset_out(for_reset)).repeat(1, 2)
        fresh = self.new_out(torch.tanh(torch.addmm(new, state * reset, new_own.T)))
        mean, std = fresh.chunk(2, -1)
        return torch.lerp(torch.cat((mean, std.abs()), -1), state, update)


def mlp(size: int, units: int, layers: int) -> nn.Sequential:
    """Layers of tanh units from `size` to `size` dimensions."""
    widths = [size] + [units] * (layers + 1) + [size]
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*parts[:-1])
