"""Fields as other people's programs build them: what they draw, keep, count and declare."""

import pytest
import torch
from gradient_cases import DOUBLE, assert_same, gradients_of
from torch import nn

import torchaca
from torchaca import Adjoint, odeint, odeint_adjoint

GRADIENTS = {"aca": odeint, "adjoint": odeint_adjoint}


class Flow(nn.Module):
    """As FFJORD's: the noise of a trace's estimate is drawn by the first call, evaluations are counted in a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).to(DOUBLE)
        self.register_buffer("_num_evals", torch.tensor(0.0))
        self.before_odeint()

    def before_odeint(self, e=None):
        self._e = e
        self._num_evals.fill_(0)

    def forward(self, t, states):
        y = states[0]
        self._num_evals += 1
        if self._e is None:
            self._e = torch.randn_like(y)
        with torch.set_grad_enabled(True):
            y = y.requires_grad_(True)
            dy = self.net(torch.cat([torch.ones_like(y[:, :1]) * t, y], 1))
            e_dzdx = torch.autograd.grad(dy, y, self._e, create_graph=True)[0]
            divergence = (e_dzdx * self._e).sum(1, keepdim=True)
        return dy, -divergence


@pytest.mark.parametrize("solver", GRADIENTS)
def test_a_flow_that_draws_its_noise_once(solver):
    """Two flows through one field, the noise drawn anew for each, and one backward pass."""

    def trained(solve, **options):
        flow, x = Flow(), torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
        state = (x, torch.zeros(5, 1, dtype=DOUBLE))
        total, evaluations = 0.0, 0
        for _ in range(2):
            flow.before_odeint()
            state = tuple(
                y[-1] for y in solve(flow, state, torch.tensor([0.0, 0.5], dtype=DOUBLE), **options)
            )
            total = total + state[1].mean() - state[0].square().mean()
            evaluations += int(flow._num_evals)
        return gradients_of(total, dict(flow.named_parameters())), evaluations

    options = {"method": "dopri5", "rtol": 1e-6, "atol": 1e-8}
    got, evaluations = trained(GRADIENTS[solver], **options)
    want, others = trained(
        lambda f, y, t, method, **o: (
            torchaca.solve(f, y, t, gradient="direct", method=method, norm="mixed", **o).ys
        ),
        **options,
    )
    assert evaluations == others
    assert_same(got, want, 1e-9 if solver == "aca" else 1e-4)


@pytest.mark.parametrize("solver", GRADIENTS)
def test_layers_that_initialise_themselves(solver):
    torch.manual_seed(0)
    net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(2))
    y = GRADIENTS[solver](
        lambda t, y: net(y), torch.ones(3, 2), torch.tensor([0.0, 1.0]), rtol=1e-3, atol=1e-4
    )
    y[-1].sum().backward()
    assert all(p.grad is not None for p in net.parameters())


class Named(torch.autograd.Function):
    """A custom function with attributes of its context that hide methods of the node."""

    @staticmethod
    def forward(ctx, x):
        ctx.name, ctx._sequence_nr, ctx.register_hook = "field", 3, None
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize("solver", GRADIENTS)
@pytest.mark.parametrize("history", [False, True])
def test_custom_functions_whose_context_has_names(solver, history):
    def grads(solve):
        w = torch.tensor([0.5, -0.4], dtype=DOUBLE, requires_grad=True)
        scale = Named.apply(w) if history else w
        y = solve(lambda t, y: Named.apply(scale * y), torch.ones(2, dtype=DOUBLE), torch.tensor([0.0, 1.0]))
        return gradients_of(y[-1], {"w": w})

    want = grads(lambda f, y, t: torchaca.solve(f, y, t, rtol=1e-7, atol=1e-9, gradient="direct").ys)
    assert_same(grads(GRADIENTS[solver]), want, 1e-5)


class Path:
    """As torchcde's interpolations: coefficients by interval, used one after the other."""

    def __init__(self, coefficients):
        self.slopes = dict(enumerate(coefficients.unbind(0)))

    def derivative(self, t):
        return self.slopes[min(int(t), len(self.slopes) - 1)]


