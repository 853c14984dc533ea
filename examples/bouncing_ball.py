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
# # What a ball's bounces say of it
#
# Somebody dropped a ball and wrote down when it hit the ground, to a hundredth of a second. From how high did it fall,
# and how much of its speed does it keep at each bounce? The event's times are differentiable, through all bounces
# before.

# %%
import os

import matplotlib.pyplot as plt
import torch

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "8"))
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def fall(t, y, drag):
    return torch.stack([y[1], -9.81 - drag * y[1] * y[1].abs()])


def drop(height, restitution, drag, t, **options):
    ground = aca.Event(
        lambda t, y, drag: y[0],
        direction=-1,
        apply=lambda t, y, drag: torch.stack([y[0], -restitution * y[1]]),
    )
    start = torch.stack([height, torch.zeros_like(height)])
    return aca.solve(fall, start, t, args=(drag,), events=ground, rtol=1e-7, atol=1e-9, **options)


TRUE = torch.tensor([3.0, 0.82, 0.05])
END, n = 4.6, 5
heard = drop(*TRUE, [0.0, END]).events[0].t[:n] + 0.01 * torch.randn(n)

# %% [markdown]
# ## The fit
#
# By Gauss and Newton's method on the logarithms of the parameters: the residuals are the times of the bounces, and each
# row of their Jacobian is one gradient. The model may bounce more or less often than was heard; what both have is
# compared.

# %%
logs = torch.tensor([2.4, 0.8, 0.02]).log().requires_grad_()
shown = []
for _ in range(STEPS):
    times = drop(*logs.exp(), [0.0, END], on_failure="status").events[0].t[:n]
    off = heard[: len(times)] - times
    J = torch.stack([torch.autograd.grad(time, logs, retain_graph=True)[0] for time in times])
    height, restitution, drag = logs.exp().tolist()
    print(f"off by {off.square().mean().sqrt():.4f} s, height {height:.3f} m, restitution {restitution:.3f}")
    shown.append((height, restitution, drag))
    step = torch.linalg.solve(J.T @ J + 1e-4 * torch.eye(3), J.T @ off.detach())
    logs = (logs + step.clamp(-0.3, 0.3)).detach().requires_grad_()

# %%
figure, axes = plt.subplots(2, 1, figsize=(9, 5), sharex=True, layout="constrained")
t = torch.linspace(0.0, END, 521)
for axis, found, name in zip(axes, (shown[0], shown[-1]), ("the guess", "the fit"), strict=True):
    with torch.no_grad():
        axis.plot(t, drop(*TRUE, t).ys[:, 0], color="0.75", linewidth=3, label="the ball")
        axis.plot(t, drop(*map(torch.tensor, found), t, on_failure="nan").ys[:, 0], label=name)
    axis.plot(heard, [0.0] * n, "kv", label="heard")
    axis.set(ylabel="height, m")
    axis.legend(fontsize=8, loc="upper right")
axes[-1].set(xlabel="t, s")
figure.savefig("bouncing_ball.png", dpi=110)
