"""Who takes part: the rows of every table, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .workloads import Workload

EXACT, CONTINUOUS = "of the computed solution", "by the adjoint ODE"


@dataclass(frozen=True, eq=False)  # a contestant is itself: a key of dictionaries
class Contestant:
    """A library with settings; `gradient` says whose derivative it computes, `lanes` that each sample has own steps."""

    name: str
    library: str
    variant: Mapping[str, Any] = field(default_factory=dict)
    gradient: str = EXACT

    @property
    def compiled(self) -> bool:
        return self.library == "diffrax" or bool(self.variant.get("compile"))

    def takes(self, w: Workload) -> bool:
        """Whether the row belongs into this workload's table."""
        if self.variant.get("by_hand"):
            return w.field == "gravity"
        return w.per_sample or not self.variant.get("lanes")


KEPT = 'torchaca, ACA(checkpoints="none")'
LANES = "torchaca, vmap"
BATCH, BATCH_COMPILED = "torchaca, batch=1", "torchaca, batch=1, compile=True"
COMPILED, COMPILED_KEPT = "torchaca, compile=True", 'torchaca, compile=True, ACA(checkpoints="none")'

BY_HAND = "C by hand"

CONTESTANTS = (
    Contestant(BY_HAND, "torchaca", {"by_hand": True}),
    Contestant("torchaca", "torchaca", {"gradient": "aca"}),
    Contestant(KEPT, "torchaca", {"gradient": "none"}),
    Contestant("torchaca, adjoint", "torchaca", {"gradient": "adjoint"}, CONTINUOUS),
    Contestant(LANES, "torchaca", {"gradient": "aca", "lanes": True}),
    Contestant(BATCH, "torchaca", {"gradient": "aca", "lanes": True, "batch": True}),
    Contestant(
        BATCH_COMPILED, "torchaca", {"gradient": "aca", "lanes": True, "batch": True, "compile": True}
    ),
    Contestant(
        'torchaca, batch=1, compile="steps"',
        "torchaca",
        {"gradient": "aca", "lanes": True, "batch": True, "compile": "steps"},
    ),
    Contestant('torchaca, compile="steps"', "torchaca", {"gradient": "aca", "compile": "steps"}),
    Contestant('torchaca, compile="loops"', "torchaca", {"gradient": "aca", "compile": "loops"}),
    Contestant(COMPILED, "torchaca", {"gradient": "aca", "compile": True}),
    Contestant(COMPILED_KEPT, "torchaca", {"gradient": "none", "compile": True}),
    Contestant("torchdiffeq odeint", "torchdiffeq"),
    Contestant("torchdiffeq odeint, step_t=[t1]", "torchdiffeq", {"landing": True}),
    Contestant("torchdiffeq odeint_adjoint", "torchdiffeq", {"adjoint": "default"}, CONTINUOUS),
    Contestant("torchdiffeq odeint_adjoint, seminorm", "torchdiffeq", {"adjoint": "seminorm"}, CONTINUOUS),
    Contestant("torchode AutoDiffAdjoint", "torchode", {"adjoint": "autodiff"}),
    Contestant("torchode BacksolveAdjoint", "torchode", {"adjoint": "backsolve"}, CONTINUOUS),
    Contestant("torchode JointBacksolveAdjoint", "torchode", {"adjoint": "joint"}, CONTINUOUS),
    Contestant("torchdyn autograd", "torchdyn", {"sensitivity": "autograd"}),
    Contestant("torchdyn adjoint", "torchdyn", {"sensitivity": "adjoint"}, CONTINUOUS),
    Contestant("diffrax", "diffrax", {"adjoint": "recursive"}),
    Contestant("diffrax, vmap", "diffrax", {"adjoint": "recursive", "lanes": True}),
    Contestant("diffrax DirectAdjoint", "diffrax", {"adjoint": "direct"}),
    Contestant("diffrax BacksolveAdjoint", "diffrax", {"adjoint": "backsolve"}, CONTINUOUS),
)
