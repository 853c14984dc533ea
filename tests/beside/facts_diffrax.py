"""README's column for diffrax: each cell beside the program that it stands for, which runs in an environment with JAX.

python tests/beside/facts_diffrax.py "continuous adjoint"
"""

import sys

EXACT_AT_REST = 0.1346463718603752
"""That of beside_common.py, which imports PyTorch."""


def solve(f, y0, t1, tolerance=1e-4, args=None, **options):
    """A solve from 0 to t1 by dopri5."""
    import diffrax

    control = diffrax.PIDController(tolerance, tolerance)
    method = options.pop("solver", None) or diffrax.Dopri5()
    return diffrax.diffeqsolve(
        diffrax.ODETerm(f), method, 0.0, t1, None, y0, args, stepsize_controller=control, **options
    )


def sine(t, y, args):
    import jax.numpy as jnp

    return 5 * jnp.sin(20 * (y + jnp.cos(10 * t)))


def smooth(t, y, args):
    import jax.numpy as jnp

    return jnp.tanh(y) * jnp.cos(t)


def slope(f, tolerance=1e-4, **options):
    """The gradient of a solve by its start."""
    import jax
    import jax.numpy as jnp

    return jax.grad(lambda y0: solve(f, y0, 2.0, tolerance, **options).ys[-1].sum())(jnp.array([0.3, 0.7]))


def runs():
    import jax
    import jax.numpy as jnp

    assert isinstance(solve(smooth, jnp.ones(1), 1.0).ys, jax.Array)


def computed():
    import diffrax
    import jax.numpy as jnp

    assert jnp.allclose(slope(sine), slope(sine, adjoint=diffrax.DirectAdjoint()), rtol=1e-9)


def memory():
    import diffrax
    import jax.numpy as jnp

    few = diffrax.RecursiveCheckpointAdjoint(checkpoints=3)
    assert jnp.allclose(slope(sine), slope(sine, adjoint=few), rtol=1e-9)


def adjoint():
    import diffrax
    import jax.numpy as jnp

    found = slope(smooth, 1e-9, adjoint=diffrax.BacksolveAdjoint())
    assert jnp.allclose(found, slope(smooth, 1e-9), rtol=1e-5)


def at_rest():
    import jax
    import jax.numpy as jnp

    def end(a):
        def f(t, y, a):
            return jnp.stack([y[1], -y[0] - 0.1 * y[1] + a * jnp.cos(3 * t)])

        return solve(f, jnp.zeros(2), 20.0, 1e-9, args=a).ys[-1, 0]

    # Where something moves it is right, and is what the other libraries are compared with.
    assert abs(jax.grad(end)(1e-3) / EXACT_AT_REST - 1) < 1e-6
    assert not abs(jax.grad(end)(0.0)) < 1000 * EXACT_AT_REST


def second():
    import diffrax
    import jax
    import jax.numpy as jnp

    def curvature(adjoint):
        def loss(y0):
            return (solve(smooth, y0, 1.0, adjoint=adjoint).ys[-1] ** 2).sum()

        return jax.grad(lambda y0: jax.grad(loss)(y0).sum())(jnp.array([0.3, 0.7]))

    assert jnp.isfinite(curvature(diffrax.DirectAdjoint())).all()
    for adjoint in (diffrax.RecursiveCheckpointAdjoint(), diffrax.BacksolveAdjoint()):
        try:
            curvature(adjoint)
        except (ValueError, RuntimeError):
            continue
        raise AssertionError(f"{adjoint} has second derivatives")


def events():
    import diffrax
    import jax.numpy as jnp
    import optimistix

    conditions = [lambda t, y, args, **_: y[0] - 10.0, lambda t, y, args, **_: y[0] - 1.5]
    event = diffrax.Event(conditions, optimistix.Newton(1e-8, 1e-8))
    sol = solve(lambda t, y, args: jnp.ones_like(y), jnp.zeros(1), 5.0, event=event)
    assert abs(sol.ts[-1] - 1.5) < 1e-6


