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
# # The value is right, the gradient is not
#
# A damped oscillator at rest, and a force that is switched off, a = 0. Nothing moves, so no step has an error, and the
# steps grow tenfold each. The value is right to all digits. What a force *would* do, the derivative with respect to a,
# goes through the same steps, and they are far too long for it.

# %%
import matplotlib.pyplot as plt
import torch

import torchaca as aca

torch.set_default_dtype(torch.float64)


def gradient(T, gradient="aca", **options):
    """d x(T) / d a at a = 0, the solution, and what it says of its error."""
    a = torch.tensor(0.0, requires_grad=True)

    def f(t, y):
        return torch.stack([y[1], -y[0] - 0.1 * y[1] + a * torch.cos(3 * t)])

    sol = aca.solve(f, torch.zeros(2), [0.0, T], rtol=1e-6, atol=1e-9, gradient=gradient, **options)
    return torch.autograd.grad(sol.ys[-1, 0], a)[0].item(), sol


def exact(T):
    """The model is linear in a: its derivative is its solution for a = 1."""

    def f(t, y):
        return torch.stack([y[1], -y[0] - 0.1 * y[1] + torch.cos(3 * t)])

    return aca.solve(f, torch.zeros(2), [0.0, T], rtol=1e-11, atol=1e-13).ys[-1, 0].item()


# %%
true = exact(20.0)
found, sol = gradient(20.0, at_rest="ignore")
steps = [f"{t:.3g}" for t in sol.steps]
print(f"x(20) = {sol.ys[-1, 0]:.1f}, exact 0; d x(20) / d a = {found:.3g}, exact {true:.4f}")
print("steps end at", ", ".join(steps))

# %% [markdown]
# What the library does about it. By default (`at_rest="resolve"`) a solve looks beside the state, with one evaluation,
# where the error says nothing, and bounds the next step. `ACA(grad_rtol=1e-2)` repairs the steps in the backward pass,
# compares, and says what it found.

# %%
ways = {
    'at_rest="ignore", as elsewhere': {"at_rest": "ignore"},
    "ACA(substeps=2)": {"at_rest": "ignore", "gradient": aca.ACA(substeps=2)},
    'at_rest="resolve", the default': {},
    "ACA(grad_rtol=1e-2)": {"at_rest": "ignore", "gradient": aca.ACA(grad_rtol=1e-2)},
}
for name, options in ways.items():
    found, sol = gradient(20.0, **options)
    said = sol.stats.gradient_error
    print(
        f"{name:32} {found:12.5g}, off by {abs(found / true - 1):.0e}, evaluations {sol.stats.nfe} +"
        f" {sol.stats.nfe_backward}" + ("" if said is None else f", said to be off by {said:.0e}")
    )
for name, part in said.parts.items():
    print(f"    {part:.0e} of it: {name}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
times = torch.linspace(0.0, 20.0, 201)
for at in (0.0, 1e-3):

    def f(t, y, at=at):
        return torch.stack([y[1], -y[0] - 0.1 * y[1] + at * torch.cos(3 * t)])

    ys = aca.solve(f, torch.zeros(2), times, rtol=1e-9, atol=1e-12).ys[:, 0]
    left.plot(times, ys * 1e3, label=f"the solution, a = {at:g}")
marks = [t for t in sol.steps if t <= 20]
left.plot(marks, [0.0] * len(marks), "k|", markersize=12, label="steps for a = 0")
left.set(xlabel="t", ylabel="1,000 x(t)", title="the value")
left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, frameon=False, ncols=2)

spans = [2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 50.0]
truths = [exact(T) for T in spans]
for (name, options), style in zip(ways.items(), ("o-", "s-", "^-", "d-"), strict=True):
    errors = [abs(gradient(T, **options)[0] / wanted - 1) for T, wanted in zip(spans, truths, strict=True)]
    right.semilogy(spans, errors, style, label=name)
right.axhline(1.0, color="grey", linewidth=0.8)
right.set(xlabel="time span", title="relative error of the gradient")
right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=8, frameon=False, ncols=2)
figure.savefig("gradient_at_rest.png", dpi=110)