@pytest.mark.parametrize("hidden", [False, True])
def test_declared_tensors_may_be_used_late(hidden):
    """A controlled equation whose path has a history; its pieces are declared, as torchcde declares them."""

    def grads(solve, declared):
        torch.manual_seed(0)
        net, xs = nn.Linear(2, 2).to(DOUBLE), torch.randn(3, 2, dtype=DOUBLE).requires_grad_()
        path = Path(xs * 2)
        pieces = iter(lambda: path, None)

        def field(t, y):
            piece = (next(pieces) if hidden else path).derivative(t)
            return torch.tanh(net(y)) * piece

        options = {"adjoint_params": (*net.parameters(), *path.slopes.values())} if declared else {}
        y = solve(field, torch.ones(2, dtype=DOUBLE), torch.tensor([0.0, 1.9]), method="rk4",
                  options={"step_size": 0.04}, **options)  # fmt: skip
        return gradients_of(y[-1], {"xs": xs, **dict(net.named_parameters())})

    def direct(f, y, t, method, options):
        control = torchaca.FixedSteps(dt=options["step_size"])
        return torchaca.solve(f, y, t, method=torchaca.METHODS["rk4"], control=control, gradient="direct").ys

    assert_same(grads(odeint_adjoint, True), grads(direct, False), 1e-2)


def test_a_tensor_that_f_keeps_from_an_earlier_call_may_be_declared():
    torch.manual_seed(0)
    weight = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    kept = iter(lambda: skew, None)
    skew = weight - weight.T
    y = odeint_adjoint(lambda t, y: y @ next(kept), torch.ones(2, dtype=DOUBLE), torch.tensor([0.0, 1.0]),
                       adjoint_params=(skew,))  # fmt: skip
    (got,) = torch.autograd.grad(y[-1, 0], weight)
    exact = torch.matrix_exp(weight.detach().requires_grad_() * 1)
    assert exact.shape == got.shape
    again = weight.detach().requires_grad_()
    z = torch.ones(2, dtype=DOUBLE) @ torch.linalg.matrix_exp(again - again.T)
    assert_same({"w": got}, {"w": torch.autograd.grad(z[0], again)[0]}, 1e-5)


@pytest.mark.filterwarnings("ignore:f draws")
@pytest.mark.parametrize("settings", [Adjoint(), Adjoint(quadrature="gauss"), Adjoint(state="interpolated")])
def test_noise_that_is_drawn_in_every_call_is_still_refused(settings):
    with pytest.raises(ValueError, match="f draws random numbers"):
        torchaca.solve(lambda t, y: -y + torch.randn_like(y), torch.ones(3, requires_grad=True), [0.0, 1.0],
                       gradient=settings, dt0=0.1)  # fmt: skip


def test_a_single_time_is_said():
    with pytest.warns(UserWarning, match="single time"):
        ys = torchaca.solve(lambda t, y: -y, torch.ones(2), [1.5]).ys
    assert torch.equal(ys, torch.ones(1, 2))
    assert torch.equal(
        odeint(lambda t, y: -y, torch.ones(2), torch.tensor([1.5])), ys
    )  # torchdiffeq says nothing


SHAPES = {"a column": ((3, 1), (3,)), "a row": ((3,), (3, 1)), "a number": ((), (1,)), "flat": ((3, 2), (6,))}


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_tensors_of_a_tuple_may_have_other_shapes(shapes, method):
    """torchdiffeq flattens the parts of a tuple, so that densities of (n,) and (n, 1) mix."""
    shape, returned = SHAPES[shapes]
    y0 = (torch.ones(2), torch.ones(shape))
    options = {"step_size": 0.5} if method == "rk4" else {"first_step": None}
    calls = {"method": method, "options": options, "t": torch.tensor([0.0, 1.0])}
    got = odeint(lambda t, y: (-y[0], -2 * y[1].reshape(returned)), y0, **calls)
    want = odeint(lambda t, y: (-y[0], -2 * y[1]), y0, **calls)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("y0", [torch.ones(5, 3), (torch.ones(5, 3), torch.ones(1))], ids=["plain", "tuple"])
def test_what_would_only_broadcast_is_refused(y0):
    def f(t, y):
        return (-y[0].sum(1, keepdim=True), -y[1]) if isinstance(y, tuple) else -y.sum(1, keepdim=True)

    with pytest.raises((ValueError, AssertionError), match="returned shape"):
        odeint(f, y0, torch.tensor([0.0, 1.0]))
