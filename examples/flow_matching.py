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
# # A flow-matching sampler
#
# Flow matching (Lipman et al., ICLR 2023) trains a velocity field without a solver: on the straight line from a draw
# of noise to a draw of data, the velocity is their difference. Sampling is a solve from noise at t = 0 to data at
# t = 1. How many steps does it need?

# %%
import math
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "3000"))
torch.manual_seed(0)


def moons(n):
    """Two half circles, one in the other's arms."""
    angle, second = math.pi * torch.rand(n), torch.rand(n) < 0.5
    points = torch.stack([angle.cos(), angle.sin()], dim=1)
    points[second] = torch.tensor([1.0, 0.4]) - points[second]
    return 1.5 * (points - torch.tensor([0.5, 0.2])) + 0.06 * torch.randn(n, 2)


# %%
class Velocity(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, t, x):
        return self.net(torch.cat([x, t.expand(len(x)).unsqueeze(1)], dim=1))


velocity = Velocity()
optimizer = torch.optim.Adam(velocity.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for step in range(STEPS):
    data, noise, t = moons(512), torch.randn(512, 2), torch.rand(512)
    x = torch.lerp(noise, data, t[:, None])
    loss = (velocity(t, x) - (data - noise)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 1000 == 0 or step == STEPS - 1:
        print(f"step {step:4}  loss {loss:.3f}")

# %% [markdown]
# ## Sampling
#
# A solve at a tight tolerance is the reference; the same noise, so that the samples can be compared one by one.

# %%
noise = torch.randn(1500, 2)
with torch.no_grad():
    sampler = aca.nn.NeuralODE(velocity, rtol=1e-6, atol=1e-6)
    exact = sampler(noise)
    print(f"dopri5 at 1e-6: {sampler.stats.nfe} evaluations")
    for method, steps in (("euler", 20), ("midpoint", 10), ("rk4", 5), ("rk4", 10)):
        sol = aca.solve(velocity, noise, [0.0, 1.0], method=method, n_steps=steps)
        off = (sol.ys[-1] - exact).norm(dim=1).mean()
        print(f"{method:8} {steps:2} steps, {sol.stats.nfe:3} evaluations: samples off by {off:.4f}")
    curves = sampler(noise, torch.linspace(0.0, 1.0, 41))

figure, panels = plt.subplots(1, 5, figsize=(12, 2.9), sharex=True, sharey=True, layout="constrained")
shown = {"noise, t = 0": curves[0], "t = 0.5": curves[20], "samples, t = 1": curves[40], "data": moons(1500)}
for axes, (title, points) in zip(panels, shown.items()):
    axes.plot(*points.T, ".", color="C1" if title == "data" else "C0", markersize=2)
    axes.set_title(title)
for path in curves[:, :60].unbind(1):
    panels[4].plot(*path.T, color="C0", linewidth=0.6)
    panels[4].plot(*path[-1], ".", color="black", markersize=3)
panels[4].set_title("60 paths, dots: t = 1")
for axes in panels:
    axes.set(xlabel="x1", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
panels[0].set_ylabel("x2")
figure.savefig("flow_matching.png", dpi=110)
