"""The problems that every contestant solves: weights, initial state, span and tolerance, in NumPy arrays.

Nothing here imports a deep learning library: the workers of all of them get the same arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

K1, K2 = 0.200484, 7.239324  # of the three-body problem: gravity, and speed, in its units


@dataclass(frozen=True)
class Workload:
    """dy/dt = f(t, y; parameters) from 0 to t1; the loss is the mean square of y(t1).

    Attributes
    ----------
    name : str
        What `--workloads` calls it.
    title : str
        What the table calls it.
    field : str
        Which f: a name in `fields_torch.FIELDS` and `fields_jax.FIELDS`.
    parameters : dict of arrays
        In the order of the gradient's entries.
    y0 : array
        The first axis is the batch, except for `field="gravity"`.
    t1, tolerance : float
        The end, and both rtol and atol.
    method : str
        `dopri5` or `heun_euler`.
    per_sample : bool
        Whether each row of y is an ODE of its own, which a solver may give steps of its own; `parameters` then
        have one entry a row.
    """

    name: str
    title: str
    field: str
    parameters: Arrays
    y0: np.ndarray
    t1: float
    tolerance: float
    method: str = "dopri5"
    per_sample: bool = False

    @property
    def dtype(self) -> str:
        """`float32` or `float64`."""
        return str(self.y0.dtype)

    def double(self, tolerance: float) -> Workload:
        """The same problem in float64 at another tolerance."""
        parameters = {name: value.astype(np.float64) for name, value in self.parameters.items()}
        return replace(self, parameters=parameters, y0=self.y0.astype(np.float64), tolerance=tolerance)


def _layer(
    rng: np.random.Generator, outputs: int, inputs: int, *kernel: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias with the distribution of PyTorch's default."""
    bound = 1 / math.sqrt(inputs * math.prod(kernel))
    weight = rng.uniform(-bound, bound, (outputs, inputs, *kernel))
    return weight.astype(np.float32), rng.uniform(-bound, bound, outputs).astype(np.float32)


def _two_layers(rng: np.random.Generator, size: int, hidden: int, *kernel: int) -> Arrays:
    w1, b1 = _layer(rng, hidden, size, *kernel)
    w2, b2 = _layer(rng, size, hidden, *kernel)
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}


def mlp(batch: int, size: int, hidden: int, t1: float, tolerance: float, name: str = "mlp") -> Workload:
    """The vector field of torchdiffeq's demo, an MLP of y^3, float32."""
    rng = np.random.default_rng(0)
    parameters = _two_layers(rng, size, hidden)
    y0 = rng.standard_normal((batch, size)).astype(np.float32)
    title = f"{name} MLP: {batch}x{size}, {size}-{hidden}-{size}, float32, {tolerance:.0e}"
    return Workload(name, title, "mlp", parameters, y0, t1, tolerance)


def three_body() -> Workload:
    """The bodies of the paper's experiment on its training span; positions and velocities `(6, 3)`."""
    positions = [[0, 0.2, 0], [0.5, 0, 0.5], [0, 0, 0.5]]
    velocities = [[0, 0.1, 0], [0, 0, 0.1], [0.1, 0, 0]]
    masses = {"masses": np.array([1.1, 1.1, 0.9])}
    title = "three bodies: 6x3, three masses, float64, 1e-09"
    return Workload("three-body", title, "gravity", masses, np.array(positions + velocities), 1.0, 1e-9)


def conv() -> Workload:
    """Two 3x3 convolutions with a tanh between them; float32, Heun-Euler as in the paper's image classifiers."""
    rng = np.random.default_rng(0)
    parameters = _two_layers(rng, 64, 64, 3, 3)
    y0 = rng.standard_normal((32, 64, 16, 16)).astype(np.float32)
    title = "conv block: 32x64x16x16, conv-tanh-conv, Heun-Euler, float32, 1e-02"
    return Workload("conv", title, "conv", parameters, y0, 1.0, 1e-2, method="heun_euler")


def van_der_pol(batch: int = 1024) -> Workload:
    """Oscillators with mu between 0.1 and 10, float64: each one an ODE of its own."""
    rng = np.random.default_rng(0)
    mu = {"mu": 10.0 ** rng.uniform(-1, 1, batch)}
    y0 = rng.uniform(-2, 2, (batch, 2))
    title = f"{batch} van der Pol oscillators, mu from 0.1 to 10, float64, 1e-06"
    return Workload("van-der-pol", title, "van_der_pol", mu, y0, 10.0, 1e-6, per_sample=True)


def lorenz(batch: int = 4096) -> Workload:
    """Lorenz systems with rho between 1 and 40, float64: about equally hard, so that own steps save few evaluations."""
    rng = np.random.default_rng(0)
    y0 = rng.uniform(-10, 10, (batch, 3)) + np.array([0, 0, 20])
    title = f"{batch} Lorenz systems, rho from 1 to 40, float64, 1e-06"
    rho = {"rho": rng.uniform(1, 40, batch)}
    return Workload("lorenz", title, "lorenz", rho, y0, 1.0, 1e-6, per_sample=True)


def workloads() -> dict[str, Workload]:
    """All of them, by name."""
    made = (
        mlp(16, 2, 50, 10.0, 1e-6, "small"),
        mlp(128, 64, 256, 1.0, 1e-5, "middle"),
        three_body(),
        conv(),
        van_der_pol(),
        lorenz(),
    )
    return {w.name: w for w in made}


def with_batch(w: Workload, batch: int) -> Workload:
    """An MLP workload with another number of samples."""
    rng = np.random.default_rng(1)
    return replace(w, y0=rng.standard_normal((batch, *w.y0.shape[1:])).astype(w.y0.dtype))


@dataclass(frozen=True)
class Counts:
    """What one training step did; None where the library does not say."""

    forward: int | None = None
    backward: int | None = None
    accepted: float | None = None
    rejected: float | None = None


@dataclass(frozen=True)
class Result:
    """What one training step found: y(t1), and the loss's gradient by `y0` and each parameter."""

    y1: np.ndarray
    gradients: Arrays
    counts: Counts = field(default=Counts())
    notes: dict[str, Any] = field(default_factory=dict)
