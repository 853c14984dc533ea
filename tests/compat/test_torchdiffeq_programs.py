"""Whole programs of torchdiffeq's users, with what they pass, set and catch: they run on both libraries.

FFJORD's training script (Grathwohl et al. 2019), a neural CDE by torchcde's `cdeint` (Kidger et al. 2020), the sampler
of an interpolant transport model with its likelihood (as in SiT, Ma et al. 2024), and the physics of a bouncing ball
that is learned through its bounces (as in torchdiffeq's examples, Chen et al. 2021).
"""

import warnings

import pytest
import torch
import torchdiffeq
from torch import nn

import torchaca as aca

F64 = torch.float64
LIBRARIES = (torchdiffeq, aca)


class Flow(nn.Module):
    """FFJORD's layer: the state is (z, log p), with options of a solver that others have and this one does not."""

    def __init__(self, library, interface):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 12), nn.Softplus(), nn.Linear(12, 2)).double()
        self.sqrt_end_time = nn.Parameter(torch.tensor(0.7, dtype=F64))
        self.solve, self.noise, self.nfe = getattr(library, interface), None, 0
        self.solver_options, self.test_solver_options = {}, {"first_step": 0.05}

    def odefunc(self, t, states):
        y = states[0]
        self.nfe += 1
        with torch.set_grad_enabled(True):
            y.requires_grad_(True)
            t.requires_grad_(True)
            dy = self.net(torch.cat([y, t.expand(len(y), 1)], 1))
            (e_dy,) = torch.autograd.grad(dy, y, self.noise, create_graph=True)
        return dy, -(e_dy * self.noise).sum(1, keepdim=True)

    def forward(self, z):
        self.noise = torch.ones_like(z)
        times = torch.stack([torch.zeros((), dtype=F64), self.sqrt_end_time * self.sqrt_end_time])
        options = self.solver_options if self.training else self.test_solver_options
        state = (z, torch.zeros(len(z), 1, dtype=F64))
        extra = {"adjoint_params": tuple(self.net.parameters())} if "adjoint" in self.solve.__name__ else {}
        tolerances = {"atol": 1e-6, "rtol": 1e-6}
        z, logp = self.solve(
            self.odefunc, state, times, method="dopri5", options=options, **tolerances, **extra
        )
        return z[-1], logp[-1]


def train(library, interface, limits):
    """Train for some steps, skipping batches that the solver cannot do; the losses, None for those."""
    flow, losses = Flow(library, interface), []
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for step, limit in enumerate(limits):
        flow.solver_options = {"solver_step": 0.1, "max_num_steps": limit}
        optimizer.zero_grad()
        z = torch.randn(6, 2, generator=torch.Generator().manual_seed(step), dtype=F64)
        try:
            z, logp = flow(z)
        except AssertionError as error:
            assert str(error).startswith("max_num_steps exceeded")  # noqa: PT017
            losses.append(None)
            continue
        loss = -(torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1, keepdim=True) - logp).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    flow.eval()
    with torch.no_grad():
        z, logp = flow(torch.ones(2, 2, dtype=F64))
    assert not z.requires_grad
    return losses, torch.cat([z, logp], 1)


@pytest.mark.filterwarnings("ignore:.*Unexpected arguments")
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_a_flow_trains_and_skips_what_fails(interface):
    (theirs, at_theirs), (ours, at_ours) = (train(x, interface, (500, 2, 500)) for x in LIBRARIES)
    assert theirs[1] is None
    assert [x is None for x in ours] == [x is None for x in theirs]
    assert [x for x in ours if x is not None] == pytest.approx([x for x in theirs if x is not None], rel=1e-4)
    torch.testing.assert_close(at_ours, at_theirs, rtol=1e-3, atol=1e-4)


class Spline:
    """A path by straight lines, as torchcde's LinearInterpolation."""

    def __init__(self, coeffs):
        self.coeffs, self.grid_points = coeffs, torch.arange(coeffs.shape[-2], dtype=coeffs.dtype)

    @property
    def interval(self):
        return self.grid_points[[0, -1]]

    def derivative(self, t):
        at = (torch.bucketize(t.detach(), self.grid_points) - 1).clamp(0, len(self.grid_points) - 2)
        return self.coeffs[..., at + 1, :] - self.coeffs[..., at, :]


