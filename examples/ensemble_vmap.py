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
# # An ensemble by vmap
#
# Eight networks from eight initialisations, trained at once: `torch.func.vmap` over the solve. Each lane has step sizes
# of its own, as if it were solved alone. The spread of the members says where the data speak.

# %%
import os

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "400"))
MEMBERS = 8
torch.manual_seed(0)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 2))

    def forward(self, t, y):
        return self.net(y)


# %% [markdown]
# ## Data: a damped swing, seen for six seconds with a gap

# %%
t = torch.cat([torch.linspace(0.0, 2.5, 14), torch.linspace(4.5, 6.0, 9)])
swing = torch.tensor([[0.0, 1.0], [-1.5, -0.25]])
fine = torch.linspace(0.0, 10.0, 150)
with torch.no_grad():
    truth = aca.solve(
        lambda t, y: y @ swing.T, torch.tensor([1.5, 0.0]), fine, rtol=1e-6, atol=1e-6, dense=True
    )
    data = truth(t) + 0.05 * torch.randn(len(t), 2)

# %%
members = [Field() for _ in range(MEMBERS)]
skeleton = Field()
parameters, buffers = stack_module_state(members)


def predict(weights, times):
    """The states of one member at these times."""
    return aca.solve(
        lambda t, y: functional_call(skeleton, weights, (t, y)), data[0], times, rtol=1e-3, atol=1e-4
    ).ys


optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
for step in range(STEPS):
    seen = t <= max(1.0, min(6.0, 9.0 * step / STEPS))  # the first seconds first, then more and more
    times, targets = t[seen], data[seen]
    errors = vmap(lambda weights: (predict(weights, times) - targets).square().mean())(parameters)  # noqa: B023
    optimizer.zero_grad()
    errors.sum().backward()
    optimizer.step()
    if step % 100 == 0 or step == STEPS - 1:
        print(f"step {step:3}  mean square error from {errors.min():.4f} to {errors.max():.4f}")

# %%
with torch.no_grad():
    paths = vmap(lambda weights: predict(weights, fine))(parameters)
spread = paths[..., 0].std(0)
for name, when in (("with data", 1.0), ("in the gap", 3.5), ("beyond the data", 9.0)):
    print(f"t = {when}, {name}: members differ by {spread[(fine - when).abs().argmin()]:.3f}")

figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
axes.axvspan(2.5, 4.5, color="0.93", label="no data")
axes.axvspan(6.0, 10.0, color="0.93")
axes.plot(
    fine, paths[..., 0].T, color="C0", linewidth=0.7, alpha=0.6, label=["members", *[None] * (MEMBERS - 1)]
)
axes.plot(fine, truth.ys[:, 0], color="black", linestyle="--", linewidth=1.2, label="true")
axes.plot(t, data[:, 0], "ko", markersize=4, label="measured")
axes.set(xlabel="time in s", ylabel="position", xlim=(0, 10), ylim=(-2, 2))
axes.grid(alpha=0.3)
figure.legend(loc="outside lower center", ncols=4, frameon=False)
figure.savefig("ensemble_vmap.png", dpi=110)

# %% [markdown]
# The members agree where there are data, and differ in the gap and beyond. That is a lower bound of the uncertainty:
# all of them share the data's noise, and the true motion may lie outside of what they span.
