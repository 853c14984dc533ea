"""Programs as people write them for torchdiffeq, run on both libraries: same results, same gradients.

Each class is a small version of a well-known client, with its habits: FFJORD's flows (Grathwohl et al. 2019), the
latent ODE and ODE-RNN (Rubanova et al. 2019), neural CDEs (Kidger et al. 2020), the ODE-Net of Chen et al. (2018) and
Hamiltonian networks (Greydanus et al. 2019).
"""

import functools

import pytest
import torch
import torchdiffeq
from torch import nn

import torchaca as aca

F64 = torch.float64
INTERFACES = ("odeint", "odeint_adjoint")
ours_and_theirs = pytest.mark.parametrize("interface", INTERFACES)


def gradients(loss, module, *others):
    """All gradients of one backward pass, by name."""
    loss.backward()
    named = {name: p.grad for name, p in module.named_parameters()}
    named |= {f"input {i}": x.grad for i, x in enumerate(others)}
    for x in (*module.parameters(), *others):
        x.grad = None
    return {"loss": loss.detach(), **named}


def assert_same(program, tolerance):
    """`program(library)` gives the same named tensors, none of them trivial."""
    ours, theirs = program(aca), program(torchdiffeq)
    assert ours.keys() == theirs.keys()
    for name, other in theirs.items():
        assert (ours[name] is None) == (other is None), name
        if other is not None:
            assert (ours[name] - other).abs().max() <= tolerance * (1 + other.abs().max()), name
    assert any(x is not None and x.abs().max() > 0.01 for name, x in theirs.items() if name != "loss")


