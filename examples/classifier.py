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
# # An ODE block in a classifier
#
# Two classes, one inside of the other. Trajectories of an ODE cannot cross, so a flow of the plane cannot lift the disk
# out of the ring: it has to squeeze it through. With one more dimension, zero at the start, the way is free (an
# augmented neural ODE: Dupont, Doucet and Teh, NeurIPS 2019).

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "150"))


def circles(n):
    """Points and their classes: a disk, and a ring around it."""
    inside = torch.arange(n) % 2 == 0
    radius = torch.where(inside, 0.5 * torch.rand(n).sqrt(), 0.8 + 0.3 * torch.rand(n))
    angle = 2 * torch.pi * torch.rand(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), inside.long()


class Field(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))

    def forward(self, t, y):
        return self.net(y)


class Classifier(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.extra = extra
        self.block = aca.nn.NeuralODE(Field(2 + extra), method="bosh3", rtol=1e-2, atol=1e-3)
        self.readout = nn.Linear(2 + extra, 2)

    def forward(self, x):
        return self.readout(self.block(nn.functional.pad(x, (0, self.extra))))


# %%
models, curves = {}, {}
for extra in (0, 1):
    torch.manual_seed(0)
    model = models[extra] = Classifier(extra)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    evaluations = []
    for _ in range(STEPS):
        x, label = circles(256)
        loss = nn.functional.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        evaluations.append(model.block.stats.nfe)
    curves[extra] = evaluations
    x, label = circles(2000)
    with torch.no_grad():
        right = (model(x).argmax(1) == label).float().mean()
    print(f"{2 + extra} dimensions: loss {loss:.3f}, {right:.1%} right, {evaluations[-1]} evaluations of f")

# %%
points, label = circles(300)
grid = torch.stack(torch.meshgrid(*[torch.linspace(-1.3, 1.3, 120)] * 2, indexing="xy"), dim=-1)
figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for axes, (extra, model) in zip(panels, models.items()):
    with torch.no_grad():
        inner = model(grid.reshape(-1, 2)).softmax(1)[:, 1].reshape(120, 120)
    shades = axes.contourf(*grid.unbind(-1), inner, levels=20, cmap="RdBu", vmin=-0.5, vmax=1.5)
    for kind, colour in ((0, "darkred"), (1, "navy")):
        axes.plot(*points[label == kind].T, ".", color=colour, markersize=4)
    axes.set(title=f"{2 + extra} dimensions", xlabel="x1", ylabel="x2", aspect="equal")
figure.colorbar(
    shades, ax=panels[:2].tolist(), location="left", label="probability of the disk", ticks=(0, 0.5, 1)
)
for extra, evaluations in curves.items():
    panels[2].plot(evaluations, label=f"{2 + extra} dimensions")
panels[2].set(xlabel="training step", ylabel="evaluations of f, forward", ylim=(0, None))
panels[2].grid(alpha=0.3)
panels[2].legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncols=2, frameon=False)
figure.savefig("classifier.png", dpi=110)
