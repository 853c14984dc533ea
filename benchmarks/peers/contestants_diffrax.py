"""diffrax as a contestant, jit-compiled by JAX."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from .fields_jax import FIELDS
from .memory import resident_peak
from .protocol import Run
from .workloads import Arrays, Counts, Result, Workload

METHODS = {"dopri5": diffrax.Dopri5(), "heun_euler": diffrax.Heun()}
STAGES = {"dopri5": 6, "heun_euler": 2}
ADJOINTS = {
    "recursive": diffrax.RecursiveCheckpointAdjoint(),
    "direct": diffrax.DirectAdjoint(),
    "backsolve": diffrax.BacksolveAdjoint(),
}


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("diffrax", "jax", "jaxlib", "equinox")}


class DiffraxRun:
    """The solve and its value_and_grad, compiled apart: JAX has no forward pass that is a part of training."""

    def __init__(self, w: Workload, adjoint: str, per_sample: bool) -> None:
        self.workload = w
        self.parameters = {name: jnp.asarray(_inwards(w, x)) for name, x in w.parameters.items()}
        self.y0 = jnp.asarray(_inwards(w, w.y0))
        controller = diffrax.PIDController(rtol=w.tolerance, atol=w.tolerance)

        def solve_one(parameters: dict[str, jax.Array], y0: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
            term = diffrax.ODETerm(FIELDS[w.field])
            solution = diffrax.diffeqsolve(
                *(term, METHODS[w.method], 0.0, w.t1, None, y0, parameters),
                stepsize_controller=controller,
                adjoint=ADJOINTS[adjoint],
            )
            return solution.ys[0], solution.stats

        solve = jax.vmap(solve_one) if per_sample else solve_one

        def loss(parameters: dict[str, jax.Array], y0: jax.Array) -> tuple[jax.Array, Any]:
            y1, stats = solve(parameters, y0)
            return jnp.mean(y1**2), (y1, stats)

        self.forward = jax.jit(lambda parameters, y0: solve(parameters, y0)[0])
        self.step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    def train(self) -> tuple[float, float]:
        try:
            start = time.perf_counter()
            jax.block_until_ready(self.forward(self.parameters, self.y0))
            middle = time.perf_counter()
            jax.block_until_ready(self.step(self.parameters, self.y0))
        except jax.errors.JaxRuntimeError as error:
            raise RuntimeError(_cause(str(error))) from error
        return middle - start, time.perf_counter() - middle

    def result(self) -> Result:
        (_, (y1, stats)), (by_parameters, by_y0) = self.step(self.parameters, self.y0)
        w = self.workload
        gradients: Arrays = {"y0": _outwards(w, np.asarray(by_y0))}
        gradients |= {name: _outwards(w, np.asarray(x)) for name, x in by_parameters.items()}
        steps = {name: float(np.mean(stats[name])) for name in ("num_accepted_steps", "num_rejected_steps")}
        trials = int(np.max(stats["num_steps"]))  # lanes of vmap step in lock-step
        # The first step's size costs two evaluations; an FSAL method makes one before its first step.
        fsal = w.method == "dopri5"
        evaluations = 2 + trials * STAGES[w.method] + fsal
        counts = Counts(evaluations, None, *steps.values())
        return Result(_outwards(w, np.asarray(y1)), gradients, counts)

    def peak(self) -> int | None:
        return resident_peak(lambda: jax.block_until_ready(self.step(self.parameters, self.y0)))

    def syncs(self) -> None:
        return None


def build(w: Workload, variant: dict[str, Any], device: str) -> Run:
    """`variant`: `adjoint`, a name in `ADJOINTS`; `lanes` for the steps of each sample by `jax.vmap`."""
    if device != "cpu":
        raise ValueError("the environment of the benchmark has JAX for CPUs only")
    jax.config.update("jax_enable_x64", w.dtype == "float64")
    return DiffraxRun(w, variant["adjoint"], bool(variant.get("lanes")))


def _cause(message: str) -> str:
    """The line that diffrax wrote, out of all that JAX wraps around it."""
    mark = "_EquinoxRuntimeError:"
    lines = [line.partition(mark)[2].strip() for line in message.splitlines() if mark in line]
    return lines[-1] if lines else message


def _inwards(w: Workload, x: np.ndarray) -> np.ndarray:
    """States `NCHW` and weights `OIHW` as `NHWC` and `HWIO`; see `fields_jax.conv`."""
    if w.field != "conv" or x.ndim != 4:
        return x
    return x.transpose(0, 2, 3, 1) if x.shape == w.y0.shape else x.transpose(2, 3, 1, 0)


def _outwards(w: Workload, x: np.ndarray) -> np.ndarray:
    """The inverse of `_inwards`."""
    if w.field != "conv" or x.ndim != 4:
        return x
    return x.transpose(3, 2, 0, 1) if x.shape[:2] == (3, 3) else x.transpose(0, 3, 1, 2)