class VectorField(nn.Module):
    def __init__(self, path, func):
        super().__init__()
        self.path, self.func = path, func

    def forward(self, t, z):
        return (self.func(t, z) @ self.path.derivative(t)[..., None]).squeeze(-1)


def cdeint(library, path, func, z0, t, adjoint=True, **kwargs):
    """torchcde's: its defaults, and options for solvers of other backends beside those of this one."""
    kwargs.setdefault("options", {})
    kwargs["options"] = {"eps": 1e-5, "grid_points": path.grid_points, **kwargs["options"]}
    if kwargs.get("method") is None:
        kwargs["options"] |= {"jump_t": path.grid_points}
    else:
        kwargs["options"].setdefault("step_size", 1.0)
    if adjoint:
        kwargs["adjoint_params"] = (*func.parameters(), path.coeffs)
        kwargs.setdefault("adjoint_options", {**kwargs["options"], "norm": "seminorm"})
    solve = library.odeint_adjoint if adjoint else library.odeint
    out = solve(func=VectorField(path, func), y0=z0, t=t, rtol=1e-6, atol=1e-8, **kwargs)
    return out.transpose(0, 1)


class CDE(nn.Module):
    class Func(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 10).double(), nn.Linear(10, 8).double()

        def forward(self, t, z):
            return self.two(nn.functional.softplus(self.one(z))).tanh().view(*z.shape, 2)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.func, self.initial, self.readout = (
            self.Func(),
            nn.Linear(2, 4).double(),
            nn.Linear(4, 1).double(),
        )

    def forward(self, library, coeffs, **options):
        path = Spline(coeffs)
        z0 = self.initial(coeffs[..., 0, :])
        return self.readout(cdeint(library, path, self.func, z0, path.interval, **options)[:, -1])


@pytest.mark.filterwarnings("ignore:.*Unexpected arguments", "ignore:option 'norm'")
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("method", [None, "rk4"])
def test_a_neural_cde(method, adjoint):
    results = []
    for library in LIBRARIES:
        model = CDE()
        coeffs = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(1), dtype=F64).requires_grad_()
        loss = nn.functional.binary_cross_entropy_with_logits(
            model(library, coeffs, method=method, adjoint=adjoint),
            torch.tensor([[0.0], [1.0], [1.0]], dtype=F64),
        )
        loss.backward()
        results.append([loss.detach(), coeffs.grad, *(p.grad for p in model.parameters())])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)


class Transport:
    """A sampler of dx/dt = v(x, t), and the likelihood by the divergence along the reverse path."""

    def __init__(self, library, method, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3)).double()
        self.odeint, self.method, self.options = library.odeint, method, options
        self.noise = torch.randint(0, 2, (5, 3), generator=torch.Generator().manual_seed(2)).double() * 2 - 1

    def drift(self, x, t):
        return self.model(torch.cat([x, torch.ones(len(x), 1, dtype=F64) * t], 1))

    def solve(self, fn, x, t):
        count = len(x) if isinstance(x, tuple) else 1
        tolerances = {"atol": [1e-6] * count, "rtol": [1e-3] * count}
        return self.odeint(fn, x, t, method=self.method, **tolerances, **self.options)

    @torch.no_grad()
    def sample(self, x):
        return self.solve(lambda t, x: self.drift(x, t), x, torch.linspace(0, 1, 5, dtype=F64))

    @torch.no_grad()
    def log_likelihood(self, x):
        def fn(t, state):
            x, _ = state
            with torch.enable_grad():
                x.requires_grad = True
                (grad,) = torch.autograd.grad((self.drift(x, 1 - t) * self.noise).sum(), x)
                drift = self.drift(x, 1 - t)
            return -drift, (grad * self.noise).sum(1)

        z, delta = self.solve(fn, (x, torch.zeros(len(x), dtype=F64)), torch.tensor([0.0, 1.0], dtype=F64))
        return torch.distributions.Normal(0.0, 1.0).log_prob(z[-1]).sum(1) - delta[-1]


