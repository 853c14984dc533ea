"""`torch.set_default_device` is for what its user makes: the library's tables say where they are.

That it can be imported under a default device is seen in on_double.py.
"""

import ast
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

from torchaca import ACA, GRADIENTS, METHODS, Adjoint, SolverError, check_gradient, solve
from torchaca.compat import torch_aca, torchdiffeq
from torchaca.nn import LatentODE, NeuralODE

SRC = Path(__file__).resolve().parents[2] / "src"
TIMES = (0.0, 0.31, 0.42, 1.0)
KEPT = ("all", "none", "sqrt", "binomial", 2)
torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
Y0, W = torch.randn(3, 2), torch.tensor([0.3, -0.2])
SERIES = torch.randn(2, 5, 2), torch.rand(2, 5).sort(1).values, torch.rand(2, 5, 2) < 0.7
LATENT = LatentODE(2, latent=3, units=4, layers=1, state=4, gru_units=4, std=0.1, rtol=1e-2)


def f(t, y, w=W):
    return NET(y) * torch.cos(t) + w


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = NET

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


def pulled(ys, *wrt):
    return ys, torch.autograd.grad(
        sum(y.square().sum() for y in pytree.tree_leaves(ys)), wrt, allow_unused=True
    )


def plain(f=f, y0=Y0, t=TIMES, **options):
    """A solve, and the gradients of what it depends on."""
    y0 = pytree.tree_map(lambda y: y.clone().requires_grad_(), y0)
    times = [x for x in (t, options.get("grid")) if isinstance(x, Tensor)]
    wrt = [*pytree.tree_leaves(y0), *NET.parameters(), *times]
    return pulled(
        solve(f, y0, t, **{"rtol": 1e-3, **options} if "n_steps" not in options else options).ys, *wrt
    )


def fixed(**options):
    return plain(n_steps=2, rtol=None, **options)


def nested(**options):
    return plain(
        lambda t, y: {"b": -y["b"], "a": f(t, y["a"])}, {"a": Y0, "b": torch.ones_like(Y0[0])}, **options
    )


def times(**options):
    return plain(t=torch.tensor(TIMES, device="cpu", requires_grad=True), **options)


def dense():
    y0 = Y0.clone().requires_grad_()
    solution = solve(f, y0, TIMES, rtol=1e-3, dense=True)
    return pulled(solution([[0.1, 0.9], [0.5, 0.2]]), y0)


def lanes(**options):
    return torch.func.vmap(torch.func.grad(lambda y: solve(f, y, TIMES, **options).ys.sum()))(Y0)


def second():
    y0 = Y0[0].clone()
    return torch.autograd.functional.hessian(lambda y: solve(f, y, TIMES, n_steps=2).ys.sum(), y0)


def graded(**options):
    y0 = Y0.clone().requires_grad_()
    solution = solve(f, y0, TIMES, gradient=ACA(grad_rtol=0.1), **options)
    return pulled(solution.ys, y0), solution.stats.gradient_error


def report():
    found = check_gradient(f, Y0, TIMES, lambda ys: ys.square().sum(), repeats=1, method="alf", n_steps=3)
    return [(row.error_discrete, row.error_ode, row.failure) for row in found.rows]


def traced():
    y0 = Y0.clone().requires_grad_()
    solution = solve(f, y0, TIMES, rtol=1e-3, debug=True)
    solution.ys.sum().backward()
    return solution.trace.norms


def too_coarse():
    with pytest.warns(UserWarning, match="too coarse"):
        return solve(lambda t, y: -y, Y0.half(), TIMES, rtol=torch.full_like(Y0, 1e-6)).ys


def failed():
    with pytest.raises(SolverError) as caught:
        solve(lambda t, y: {"a": y["a"] / 0}, {"a": Y0}, TIMES, rtol=1e-3)
    return [caught.value.t]


def given_up():
    return solve(lambda t, y: y * y, Y0.abs() + 2, TIMES, on_failure="nan", max_steps=20).ys


class Watched(nn.Module):
    def forward(self, t, y):
        return f(t, y)

    def callback_step(self, t0, y0, dt):
        self.seen = t0 + dt


def drop_in(solver=torchdiffeq.odeint, **options):
    y0, t = Y0.clone().requires_grad_(), torch.tensor(TIMES, device="cpu")
    return pulled(solver(Watched(), y0, t, **{"rtol": 1e-3, "atol": 1e-3, **options}), y0)


def gridded(solver):
    grid = {"grid_constructor": lambda f, y0, t: torch.linspace(t[0], t[-1], 5, device=t.device)}
    return drop_in(solver, method="rk4", options=grid)


