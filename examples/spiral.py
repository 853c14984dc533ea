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
# # A noisy spiral
#
# Learn the vector field behind one noisy trajectory, from minibatches of short segments, and look at the field that was
# learned: it is right where there were data, and nowhere else.

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import nn

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "500"))
torch.manual_seed(0)


def true_field(t, y):
    """A damped pendulum: a spiral in the plane of angle and speed."""
    angle, speed = y.unbind(-1)
    return torch.stack([speed, -2 * angle.sin() - 0.2 * speed], dim=-1)


t = torch.linspace(0.0, 16.0, 400)
truth = aca.solve(true_field, torch.tensor([2.6, 0.0]), t, rtol=1e-6, atol=1e-6).ys
data = truth + 0.04 * torch.randn_like(truth)


# %%
class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 2))

    def forward(self, t, y):
        return self.net(y)


model = aca.nn.NeuralODE(Field(), rtol=1e-3, atol=1e-4)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
losses, length = [], 25
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for step in range(STEPS):
    start = torch.randint(len(t) - length, (64,))
    segments = torch.stack([data[i : i + length] for i in start], dim=1)
    loss = (model(segments[0], t[:length]) - segments).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
    if step % 100 == 0 or step == STEPS - 1:
        print(f"step {step:3}  loss {loss:.4f}  {model.stats.nfe} evaluations")

# %%
with torch.no_grad():
    learned = model(truth[0], t)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-3.5, 3.5, 24)] * 2, indexing="xy"), dim=-1)
    arrows = model.f(None, grid)
    wrong = (arrows - true_field(None, grid)).norm(dim=-1) / true_field(None, grid).norm(dim=-1).mean()
print(f"mean distance from the true trajectory: {(learned - truth).norm(dim=1).mean():.3f}")

figure, (plane, curve) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained", width_ratios=(1.25, 1))
shades = plane.pcolormesh(
    *grid.unbind(-1), wrong.clamp(max=2), cmap="Greys", shading="nearest", vmin=0, vmax=4
)
plane.streamplot(
    *(x.numpy() for x in (*grid.unbind(-1), *arrows.unbind(-1))), color="0.55", linewidth=0.6, density=1.1
)
plane.plot(*data.T, ".", color="C1", markersize=4, label="measured")
plane.plot(*learned.T, color="C0", linewidth=1.8, label="learned trajectory")
plane.set(xlabel="angle in rad", ylabel="speed in rad/s", aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
plane.set_title("learned field; dark: far from the true one", fontsize=10)
curve.semilogy(losses, color="C0", linewidth=0.8, label="loss")
curve.axhline(2 * 0.04**2, color="black", linestyle=":", label="noise of starts and targets")
curve.set(xlabel="training step", ylabel="mean square error")
curve.grid(alpha=0.3)
figure.legend(loc="outside lower center", ncols=4, frameon=False)
figure.savefig("spiral.png", dpi=110)
