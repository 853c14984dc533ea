"""Every gradient by name, and ACA under each of its settings: what promises of every gradient run over."""

from dataclasses import fields

from torchaca import ACA, GRADIENTS
from torchaca.gradients.aca import CHECKPOINTS

ACA_SETTINGS = {
    **{f"aca-{name}": ACA(checkpoints=name) for name in CHECKPOINTS},
    "aca-2": ACA(checkpoints=2),
    "aca-budget": ACA(memory_budget="1GB"),
    "aca-stagewise": ACA(stagewise=True),
    "aca-stagewise-sqrt": ACA(stagewise=True, checkpoints="sqrt"),
    "aca-grad-rtol": ACA(grad_rtol=0.5),
}
assert {f.name for f in fields(ACA) if f.init} == {
    "checkpoints",
    "memory_budget",
    "stagewise",
    "grad_rtol",
    "substeps",  # of a gradient of its own: test_substeps.py
}, "a new field of ACA needs a row in ACA_SETTINGS"
EVERY = {**{name: make() for name, make in GRADIENTS.items() if name != "aca"}, **ACA_SETTINGS}
"""Gradients by the names of their settings; "aca-all" is "aca"."""


def options_for(gradient, **options):
    """Options of a solve under this gradient: mali needs a reversible method."""
    return {**options, "gradient": gradient, **({"method": "alf"} if gradient.name == "mali" else {})}
