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
# # A neuron that learns its threshold
#
# A leaky integrate-and-fire neuron charges until its voltage reaches a threshold, fires, and is reset. Its spikes were
# recorded, nothing else. Spike times depend on the threshold, the leak and the weight of the input through all spikes
# before, and their gradients are exact: no surrogate is needed.

# %%
import os

import matplotlib.pyplot as plt
import torch

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "14"))
torch.set_default_dtype(torch.float64)
END = 40.0  # ms


def current(t):
    """What the neuron is fed with, in mV."""
    return 1.0 + 0.15 * torch.sin(0.4 * t)


def spikes(threshold, tau, weight, t=(0.0, END)):
    fires = aca.Event(lambda t, v: v - threshold, direction=1, apply=lambda t, v: v - threshold)
    return aca.solve(
        lambda t, v: (weight * current(t) - v) / tau, torch.zeros(()), t, events=fires, rtol=1e-7, atol=1e-9
    )


TRUE = {"threshold": 1.50, "tau": 4.0, "weight": 1.9}
recorded = spikes(*map(torch.tensor, TRUE.values())).events[0].t
print(f"{len(recorded)} spikes, the first at {recorded[0]:.2f} ms")

# %% [markdown]
# ## The fit
#
# By Gauss and Newton's method on the logarithms of threshold and leak. The weight of the input is known: otherwise only
# its ratio to the threshold could be told. The first three spikes are fitted first, then four, and so on: a model that
# has missed a spike says nothing of those that follow.

# %%
logs = torch.tensor([1.3, 6.0]).log().requires_grad_()
history = []
for n in range(3, STEPS + 3):
    threshold, tau = logs.exp()
    found = spikes(threshold, tau, torch.tensor(TRUE["weight"])).events[0].t
    common = min(n, len(found), len(recorded))
    off = (recorded[:common] - found[:common]).detach()
    history.append((threshold.item(), tau.item(), found.detach()))
    error = off.square().mean().sqrt()
    print(f"{len(found)} spikes, off by {error:.4f} ms, threshold {threshold:.4f} mV, tau {tau:.3f} ms")
    J = torch.stack([torch.autograd.grad(time, logs, retain_graph=True)[0] for time in found[:common]])
    step = torch.linalg.solve(J.T @ J + 1e-4 * torch.eye(2), J.T @ off)
    logs = (logs + step * (0.1 / step.abs().max()).clamp(max=1.0)).detach().requires_grad_()

# %%
figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5), layout="constrained", sharex=True)
t = torch.linspace(0.0, END, 1201)
with torch.no_grad():
    threshold, tau, _ = history[-1]
    top.plot(
        t, spikes(*map(torch.tensor, TRUE.values()), t).ys, color="0.75", linewidth=3, label="recorded neuron"
    )
    top.plot(
        t, spikes(*map(torch.tensor, (threshold, tau, TRUE["weight"])), t).ys, label="the model, trained"
    )
top.set(ylabel="voltage, mV")
top.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8, frameon=False)
for step, (_, _, found) in enumerate(history):
    bottom.plot(found, [step] * len(found), ".", color="C0", markersize=4)
for time in recorded:
    bottom.axvline(time, color="0.75", linewidth=1, zorder=0)
bottom.yaxis.get_major_locator().set_params(integer=True)
bottom.set(xlabel="t, ms", ylabel="try", title="spikes; the lines are the recorded ones")
figure.savefig("spiking_neuron.png", dpi=110)