class TestContinuousFlow:
    """FFJORD: density along a flow; the trace of df/dz is differentiated out of f itself."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
            self.register_buffer("evaluations", torch.tensor(0.0))
            self.noise = None

        def divergence(self, dz, z):
            if self.noise is not None:  # Hutchinson's estimate
                (e_dzdz,) = torch.autograd.grad(dz, z, self.noise, create_graph=True)
                return (e_dzdz * self.noise).sum(1, keepdim=True)
            columns = (torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2))
            return sum(columns)[:, None]

        def forward(self, t, states):
            z = states[0]
            self.evaluations += 1
            with torch.set_grad_enabled(True):
                z.requires_grad_(True)
                t.requires_grad_(True)
                for extra in states[2:]:
                    extra.requires_grad_(True)
                dz = self.net(torch.cat([z, t.expand(len(z), 1)], 1))
                divergence = self.divergence(dz, z)
            penalties = [
                dz.square().sum() if i == 0 else torch.zeros_like(x) for i, x in enumerate(states[2:])
            ]
            return (dz, -divergence, *penalties)

    def program(self, library, interface, reverse=True, noise=False, penalties=0, **options):
        f = self.Field()
        torch.manual_seed(1)
        z = torch.randn(5, 2, dtype=F64, requires_grad=True)
        if noise:
            f.noise = torch.randint(0, 2, z.shape).to(z) * 2 - 1
        times = torch.tensor([1.0, 0.0] if reverse else [0.0, 1.0]).to(z)
        state = (z, torch.zeros(5, 1).to(z), *(torch.tensor(0.0).to(z) for _ in range(penalties)))
        tolerances = {
            "atol": [1e-7, 1e-7] + [1e20] * penalties,
            "rtol": [1e-7, 1e-7] + [1e20] * penalties,
        }
        if (
            library is torchdiffeq and interface == "odeint_adjoint"
        ):  # it cannot take the backward ones from lists
            tolerances |= {"adjoint_atol": 1e-7, "adjoint_rtol": 1e-7}
        z_t, logp_t, *extra = getattr(library, interface)(f, state, times, **tolerances, **options)
        assert f.evaluations > 0
        base = torch.distributions.Normal(0.0, 1.0).log_prob(z_t[-1]).sum(1, keepdim=True)
        loss = -(base - logp_t[-1]).mean() + 0.1 * sum(x[-1] for x in extra)
        return gradients(loss, f, z)

    @ours_and_theirs
    @pytest.mark.parametrize("reverse", [False, True])
    def test_exact_trace(self, interface, reverse):
        assert_same(functools.partial(self.program, interface=interface, reverse=reverse), 1e-5)

    @ours_and_theirs
    def test_hutchinson_trace_and_penalties(self, interface):
        program = functools.partial(
            self.program, interface=interface, noise=True, penalties=2, method="dopri5"
        )
        assert_same(program, 1e-5)

    @ours_and_theirs
    def test_fixed_steps(self, interface):
        program = functools.partial(
            self.program, interface=interface, method="rk4", options={"step_size": 0.1}
        )
        assert_same(program, 1e-12 if interface == "odeint" else 1e-10)

    def test_the_density_is_the_change_of_variables(self):
        """Against the Jacobian of the whole flow."""
        f, t = self.Field(), torch.tensor([0.0, 1.0], dtype=F64)
        z = torch.tensor([[0.3, -0.8]], dtype=F64)
        change = aca.odeint(f, (z, torch.zeros(1, 1, dtype=F64)), t)[1][-1]

        def flow(z):
            state = (z[None], torch.zeros(1, 1, dtype=F64))
            return aca.odeint(f, state, t, rtol=1e-9, atol=1e-9)[0][-1, 0]

        jacobian = torch.autograd.functional.jacobian(flow, z[0])
        assert torch.allclose(change[0, 0], -torch.linalg.slogdet(jacobian).logabsdet, atol=1e-5)

    def test_evaluation_without_gradients(self):
        f = self.Field().eval()
        z, zero = torch.ones(3, 2, dtype=F64), torch.zeros(3, 1, dtype=F64)
        t = torch.tensor([0.0, 1.0], dtype=F64)
        with torch.no_grad():
            ours, theirs = aca.odeint(f, (z, zero), t), torchdiffeq.odeint(f, (z, zero), t)
        for mine, other in zip(ours, theirs):
            assert not mine.requires_grad
            assert torch.allclose(mine, other, atol=1e-5)
        assert not z.requires_grad


class TestLatentODE:
    """An encoder, an ODE in latent space over many times, a decoder; and the ODE-RNN's loop over gaps."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.field = nn.Sequential(nn.Linear(4, 20), nn.ELU(), nn.Linear(20, 4)).double()
            self.cell = nn.GRUCell(2, 4).double()
            self.decoder = nn.Linear(4, 2).double()

        def dynamics(self, t, z):
            return self.field(z)

    @staticmethod
    def spirals():
        t = torch.linspace(0, 2, 20, dtype=F64)
        phase = torch.tensor([0.0, 0.5, 1.0], dtype=F64)[:, None] + 2 * t
        return t, torch.stack([torch.cos(phase), torch.sin(phase)], -1) * torch.exp(-0.3 * t)[:, None]

    @ours_and_theirs
    def test_many_times(self, interface):
        t, x = self.spirals()

        def program(library):
            model = self.Model()
            h = torch.zeros(3, 4, dtype=F64)
            for i in reversed(range(6)):
                h = model.cell(x[:, i], h)
            extra = (
                {"adjoint_params": tuple(model.field.parameters())} if interface == "odeint_adjoint" else {}
            )
            solve = getattr(library, interface)
            z = solve(model.dynamics, h, t, rtol=1e-7, atol=1e-8, **extra).permute(1, 0, 2)
            return gradients((model.decoder(z) - x).square().mean(), model)

        assert_same(program, 1e-4)

    @ours_and_theirs
    def test_ode_rnn(self, interface):
        """A solve for every gap between observations, each state updated in between."""
        t, x = self.spirals()

        def program(library):
            model = self.Model()
            h = torch.zeros(3, 4, dtype=F64)
            solve = getattr(library, interface)
            extra = (
                {"adjoint_params": tuple(model.field.parameters())} if interface == "odeint_adjoint" else {}
            )
            for i in range(0, 12, 2):
                h = solve(model.dynamics, h, t[i : i + 2], rtol=1e-6, atol=1e-7, **extra)[-1]
                h = model.cell(x[:, i + 1], h)
            return gradients((model.decoder(h) - x[:, 12]).square().sum(), model)

        assert_same(program, 1e-5)

    def test_training_goes_the_same_way(self):
        t, x = self.spirals()

        def losses(library):
            model, seen = self.Model(), []
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            for _ in range(8):
                optimizer.zero_grad()
                h = model.cell(x[:, 0], torch.zeros(3, 4, dtype=F64))
                z = library.odeint(model.dynamics, h, t[:8], rtol=1e-5, atol=1e-6)
                loss = (model.decoder(z).permute(1, 0, 2) - x[:, :8]).square().mean()
                loss.backward()
                optimizer.step()
                seen.append(loss.item())
            return seen

        mine, other = losses(aca), losses(torchdiffeq)
        assert mine == pytest.approx(other, rel=1e-3)
        assert mine[-1] < 0.9 * mine[0]


