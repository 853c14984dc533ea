"""The workloads' f in JAX; the same formulas as in `fields_torch`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .workloads import K1, K2

Arrays = dict[str, jax.Array]


def mlp(t, y: jax.Array, p: Arrays) -> jax.Array:
    return jnp.tanh(y**3 @ p["w1"].T + p["b1"]) @ p["w2"].T + p["b2"]


def gravity(t, y: jax.Array, p: Arrays) -> jax.Array:
    position, velocity = y[:3], y[3:]
    apart = position[None] - position[:, None]
    distance = jnp.sqrt((apart**2).sum(-1) + jnp.eye(3, dtype=y.dtype))
    pull = (p["masses"][None, :, None] * apart / distance[..., None] ** 3).sum(1)
    return jnp.concatenate([K2 * velocity, K1 * pull])


def conv(t, y: jax.Array, p: Arrays) -> jax.Array:
    """Channels last, each convolution one matrix product over its 3x3 patches.

    XLA has no fast convolution inside loops on CPUs: with `lax.conv_general_dilated` and channels first the solve
    takes 40 times as long, with channels last its gradient 10 times.
    """

    def layer(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        rows, columns = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        return jnp.concatenate(shifted, axis=-1) @ weight.reshape(-1, weight.shape[-1]) + bias

    return layer(jnp.tanh(layer(y, p["w1"], p["b1"])), p["w2"], p["b2"])


def van_der_pol(t, y: jax.Array, p: Arrays) -> jax.Array:
    x, v = y[..., 0], y[..., 1]
    return jnp.stack([v, p["mu"] * (1 - x**2) * v - x], axis=-1)


def lorenz(t, y: jax.Array, p: Arrays) -> jax.Array:
    a, b, c = y[..., 0], y[..., 1], y[..., 2]
    return jnp.stack([10 * (b - a), a * (p["rho"] - c) - b, a * b - 8 / 3 * c], axis=-1)


FIELDS = {"mlp": mlp, "gravity": gravity, "conv": conv, "van_der_pol": van_der_pol, "lorenz": lorenz}