def samples():
    import jax
    import jax.numpy as jnp

    def steps(rate):
        f = lambda t, y, rate: jnp.cos(rate * t) * y  # noqa: E731
        return solve(f, jnp.ones(1), 5.0, args=rate).stats["num_accepted_steps"]

    easy, hard = jax.vmap(steps)(jnp.array([1.0, 20.0])).tolist()
    assert easy < hard


def compiled():
    import jax
    import jax.numpy as jnp

    whole = jax.jit(jax.grad(lambda y0: solve(smooth, y0, 1.0).ys[-1].sum()))
    assert jnp.isfinite(whole(jnp.ones(2))).all()


def failures():
    import diffrax
    import jax.numpy as jnp

    def explodes(**options):
        return solve(lambda t, y, args: y**2, jnp.ones(1), 2.0, max_steps=200, **options)

    assert explodes(throw=False).result == diffrax.RESULTS.max_steps_reached
    said = ""
    try:
        explodes()
    except RuntimeError as error:
        said = str(error)
    assert "maximum number of solver steps" in said


def methods():
    import diffrax

    assert issubclass(diffrax.Dopri8, diffrax.AbstractERK)
    assert issubclass(diffrax.Kvaerno5, diffrax.AbstractESDIRK)
    assert issubclass(diffrax.KenCarp5, diffrax.AbstractRungeKutta)
    assert issubclass(diffrax.SemiImplicitEuler, diffrax.AbstractSolver)
    assert issubclass(diffrax.ReversibleHeun, diffrax.AbstractSolver)


def stiff():
    import diffrax
    import jax
    import jax.numpy as jnp

    def end(y0):
        sol = solve(lambda t, y, args: -1e6 * (y - jnp.cos(t)), y0, 10.0, solver=diffrax.Kvaerno5())
        return sol.ys[-1, 0]

    value, slope = jax.value_and_grad(end)(jnp.ones(1))
    assert abs(value - jnp.cos(10.0)) < 1e-3
    assert jnp.isfinite(slope).all()


def others():
    import diffrax
    import jax
    import jax.numpy as jnp

    noise = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-3, (), jax.random.PRNGKey(0))
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: -y), diffrax.ControlTerm(lambda t, y, args: 0.1, noise)
    )
    assert jnp.isfinite(diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 1.0, 0.1, 1.0).ys).all()
    ts = jnp.linspace(0.0, 1.0, 5)
    path = diffrax.LinearInterpolation(ts, ts**2)
    driven = diffrax.ControlTerm(lambda t, y, args: y, path)
    sol = diffrax.diffeqsolve(driven, diffrax.Dopri5(), 0.0, 1.0, 0.05, 1.0)
    assert abs(sol.ys[-1] - jnp.exp(1.0)) < 1e-4


FACTS = {
    "runs on": ("JAX", runs),
    "gradient of the computed solution": ("yes", computed),
    "in memory that you choose": ("a number of states", memory),
    "continuous adjoint": ("yes", adjoint),
    "gradient that is right where the state rests": ("no", at_rest),
    "second derivatives of a solve": ("with `DirectAdjoint`; not by default", second),
    "events": ("several conditions, terminal", events),
    "steps of each sample of a batch": ("`vmap`", samples),
    "whole solve compiled": ("yes, with its gradient: CPUs, GPUs, TPUs", compiled),
    "failures": ("a message, or a result code", failures),
    "methods": ("explicit, **implicit**, IMEX, symplectic, reversible", methods),
    "stiff problems": ("**yes**", stiff),
    "SDEs and CDEs": ("**yes**", others),
}

if __name__ == "__main__":
    import jax

    jax.config.update("jax_enable_x64", True)
    for row in sys.argv[1:]:
        FACTS[row][1]()