class TestNeuralCDE:
    """dz = F(z) dX: a control path between observations, whose slope jumps at the knots."""

    class Path:
        """Linear interpolation of `(length, channels)` observations."""

        def __init__(self, knots, values):
            self.knots, self.values = knots, values

        def derivative(self, t):
            i = (torch.bucketize(t.detach(), self.knots) - 1).clamp(0, len(self.knots) - 2)
            return (self.values[i + 1] - self.values[i]) / (self.knots[i + 1] - self.knots[i])

    class Field(nn.Module):
        """The wrapper around the user's field; `func` is hidden from `.parameters()`, as in torchcde."""

        def __init__(self, path, func):
            super().__init__()
            self.path, self.hidden = path, [func]

        def forward(self, t, z):
            return (self.hidden[0](z).reshape(*z.shape, -1) @ self.path.derivative(t)[..., None]).squeeze(-1)

    KNOTS = torch.tensor([0.0, 0.5, 0.75, 1.25, 2.0], dtype=F64)

    def program(self, library, interface, ts=(0.0, 1.0, 2.0), wrap=None, **options):
        torch.manual_seed(0)
        func = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 8)).double()
        values = torch.randn(5, 2, dtype=F64, requires_grad=True)
        t = torch.tensor(ts, dtype=F64, requires_grad=True)
        z0 = torch.randn(3, 4, dtype=F64, requires_grad=True)
        field = (wrap or self.Field)(self.Path(self.KNOTS, values), func)
        if interface == "odeint_adjoint":
            options["adjoint_params"] = (*func.parameters(), values)
        zs = getattr(library, interface)(field, z0, t, **options)
        # Time gradients are left to the tests that say what they should be.
        result = gradients(
            (zs * torch.linspace(-1, 1, zs.numel(), dtype=F64).view_as(zs)).sum(), func, z0, values, t
        )
        result.pop("input 2")
        return result

    @ours_and_theirs
    def test_knots_are_jumps(self, interface):
        options = {"rtol": 1e-7, "atol": 1e-8, "options": {"jump_t": self.KNOTS[1:-1]}}
        assert_same(functools.partial(self.program, interface=interface, **options), 1e-5)

    def test_seminorm(self):
        options = {
            "rtol": 1e-7,
            "atol": 1e-8,
            "options": {"jump_t": self.KNOTS[1:-1]},
            "adjoint_options": {"norm": "seminorm", "jump_t": self.KNOTS[1:-1]},
        }
        assert_same(functools.partial(self.program, interface="odeint_adjoint", **options), 1e-5)

    @ours_and_theirs
    def test_knots_are_the_grid(self, interface):
        knots = self.KNOTS

        def grid(func, z0, t):
            inner = knots[(knots > t.min()) & (knots < t.max())]
            inner = inner.flip(0) if t[0] > t[-1] else inner
            return torch.cat([t[:1].detach(), inner, t[-1:].detach()])

        options = {"method": "rk4", "options": {"grid_constructor": grid, "perturb": True, "interp": "cubic"}}
        assert_same(functools.partial(self.program, interface=interface, ts=(0.0, 2.0), **options), 1e-12)

    @ours_and_theirs
    def test_a_lambda_over_a_module(self, interface):
        """What torchdiffeq needs `adjoint_params` for."""

        def wrap(path, func):
            return lambda t, z: (func(z).reshape(3, 4, 2) @ path.derivative(t)[:, None]).squeeze(-1)

        options = {"method": "midpoint", "options": {"step_size": 0.25, "interp": "linear"}}
        assert_same(functools.partial(self.program, interface=interface, wrap=wrap, **options), 1e-12)

    def test_time_gradients(self):
        """dL/dt1 = dL/dz(t1) . f(t1, z(t1)), for a t that requires grad."""
        torch.manual_seed(0)
        func = nn.Linear(4, 8).double()
        field = self.Field(self.Path(self.KNOTS, torch.randn(5, 2, dtype=F64)), func)
        z0 = torch.randn(3, 4, dtype=F64)
        for interface in INTERFACES:
            t = torch.tensor([0.1, 1.0, 1.9], dtype=F64, requires_grad=True)
            extra = {"adjoint_params": tuple(func.parameters())} if interface == "odeint_adjoint" else {}
            zs = getattr(aca, interface)(field, z0, t, options={"jump_t": self.KNOTS}, **extra)
            (zs[1].sum() + 2 * zs[2].sum()).backward()
            with torch.no_grad():
                slopes = [field(s, z).sum() for s, z in zip(t, zs)]
            assert t.grad[1].item() == pytest.approx(slopes[1].item(), rel=1e-5)
            assert t.grad[2].item() == pytest.approx(2 * slopes[2].item(), rel=1e-5)


