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
# # A hybrid system from data: a house and its thermostat
#
# The temperature of a house was measured every ten minutes of a day. The heating switches itself on and off at two
# set points, and nobody has written down when. The state is the temperature and the mode; two events exchange it. All
# parameters are learned from the temperature alone: the set points, the heating's power, and how fast the house loses
# heat.

# %%
import os

import matplotlib.pyplot as plt
import torch

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "25"))
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
NAMES = ("on below", "off above", "power, K/h", "loss, 1/h")


def outside(t):
    return 4.0 - 5.0 * torch.cos(0.2618 * (t - 4.0))


def switch(to):
    return lambda t, y: torch.stack([y[0], torch.full_like(y[1], to)])


def house(parameters, t):
    on, off, power, loss = parameters

    def f(t, y):
        temperature, heating = y
        return torch.stack([power * heating - loss * (temperature - outside(t)), torch.zeros_like(heating)])

    events = [
        aca.Event(lambda t, y: y[0] - off, direction=1, apply=switch(0.0)),
        aca.Event(lambda t, y: y[0] - on, direction=-1, apply=switch(1.0)),
    ]
    return aca.solve(f, torch.tensor([17.0, 1.0]), t, events=events, rtol=1e-6, atol=1e-8)


TRUE = torch.tensor([19.0, 21.5, 4.5, 0.12])
t = torch.arange(0.0, 24.01, 1 / 6)
measured = house(TRUE, t).ys[:, 0] + 0.1 * torch.randn(len(t))

# %% [markdown]
# ## The fit
#
# A model that switches at other times is out of step after some hours, and the loss has false minima there. So the
# guess is read off the measured curve, its turns and its slopes, and the fit begins with the first hours.

# %%
late = measured[t > 4]
rise, fall = measured[:13].diff().mean() * 6, measured.diff().min() * 6
logs = (
    torch.stack([late.min() + 0.2, late.max() - 0.2, rise - 0.5 * fall, torch.tensor(0.08)])
    .log()
    .requires_grad_()
)
for end in (6.0, 12.0, 24.0):
    seen = t <= end
    optimizer = torch.optim.LBFGS([logs], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss():
        value = (house(logs.exp(), t[seen]).ys[:, 0] - measured[seen]).square().mean()  # noqa: B023
        logs.grad = None
        value.backward()
        return value

    optimizer.step(loss)
    print(f"first {end:4.1f} h: off by {loss().sqrt():.3f} K")
for name, found, true in zip(NAMES, logs.exp().tolist(), TRUE.tolist(), strict=True):
    print(f"{name:12} {found:7.3f}   (true {true:g})")

# %%
parameters = logs.exp().detach()
figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
with torch.no_grad():
    fine = torch.linspace(0.0, 24.0, 1441)
    sol = house(parameters, fine)
axis.plot(t, measured, ".", color="0.6", label="measured")
axis.plot(fine, sol.ys[:, 0], label="the model")
axis.fill_between(fine, 16.5, 23, where=sol.ys[:, 1] > 0.5, color="C1", alpha=0.12, label="heating is on")
for level in parameters.tolist()[:2]:
    axis.axhline(level, color="0.5", linewidth=0.8, linestyle="--")
axis.set(xlabel="t, h", ylabel="temperature, °C", ylim=(16.5, 23))
axis.legend(fontsize=8, loc="lower right")
figure.savefig("thermostat.png", dpi=110)
