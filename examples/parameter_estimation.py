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
# # Parameters of a physical model
#
# The swing of a pendulum was filmed: its angle, 25 times a second, to about a degree. How long is it, and how strong
# are friction and the drag of the air? The model is physics, not a network; the gradient reaches its parameters and its
# start all the same. The Jacobian of the predictions gives the uncertainty.

# %%
import os

import matplotlib.pyplot as plt
import torch

import torchaca as aca

STEPS = int(os.environ.get("STEPS", "25"))
torch.manual_seed(0)
NAMES = ("length in m", "friction in 1/s", "drag", "first angle in rad")
TRUE = torch.tensor([0.80, 0.06, 0.12, 1.20], dtype=torch.float64)


def pendulum(t, y, length, friction, drag):
    angle, speed = y
    return torch.stack([speed, -9.81 / length * angle.sin() - friction * speed - drag * speed.abs() * speed])


def angles(parameters, t):
    """The angle at the times t, released at rest."""
    length, friction, drag, angle = parameters
    start = torch.stack([angle, torch.zeros_like(angle)])
    return aca.solve(pendulum, start, t, args=(length, friction, drag), rtol=1e-8, atol=1e-8).ys[:, 0]


t = torch.arange(0.0, 8.0, 0.04, dtype=torch.float64)
noise = 0.02
measured = angles(TRUE, t) + noise * torch.randn(len(t), dtype=torch.float64)

# %% [markdown]
# ## The fit
#
# From a guess that is a quarter off, by L-BFGS. Over the whole span the guess is out of step after some swings and the
# loss has false minima, so the fit begins with the first second and a half.

# %%
guess = torch.tensor([1.0, 0.03, 0.05, 1.0], dtype=torch.float64)
logs = guess.log().requires_grad_()  # all of them are positive
for end in (1.5, 4.0, 8.0):
    seen = t < end
    optimizer = torch.optim.LBFGS([logs], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss():
        logs.grad = None
        value = (angles(logs.exp(), t[seen]) - measured[seen]).square().mean()  # noqa: B023
        value.backward()
        return value

    optimizer.step(loss)
    print(f"first {end:.1f} s: off by {loss().sqrt():.4f} rad in the mean, noise {noise}")

# %% [markdown]
# ## How sure is that?
#
# With the Jacobian J of the predictions, the covariance is noise² (JᵀJ)⁻¹.

# %%
fitted = logs.exp().detach()
J = torch.func.jacfwd(lambda p: angles(p, t))(fitted)
deviation = noise * torch.linalg.inv(J.T @ J).diagonal().sqrt()
for name, true, value, error in zip(NAMES, TRUE, fitted, deviation):
    print(f"{name:18} {value:.4f} ± {error:.4f}   true {true:.2f}")

# %%
fine = torch.linspace(0.0, 8.0, 400, dtype=torch.float64)
figure, (above, below) = plt.subplots(
    2, 1, figsize=(8, 4.8), sharex=True, height_ratios=(3, 1), layout="constrained"
)
above.plot(fine, angles(guess, fine), color="0.6", linestyle="--", linewidth=1, label="first guess")
above.plot(fine, angles(fitted, fine), color="C0", label="fitted")
above.plot(t, measured, "k.", markersize=3, label="measured")
below.plot(t, measured - angles(fitted, t), "k.", markersize=3)
below.axhspan(-2 * noise, 2 * noise, color="C0", alpha=0.15, label="two deviations of the noise")
above.set(ylabel="angle in rad")
below.set(xlabel="time in s", ylabel="residual")
for axes in (above, below):
    axes.grid(alpha=0.3)
figure.legend(loc="outside lower center", ncols=4, frameon=False)
figure.savefig("parameter_estimation.png", dpi=110)
