# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which gradient for my model?
#
# `check_gradient` differentiates your own loss by every gradient method, beside a reference at a tight tolerance in
# float64: error, time, memory. Here on the van der Pol oscillator with a learned correction, over a span in which it
# contracts: hard for a continuous adjoint.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import torchaca as aca

torch.manual_seed(0)


class Oscillator(nn.Module):
    def __init__(self):
        super().__init__()
        self.correction = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, t, y):
        position, speed = y[:, :1], y[:, 1:]
        force = (0.15 - position**2) * speed - position + 0.1 * self.correction(y)
        return torch.cat([speed, force], dim=1)


def loss(ys):
    return ys[-1].square().mean()


# %%
f, y0, t = Oscillator().double(), torch.randn(8, 2, dtype=torch.float64), [0.0, 10.0]
gradients = ["aca", aca.ACA(checkpoints="sqrt"), "direct", "naive", "adjoint"]
report = aca.check_gradient(f, y0, t, loss, gradients=gradients, rtol=1e-4, atol=1e-4)
print(report)

# %% [markdown]
# As a picture: the further to the left, the better.

# %%
rows = [row for row in report.rows if row.failure is None][::-1]
shown = {
    "relative error of the gradient": [row.error_ode for row in rows],
    "memory for the backward pass, kB": [row.memory / 1e3 for row in rows],
    "evaluations of f, forward + backward": [row.nfe + row.nfe_backward for row in rows],
}
figure, panels = plt.subplots(1, 3, figsize=(11, 2.6), sharey=True, layout="constrained")
for axes, (title, values) in zip(panels, shown.items()):
    axes.plot(values, range(len(rows)), "o", color="C0", markersize=8)
    axes.set(xlabel=title, ylim=(-0.6, len(rows) - 0.4), xlim=(0, 1.1 * max(values)))
    axes.grid(alpha=0.3)
panels[0].set_yticks(range(len(rows)), [row.gradient for row in rows])
figure.savefig("check_gradient.png", dpi=110)