@pytest.mark.parametrize(
    ("method", "options", "tolerance"),
    [
        ("dopri5", {}, 5e-3),
        ("heun2", {"options": {"step_size": 0.125}}, 1e-10),
        ("euler", {"options": {"step_size": 0.1}}, 1e-10),
    ],
)
def test_a_transport_sampler_and_its_likelihood(method, options, tolerance):
    theirs, ours = (Transport(library, method, **options) for library in LIBRARIES)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    at = [0, 2, -1] if tolerance < 1e-3 else slice(None)  # on the steps: between them the interpolants differ
    for mine, other in (
        (ours.sample(x)[at], theirs.sample(x)[at]),
        (ours.log_likelihood(x), theirs.log_likelihood(x)),
    ):
        assert not mine.requires_grad
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    assert not x.requires_grad


def test_a_sampler_whose_program_watches_for_underflow():
    """It halves the span where the solver says so."""

    def solved(library, x):
        end, tries = 3.0, 0
        while True:
            tries += 1
            try:
                t = torch.tensor([0.0, end], dtype=F64)
                return library.odeint(lambda t, y: y**2, x, t, rtol=1e-4, atol=1e-6)[-1], end, tries
            except AssertionError as error:
                if not str(error).startswith("underflow in dt"):
                    raise
                end /= 2 if tries < 2 else 1.25

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, ours = (solved(library, torch.ones(2, dtype=F64)) for library in LIBRARIES)
    assert ours[1:] == theirs[1:]
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-2, atol=0)


class Ball(nn.Module):
    """A ball whose gravity, radius and restitution are learned from where it is; what ends the last solve is a time."""

    def __init__(self, library):
        super().__init__()
        self.odeint, self.odeint_event = library.odeint, library.odeint_event
        self.gravity, self.radius = (nn.Parameter(torch.tensor([x], dtype=F64)) for x in (-7.0, 0.6))
        self.restitution = nn.Parameter(torch.tensor([0.5], dtype=F64))
        self.height, self.speed = (nn.Parameter(torch.tensor([x], dtype=F64)) for x in (10.0, 0.0))

    def dynamics(self, t, state):
        return state[1], self.gravity * torch.ones_like(state[1]), torch.zeros_like(state[2])

    def simulate(self, times):
        def event_fn(t, state):
            if t > times[-1] + 1e-7:
                return torch.zeros_like(t)
            return state[0] - state[2].reshape_as(state[0]) ** 2

        t0, state = torch.zeros(1, dtype=F64), (self.height, self.speed, self.radius)
        heights, bounces = [self.height[None]], []
        while t0 < times[-1]:
            t, solution = self.odeint_event(
                self.dynamics, state, t0, event_fn=event_fn, atol=1e-8, rtol=1e-8, method="dopri5"
            )
            within = times[(times > t0) & (times <= t)]
            stops = torch.cat([t0.reshape(-1), within])
            heights.append(self.odeint(self.dynamics, state, stops, atol=1e-8, rtol=1e-8)[0][1:])
            if t < times[-1]:
                position, velocity, radius = (x[-1] for x in solution)
                velocity = -torch.sigmoid(self.restitution) * velocity
                state = position + 1e-7 * velocity, velocity, radius
                bounces.append(t)
            t0 = t
        return torch.cat(heights).reshape(-1), bounces


def test_a_ball_learns_its_physics_through_its_bounces():
    times, fitted = torch.linspace(0, 4, 30, dtype=F64), []
    drop = 10 - 4.9 * times**2
    target = torch.where(drop > 0.09, drop, 2.0)
    for library in LIBRARIES:
        ball, losses = Ball(library), []
        optimizer = torch.optim.Adam(ball.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            heights, bounces = ball.simulate(times)
            loss = ((heights - target) / (target + 1e-3)).abs().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert len(bounces) > 1
        fitted.append([losses, [p.item() for p in ball.parameters()], [t.item() for t in bounces]])
    theirs, ours = fitted
    for x, y in zip(theirs, ours, strict=True):
        assert y == pytest.approx(x, rel=1e-4)