class TestODENet:
    """The MNIST block: convolutions that see the time, and an integration time that moves with the input."""

    class Field(nn.Module):
        def __init__(self, channels=4):
            super().__init__()
            self.norm = nn.GroupNorm(2, channels)
            self.conv = nn.Conv2d(channels + 1, channels, 3, padding=1)
            self.nfe = 0

        def forward(self, t, x):
            self.nfe += 1
            time = torch.ones_like(x[:, :1]) * t
            return self.conv(torch.cat([time, torch.relu(self.norm(x))], 1))

    class Block(nn.Module):
        def __init__(self, field, solve):
            super().__init__()
            self.field, self.solve = field, solve
            self.integration_time = torch.tensor([0, 1]).float()

        def forward(self, x):
            self.integration_time = self.integration_time.type_as(x)
            return self.solve(self.field, x, self.integration_time, rtol=1e-3, atol=1e-3)[1]

    def network(self, library, interface, dtype):
        torch.manual_seed(0)
        block = self.Block(self.Field(), getattr(library, interface))
        head = nn.Sequential(
            nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        )
        return nn.Sequential(nn.Conv2d(1, 4, 3, 2), block, head).to(dtype)

    @ours_and_theirs
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_gradients(self, interface, dtype):
        def program(library):
            network = self.network(library, interface, dtype)
            x, labels = torch.randn(6, 1, 12, 12).to(dtype), torch.arange(6)
            return gradients(nn.functional.cross_entropy(network(x), labels), network)

        assert_same(program, 5e-3)

    @ours_and_theirs
    def test_counters(self, interface):
        """The forward and backward counts of torchdiffeq's examples."""
        network = self.network(aca, interface, torch.float32)
        field = network[1].field
        loss = network(torch.randn(2, 1, 12, 12)).sum()
        forward, field.nfe = field.nfe, 0
        loss.backward()
        assert 0 < forward < 100
        # odeint keeps the graph of its steps, as torchdiffeq's does.
        assert (field.nfe == 0) if interface == "odeint" else 0 < field.nfe < 100

    def test_training(self):
        network = self.network(aca, "odeint_adjoint", torch.float32)
        x, labels = torch.randn(10, 1, 12, 12), torch.arange(10)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]


