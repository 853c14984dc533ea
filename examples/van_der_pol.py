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
# # Why gradients go wrong
#
# A van der Pol oscillator, solved to the time 25 and from there back to 0. The motion settles on a cycle, whatever its
# start, so the way back cannot tell where it began. The backward pass of a continuous adjoint relies on such a reverse
# solve. ACA keeps the states between its steps instead, and starts each replay at the one that was there.

# %%
import matplotlib.pyplot as plt
import torch

import torchaca as aca

MU, END = 0.15, 25.0


def van_der_pol(t, y):
    return torch.stack([y[1], (MU - y[0] ** 2) * y[1] - y[0]])


# %%
start = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
there = torch.linspace(0.0, END, 1001, dtype=torch.float64)
with torch.no_grad():
    forward = aca.solve(van_der_pol, start, there, rtol=1e-4, atol=1e-4).ys
    reverse = aca.solve(van_der_pol, forward[-1], there.flip(0), rtol=1e-4, atol=1e-4).ys
found = ", ".join(f"{x:.2f}" for x in reverse[-1].tolist())
print(f"started at (2, 0); recovered ({found})")

# %% [markdown]
# What that does to the gradient of |y(25)|², measured against one at a tolerance of 1e-12:


# %%
def gradient(method, tolerance):
    end = aca.solve(van_der_pol, start, [0.0, END], rtol=tolerance, atol=tolerance, gradient=method).ys[-1]
    return torch.autograd.grad(end.square().sum(), start)[0]


exact = gradient("direct", 1e-12)
for method in ("aca", "adjoint"):
    error = (gradient(method, 1e-4) - exact).norm() / exact.norm()
    print(f"{method:8} relative error of the gradient at rtol = atol = 1e-4: {error:.1e}")

# %%
figure, axes = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
axes.plot(*forward.T, color="C0", linewidth=1.8, label=f"forward, to t = {END:g}")
axes.plot(*reverse.T, color="C3", linewidth=1.4, linestyle="--", label="and back, to t = 0")
axes.plot(*forward[0], "o", color="C0", markersize=9, label="the start")
axes.plot(*reverse[-1], "X", color="C3", markersize=10, label="the start as recovered")
axes.set(xlabel="position y1", ylabel="velocity y2", aspect="equal")
axes.grid(alpha=0.3)
figure.legend(loc="outside lower center", ncols=2, frameon=False)
figure.savefig("van_der_pol.png", dpi=110)