def authors(**options):
    z0 = Y0.clone().requires_grad_()
    options = {"method": "RK23", "rtol": 1e-3, "atol": 1e-3, **options}
    solver = torch_aca.odesolve(f, z0, {**options, "dense_output": True}, return_solver=True)
    z1 = solver.integrate(z0)
    return pulled(
        (z1, solver.evaluate_dense_mode([0.2, 0.7]), torch_aca.odesolve_adjoint(f, z0, options)), z0
    )


def latent():
    torch.manual_seed(1)
    loss = LATENT.loss(*SERIES, samples=2).loss
    torch.manual_seed(1)
    return loss, LATENT(*SERIES, at=torch.tensor([1.0, 1.5], device="cpu"))


GAUSS = [
    Adjoint(state=state, quadrature=rule)
    for state in ("backsolve", "interpolated")
    for rule in ("augmented", "gauss")
]
SETTINGS = [*(ACA(checkpoints=kept) for kept in KEPT), ACA(stagewise=True), ACA(memory_budget="1 MB"), *GAUSS]
KINDS = {
    **{f"{name} fixed": lambda name=name: fixed(method=name) for name in METHODS},
    **{f"{name} adaptive": lambda name=name: plain(method=name) for name, m in METHODS.items() if m.adaptive},
    **{
        f"{name} {at.__name__}": lambda name=name, at=at: at(method="alf", gradient=name)
        for at in (fixed, plain, times)
        for name in GRADIENTS
    },
    **{str(one): lambda one=one: plain(gradient=one) for one in SETTINGS},
    "nested": nested,
    "nested gauss": lambda: nested(gradient=GAUSS[-1]),
    "tolerances of each": lambda: nested(rtol={"a": 1e-3, "b": torch.tensor([1e-2, 1e-3], device="cpu")}),
    "jumps": lambda: plain(jump_ts=[0.3, 0.6]),
    "grid": lambda: plain(rtol=None, grid=torch.tensor([0.0, 0.5, 1.0], device="cpu", requires_grad=True)),
    "norm": lambda: plain(norm=lambda y: y.abs().max()),
    "a norm in numbers": lambda: plain(norm=lambda y: y.abs().max().item()),
    "numbers as times": lambda: plain(t=[torch.tensor(0.0, device="cpu"), 0.5, 1.0]),
    "array as times": lambda: plain(t=torch.tensor(TIMES, device="cpu").numpy()),
    "dense": dense,
    "lanes": lambda: lanes(rtol=1e-3),
    "fixed lanes": lambda: lanes(n_steps=2),
    "forward mode": lambda: torch.func.jvp(lambda y: solve(f, y, TIMES).ys, (Y0,), (Y0,)),
    "second": second,
    "grad_rtol": lambda: graded(rtol=1e-3),
    "grad_rtol fixed": lambda: graded(n_steps=4),
    "check_gradient": report,
    "trace": traced,
    "too coarse": too_coarse,
    "failed": failed,
    "given up": given_up,
    "NeuralODE": lambda: NeuralODE(Field(), rtol=1e-3)(Y0),
    "LatentODE": latent,
    "odeint": drop_in,
    "odeint_adjoint": lambda: drop_in(torchdiffeq.odeint_adjoint, adjoint_options={"norm": "seminorm"}),
    "odeint on a grid": lambda: gridded(torchdiffeq.odeint),
    "odeint_adjoint on a grid": lambda: gridded(torchdiffeq.odeint_adjoint),
    "odesolve": authors,
    "odesolve fixed": lambda: authors(method="RK4", h=0.3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_solves_of_every_kind(kind):
    expected = KINDS[kind]()
    torch.set_default_device("meta")
    try:
        found = KINDS[kind]()
    finally:
        torch.set_default_device(None)
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        if isinstance(a, Tensor):
            assert a.device == b.device
            assert torch.equal(a.nan_to_num(math.pi), b.nan_to_num(math.pi))
        else:
            assert a == b


FACTORIES = {function.__name__ for function in _device_constructors()}


def homeless(source: str) -> list[str]:
    """The calls of PyTorch's factories that leave it to the default where the result is."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "torch"
        and call.func.attr in FACTORIES
        and "device" not in {keyword.arg for keyword in call.keywords}
    ]


def test_a_factory_without_a_device_is_seen():
    assert (
        len(
            homeless(
                "torch.zeros(3, dtype=torch.int64)\nx = [torch.as_tensor(1.0)]\ntorch.cat(torch.ones(2))"
            )
        )
        == 3
    )
    assert not homeless("torch.zeros(3, device=x.device)\ntorch.stack(y)\nx.new_zeros(3)")


LIBRARY = [
    path for path in sorted(SRC.rglob("*.py")) if path.relative_to(SRC).parts[:2] != ("torchaca", "lab")
]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(SRC)))
def test_every_factory_names_a_device(path):
    assert homeless(path.read_text()) == []
