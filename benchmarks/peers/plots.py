"""The plots beside the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import NullFormatter

from torchaca.lab.plots import figure, save

from .growth import Curve

FEATURED = {
    "torchaca, compile=True": "torchaca, compiled",
    "torchaca": "torchaca",
    "diffrax": "diffrax (JAX, compiled)",
    "torchdyn autograd": "torchdyn",
    "torchdiffeq odeint": "torchdiffeq",
    "torchode AutoDiffAdjoint": "torchode",
    "torchdyn adjoint": "torchdyn, adjoint",
    "torchdiffeq odeint_adjoint": "torchdiffeq, adjoint",
}
"""One row of each library and kind of gradient, and its name in the picture."""
GROWN = ("torchaca", 'torchaca, ACA(checkpoints="none")', "torchaca, adjoint", "torchaca, compile=True")


def training_steps(times: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Milliseconds of forward and backward pass, from zero on: a panel for each workload, a dot for each contestant."""
    made = figure(11, 0.4 + 2.6 * -(-len(times) // 2))
    panels = made.subplots(-(-len(times) // 2), 2, squeeze=False).ravel()
    for panel, (workload, by_name) in zip(panels, times.items(), strict=False):
        for place, name in enumerate(reversed(FEATURED)):
            ours, ms = name.startswith("torchaca"), by_name.get(name)
            if ms is not None:
                panel.hlines(place, 0, ms, color="0.9", linewidth=1)
                size = 8 if ours else 6
                panel.plot(ms, place, "o", color="C0" if ours else "0.55", markersize=size, clip_on=False)
            said = "no answer" if ms is None else f"{ms:.3g}" if ms < 1000 else f"{ms:.0f}"
            panel.annotate(
                said,
                (ms or 0, place),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="C0" if ours else "0.3",
            )
        panel.set_yticks(range(len(FEATURED)), reversed(FEATURED.values()), fontsize=8)
        for label in panel.get_yticklabels():
            ours = label.get_text().startswith("torchaca")
            label.set(color="C0" if ours else "black", fontweight="bold" if ours else "normal")
        panel.set_ylim(-0.6, len(FEATURED) - 0.4)
        panel.set_xlim(0, 1.15 * max(by_name[name] for name in FEATURED if name in by_name))
        panel.set_title(workload, fontsize=8, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(axis="x", labelsize=8)
        panel.set_xlabel("forward + backward, ms", fontsize=8)
    for panel in panels[len(times) :]:
        panel.set_visible(False)
    save(made, path)


def growth(curves: Sequence[Curve], path: Path) -> None:
    """Milliseconds and evaluations against steps and against samples, in double logarithms, beside straight lines.

    Evaluations of settings that evaluate alike would lie on top of each other: only those in GROWN are drawn.
    """
    made = figure(11, 8)
    axes = ("accepted steps", "samples")
    panels = made.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        for curve in (c for c in curves if c.axis == axis and c.contestant in GROWN):
            sizes = [p.size for p in curve.points]
            times = [1e3 * p.seconds for p in curve.points]
            (drawn,) = panels[0][column].loglog(sizes, times, "o-", label=curve.contestant)
            proportional = [times[-1] * size / sizes[-1] for size in sizes]
            panels[0][column].loglog(sizes, proportional, ":", color=drawn.get_color())
            panels[1][column].loglog(
                sizes, [p.evaluations for p in curve.points], "o-", label=curve.contestant
            )
        panels[0][column].set_ylabel("forward + backward, ms (dotted: proportional)")
        panels[1][column].set_ylabel("evaluations of f, forward + backward")
        for row in panels:
            row[column].set_xlabel(axis)
            row[column].grid(True, which="both", alpha=0.3)
            row[column].xaxis.set_minor_formatter(NullFormatter())
    named = panels[0][0].get_legend_handles_labels()
    made.legend(*named, loc="outside lower center", ncols=3, fontsize=8)
    save(made, path)
