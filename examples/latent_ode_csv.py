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
# # A latent ODE from a CSV file
#
# Series with gaps, in the long format that spreadsheets give: one line for each value, `series,time,channel,value`.
# Here: 60 damped oscillations, each seen at 15 times of its own, and half of the values of the second channel missing.
# `nn.LatentODE` fills the gaps and goes on where the data end. Put your own file in the place of `series.csv`.

# %%
import csv
import math
import os
import random
from collections import defaultdict

import matplotlib.pyplot as plt
import torch

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "250"))
random.seed(0)
torch.manual_seed(0)

# %% [markdown]
# ## The file

# %%
with open("series.csv", "w", newline="") as file:
    lines = csv.writer(file)
    lines.writerow(["series", "time", "channel", "value"])
    for number in range(60):
        phase, size = random.uniform(0, 2 * math.pi), random.uniform(0.5, 1.5)
        for time in sorted(random.uniform(0, 4) for _ in range(15)):
            decay = size * math.exp(-0.25 * time)
            lines.writerow([number, time, 0, decay * math.cos(2 * time + phase) + random.gauss(0, 0.03)])
            if random.random() < 0.5:
                lines.writerow([number, time, 1, decay * math.sin(2 * time + phase) + random.gauss(0, 0.03)])

# %% [markdown]
# ## From lines to tensors
#
# `values` `(series, times, channels)`, `times` `(series, times)`, and `mask`, true where a value was measured.

# %%
table = defaultdict(dict)
with open("series.csv", newline="") as file:
    for line in csv.DictReader(file):
        table[line["series"]].setdefault(float(line["time"]), {})[int(line["channel"])] = float(line["value"])
longest = max(map(len, table.values()))
values, mask = torch.zeros(len(table), longest, 2), torch.zeros(len(table), longest, 2, dtype=torch.bool)
times = torch.zeros(len(table), longest)
for i, rows in enumerate(table.values()):
    for j, (time, channels) in enumerate(sorted(rows.items())):
        times[i, j] = time
        for channel, value in channels.items():
            values[i, j, channel], mask[i, j, channel] = value, True
times = times / 4.0  # a span of about one suits the network
print(f"{len(values)} series, {longest} times, {mask.float().mean():.0%} of the values measured")

# %% [markdown]
# ## Training

# %%
model = aca.nn.LatentODE(
    2, latent=6, units=48, layers=1, state=12, gru_units=32, std=0.05, start=0.0, rtol=1e-3, atol=1e-4
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
train = slice(0, 48)
for step in range(STEPS):
    chosen = torch.randperm(48)[:24]
    found = model.loss(values[chosen], times[chosen], mask[chosen], kl_weight=min(0.01, step / 1e4))
    optimizer.zero_grad()
    found.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    if step % 50 == 0 or step == STEPS - 1:
        print(f"step {step:3}  mean square error {found.mse:.4f}")

# %% [markdown]
# ## Series that it has not seen

# %%
with torch.no_grad():
    at = torch.linspace(0.0, 1.25, 80)  # a quarter of the span beyond the data
    draws = model(values[48:], times[48:], mask[48:], at=at, samples=40)
mean, spread = draws.mean(0), draws.std(0)

figure, panels = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey="row", layout="constrained")
for i, column in enumerate(panels.T):
    for channel, axes in enumerate(column):
        seen = mask[48 + i, :, channel]
        low, high = (mean + s * 2 * spread for s in (-1, 1))
        axes.axvspan(4.0, 5.0, color="0.93", label="beyond the data")
        axes.fill_between(
            4 * at, low[i, :, channel], high[i, :, channel], color="C0", alpha=0.25, label="two deviations"
        )
        axes.plot(4 * at, mean[i, :, channel], color="C0", label="mean of the draws")
        axes.plot(4 * times[48 + i][seen], values[48 + i, seen, channel], "k.", label="measured")
        axes.set_ylim(-2.2, 2.2)
    column[0].set_title(f"series {48 + i}, not trained on", fontsize=10)
    column[1].set_xlabel("time")
for channel in (0, 1):
    panels[channel, 0].set_ylabel(f"channel {channel}")
figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
figure.savefig("latent_ode_csv.png", dpi=110)
os.remove("series.csv")
