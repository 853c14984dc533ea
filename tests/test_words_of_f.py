"""What is said where f is not f(t, y), or does what an f must not."""

import collections
import functools

import pytest
import torch
from gradient_cases import DOUBLE
from torch import nn

import torchaca as aca
from torchaca import GRADIENTS, solve
from torchaca.compat import torch_aca

T = [0.0, 0.1, 0.2]


class OneMore(nn.Module):
    def forward(self, t, y, control):
        return control * y


class Keyword:
    def __call__(self, t, y, *, rate):
        return rate * y


WRAP, ARGS = "wrap it as lambda t, y: net(y)", (torch.ones(2),)
NOT_F = {
    "linear": (nn.Linear(2, 2), (), WRAP),
    "sequential": (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), (), WRAP),
    "parallel": (nn.DataParallel(nn.Linear(2, 2)), (), WRAP),
    "compiled": (torch.compile(nn.Linear(2, 2)), (), WRAP),
    "builtin": (torch.tanh, (), "wrap it as lambda t, y: f(y)"),
    "function": (lambda y: -y, (), "wrap it as lambda t, y: f(y)"),
    "with args": (nn.Linear(2, 2), ARGS, "f(t, y, *args): wrap it as lambda t, y, *args: net(y)"),
    "one more": (OneMore(), (), "yours takes control as well: hand over args=(...)"),
    "one less": (lambda t, y: -y, ARGS, "yours takes 2 arguments, and with args= there are 3"),
    "keyword": (Keyword(), (), "functools.partial(f, rate=...)"),
    "class": (OneMore, (), "f is the class OneMore: pass an object of it"),
}


@pytest.mark.parametrize("options", [{}, {"gradient": "direct"}, {"compile": True}], ids=str)
@pytest.mark.parametrize("case", NOT_F)
@pytest.mark.filterwarnings("ignore:compile=True")
def test_f_of_other_arguments(case, options):
    f, args, words = NOT_F[case]
    with pytest.raises(TypeError) as caught:
        solve(f, torch.ones(2), T, args=args, **options)
    assert words in str(caught.value)
    assert case == "class" or str(caught.value).startswith("f is called as f(t, y")


def test_an_error_inside_of_f_stays_what_it_is():
    def f(t, y):
        return nn.Linear(2, 2)(t, y)

    with pytest.raises(TypeError, match="positional arguments but 3 were given"):
        solve(f, torch.ones(2), T)


def takes_state_first(y, t):
    return nn.Linear(2, 2)(y)


class OfOnePrecision(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def forward(self, t, y):
        return self.net(y)


class NeedsBatch(nn.Module):
    def forward(self, t, y):
        return torch.cat([y[:, 1:], -y[:, :1]], dim=1)


BEGINNERS = {
    "f(y, t)": (takes_state_first, torch.ones(3, 2), T, TypeError, "yours is f(y, t): pass lambda t, y: f(y, t)"),
    "f, t, y0": (takes_state_first, torch.tensor(T), torch.ones(3, 2), ValueError, "the order is f, y0, t"),
    "f, list, y0": (takes_state_first, T, torch.ones(2), TypeError, "the order is f, y0, t"),
    "y0, f, t": (torch.ones(2), takes_state_first, T, TypeError, "the order is f, y0, t"),
    "one time": (takes_state_first, torch.ones(2), 1.0, ValueError, "write [t0, t1]"),
    "other precision": (
        OfOnePrecision(), torch.ones(2, dtype=DOUBLE), T, TypeError,
        "is torch.float32 and y0 is torch.float64. Convert one of them: y0.to(torch.float32), or",
    ),
    "tuple": (lambda t, y: (y,), torch.ones(2), T, TypeError, "a tuple with entries [0] where the state is a tensor"),
    "another tuple": (
        lambda t, y: (y[0],), (torch.ones(2), torch.ones(1)), T, TypeError,
        "a tuple with entries [0] where the state is a tuple with entries [0], [1]",
    ),
    "no batch": (NeedsBatch(), torch.ones(2), T, IndexError, "If f takes a batch, give it one: y0[None]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BEGINNERS)
def test_what_to_write_instead_is_said(case):
    f, y0, t, kind, words = BEGINNERS[case]
    with pytest.raises(kind) as caught:
        solve(f, y0, t)
    assert words in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


COMPLEX = {
    "solve": lambda f, y0: solve(f, y0, T),
    "odeint": lambda f, y0: aca.odeint(f, y0, torch.tensor(T)),
    "odeint_adjoint": lambda f, y0: aca.odeint_adjoint(f, y0, torch.tensor(T)),
    "odesolve": lambda f, y0: torch_aca.odesolve(f, y0, {"method": "RK23"}),
    "odesolve_endtime": lambda f, y0: torch_aca.odesolve_endtime(f, y0, {"method": "RK2", "h": 0.1}),
    "odesolve_adjoint": lambda f, y0: torch_aca.odesolve_adjoint(f, y0, {"method": "Dopri5"}),
}


@pytest.mark.parametrize("nested", [False, True], ids=["tensor", "nested"])
@pytest.mark.parametrize("door", COMPLEX)
def test_no_imaginary_part_is_dropped(door, nested):
    y0 = (torch.ones(2, dtype=DOUBLE), torch.ones(2, dtype=torch.complex128)) if nested else torch.ones(2)
    with pytest.raises(TypeError, match=r"returned torch.complex.* where the state is torch.float.*y0\.to"):
        COMPLEX[door](lambda t, y: (1j * y[0], y[1]) if nested else 1j * y, y0)


def test_real_slopes_of_a_complex_state_are_widened():
    y0 = torch.ones(1, dtype=torch.complex128)
    ys = aca.odeint(lambda t, y: torch.cos(t).expand(1), y0, torch.tensor(T, dtype=DOUBLE))
    torch.testing.assert_close(ys[:, 0].real, 1 + torch.sin(torch.tensor(T, dtype=DOUBLE)))


class Table:
    """Values in the order of the calls, which end after some."""

    def __init__(self, n):
        self.values = iter([torch.ones(2)] * n)

    def __call__(self, t, y):
        return next(self.values) - y


SOLVES = {name: {"gradient": name, "method": "alf" if name == "mali" else "dopri5"} for name in GRADIENTS}
SOLVES |= {
    "stagewise": {"gradient": aca.ACA(stagewise=True)},
    "dense": {"dense": True},
    "fixed": {"n_steps": 5},
    "status": {"on_failure": "status"},
    "compiled": {"compile": True},
    "steps": {"compile": "steps"},
}


@pytest.mark.filterwarnings("ignore:compile=")
@pytest.mark.parametrize("wanted", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("case", SOLVES)
def test_an_iterator_that_ends_in_f_ends_no_solve(case, n, wanted):
    y0 = torch.ones(2, requires_grad=wanted)
    with pytest.raises(RuntimeError, match=r"f raised StopIteration at t = .*Look the value up by t"):
        solve(Table(n), y0, T, **SOLVES[case])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_an_iterator_that_ends_in_the_backward_pass(gradient):
    y0, method = torch.ones(2, requires_grad=True), "alf" if gradient == "mali" else "dopri5"
    f = Table(1000)
    ys = solve(f, y0, T, gradient=gradient, method=method).ys
    collections.deque(f.values, maxlen=0)  # to its end; another iterator in its place would be put back
    evaluates = functools.partial(pytest.raises, RuntimeError, match="f raised StopIteration")
    if gradient in ("direct", "naive"):
        ys.sum().backward()
        return
    with evaluates():
        ys.sum().backward()