class TestHamiltonian:
    """f is the symplectic gradient of a network, by `autograd.grad` inside of f."""

    class Field(nn.Module):
        def __init__(self, own_grad_mode):
            super().__init__()
            torch.manual_seed(0)
            self.energy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()
            self.own_grad_mode = own_grad_mode

        def derivative(self, y):
            (grad,) = torch.autograd.grad(self.energy(y).sum(), y, create_graph=True)
            return torch.cat([grad[:, 2:], -grad[:, :2]], 1)

        def forward(self, t, y):
            if not self.own_grad_mode:
                return self.derivative(y)
            with torch.enable_grad():
                return self.derivative(y if y.requires_grad else y.requires_grad_(True))

    def program(self, library, interface, own_grad_mode, **options):
        f = self.Field(own_grad_mode)
        torch.manual_seed(1)
        y0 = torch.randn(3, 4, dtype=F64, requires_grad=True)
        ys = getattr(library, interface)(f, y0, torch.linspace(0, 2, 5, dtype=F64), **options)
        return gradients(ys.square().mean() + ys[-1].sum(), f, y0)

    @ours_and_theirs
    def test_gradients(self, interface):
        assert_same(functools.partial(self.program, interface=interface, own_grad_mode=True), 1e-5)

    @ours_and_theirs
    def test_fixed_steps(self, interface):
        program = functools.partial(self.program, interface=interface, own_grad_mode=True, method="rk4")
        assert_same(program, 1e-12)

    @ours_and_theirs
    def test_without_a_grad_mode_of_its_own(self, interface):
        """torchdiffeq's odeint_adjoint and a `no_grad` evaluation cannot run this f."""
        expected = self.program(torchdiffeq, "odeint", own_grad_mode=False)
        ours = self.program(aca, interface, own_grad_mode=False)
        for name, other in expected.items():
            if other is None:
                assert name == "energy.2.bias"
                assert ours[name] is None or not ours[name].any()
            else:
                assert torch.allclose(ours[name], other, atol=1e-5)
        f, t = self.Field(own_grad_mode=False), torch.tensor([0.0, 1.0], dtype=F64)
        with torch.no_grad():
            ys = getattr(aca, interface)(f, torch.ones(2, 4, dtype=F64), t)
        assert not ys.requires_grad

    def test_energy_is_kept(self):
        f = self.Field(own_grad_mode=True)
        y0, t = torch.randn(3, 4, dtype=F64), torch.linspace(0, 5, 3, dtype=F64)
        energies = f.energy(aca.odeint(f, y0, t, rtol=1e-8, atol=1e-8))
        assert torch.allclose(energies, energies[:1].expand_as(energies), atol=1e-6)


class TestSecondOrder:
    """x'' = -k x - c x' as a tuple `(x, v)`, with constants held by a plain class."""

    class Spring:
        def __init__(self, k, c):
            self.k, self.c = k, c

        def __call__(self, t, state):
            x, v = state
            return v, -self.k * x - self.c * v

    def test_an_object_with_call(self):
        k = torch.tensor(2.0, dtype=F64, requires_grad=True)
        c = torch.tensor(0.3, dtype=F64, requires_grad=True)
        y0 = (torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64))
        t = torch.linspace(0, 3, 4)  # float32 times beside a float64 state
        grads = []
        for library, interface, extra in (
            (torchdiffeq, "odeint", {}),
            (aca, "odeint", {}),
            (aca, "odeint_adjoint", {}),
            (aca, "odeint_adjoint", {"adjoint_params": (k, c)}),
        ):
            x, _ = getattr(library, interface)(self.Spring(k, c), y0, t, rtol=1e-8, atol=1e-8, **extra)
            grads.append(torch.autograd.grad(x.square().sum(), (k, c)))
        for one in grads[1:]:
            assert torch.allclose(torch.stack(one), torch.stack(grads[0]), rtol=1e-5)
