"""The backward integration of the adjoint: where the state comes from, and how parameter gradients are summed up."""

import math
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
from gradient_cases import DOUBLE, Counter, Everything, assert_same, differences, gradients_of
from peak import Peak
from problems import COSINE
from torch import nn

from torchaca import METHODS, Adjoint, SolverError, solve
from torchaca.gradients.costate import Recorded, gauss_rule

PLAIN, SEMI = Adjoint(), Adjoint(norm="semi")
GAUSS = Adjoint(quadrature="gauss")
INTERPOLATED = Adjoint(state="interpolated")
BOTH = Adjoint(state="interpolated", quadrature="gauss")
NEW = {"gauss": GAUSS, "interpolated": INTERPOLATED, "both": BOTH}
READING = {"interpolated": INTERPOLATED, "both": BOTH}
TIMES = [0.0, 0.3, 0.9, 1.5]
EXACT = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-12}

new = pytest.mark.parametrize("settings", NEW.values(), ids=NEW)
reading = pytest.mark.parametrize("settings", READING.values(), ids=READING)


# --- right, and of the method's order ---


@pytest.mark.parametrize(
    ("settings", "times"), [(GAUSS, TIMES), (INTERPOLATED, TIMES[::-1]), (BOTH, TIMES), (BOTH, TIMES[::-1])]
)
def test_the_error_falls_with_the_tolerance(settings, times):
    case = Everything(times)
    exact = case.gradients("direct", **EXACT)
    errors = [
        max(differences(case.gradients(settings, rtol=tolerance, atol=tolerance), exact).values())
        for tolerance in (1e-3, 1e-5, 1e-7)
    ]
    assert errors[2] < 1e-5
    assert errors[2] < 0.1 * errors[1] < 0.01 * errors[0]


@pytest.mark.parametrize(
    ("settings", "method"), [*product(NEW.values(), ["heun3", "rk4", "dopri5"]), (BOTH, "dopri8")]
)
def test_it_is_of_the_method_s_order(settings, method):
    case = Everything([0.0, 1.5])
    exact = case.gradients("direct", **EXACT)
    order = METHODS[method].order
    grids = (40, 80) if order < 5 else (10, 20)
    errors = []
    for n in grids:
        off = differences(case.gradients(settings, method=method, n_steps=n), exact)
        errors.append((off["z0"], off["net.weight"], off["captured"], off["a"]))
    for coarse, fine in zip(*errors, strict=True):
        assert math.log2(coarse / fine) > order - 0.3


@pytest.mark.parametrize("order", range(1, 9))
def test_the_quadrature_is_of_a_higher_order_than_the_method(order):
    nodes = list(zip(*gauss_rule(order), strict=True))

    def off(degree):
        return abs(sum(w * x**degree for x, w in nodes) - 1 / (degree + 1))

    exact_to = next(degree for degree in range(30) if off(degree) > 1e-14) - 1
    assert exact_to == 2 * len(nodes) - 1 >= order
    assert len(nodes) == math.ceil((order + 1) / 2)


@new
def test_complex_states_with_real_parameters(settings):
    case = {
        "y0": torch.tensor([1 + 0.5j, -0.3j], dtype=torch.complex128, requires_grad=True),
        "w": torch.tensor([0.7, -1.2], dtype=DOUBLE, requires_grad=True),
        "c": torch.tensor([0.2 - 0.4j, 0.1j], dtype=torch.complex128, requires_grad=True),
    }

    def grads(gradient):
        ys = solve(
            lambda t, y, c: torch.exp(1j * case["w"] * t) * c * y + y.conj().flip(0),
            case["y0"], [0.0, 0.4, 1.0], args=(case["c"],), rtol=1e-9, atol=1e-9, gradient=gradient,
        ).ys  # fmt: skip
        return gradients_of(ys, case)

    assert_same(grads(settings), grads("direct"), 1e-6)


@new
def test_tensors_that_f_uses_late(settings):
    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    case = {"k": k, "y0": torch.ones(2, dtype=DOUBLE, requires_grad=True)}

    def grads(gradient):
        options = {"rtol": 1e-8, "atol": 1e-8, "jump_ts": [0.5]}
        ys = solve(
            lambda t, y: -k * y if t > 0.5 else -y, case["y0"], [0.0, 1.0], gradient=gradient, **options
        ).ys
        return gradients_of(ys, case)

    assert_same(grads(settings), grads("direct"), 1e-6)


@new
def test_jumps(settings):
    k = torch.tensor([1.0, -2.0], dtype=DOUBLE, requires_grad=True)
    f = Counter(lambda t, y: torch.where(t < 0.4, k[0], k[1]) * y)
    options = {"jump_ts": [0.4], "rtol": 1e-8, "atol": 1e-10}
    sol = solve(f, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], gradient=settings, **options)
    (g,) = torch.autograd.grad(sol.ys[-1].sum(), k)
    y1 = math.exp(0.4 - 2 * 0.6)
    torch.testing.assert_close(g, torch.tensor([0.4 * y1, 0.6 * y1], dtype=DOUBLE), rtol=1e-6, atol=0)
    assert 0.4 not in {t for t, _ in f.seen}


# --- a contracting system: what the backsolved state cannot survive ---

K = 50.0


def forgets(gradient, dtype, **options):
    """y(2) of y' = -k (y - cos t), and its derivative with respect to k."""
    k = torch.tensor(K, dtype=dtype, requires_grad=True)
    sol = solve(
        lambda t, y: -k * (y - torch.cos(t)), torch.ones(1, dtype=dtype), [0.0, 2.0], gradient=gradient,
        **options,
    )  # fmt: skip
    return torch.autograd.grad(sol.ys[-1].sum(), k)[0].item()


NUMERATOR, SQUARE = K**2 * math.cos(2) + K * math.sin(2), K**2 + 1
TRUE = (2 * K * math.cos(2) + math.sin(2)) / SQUARE - 2 * K * NUMERATOR / SQUARE**2


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@reading
def test_contraction_does_no_harm(settings, dtype):
    assert forgets(settings, dtype, rtol=1e-4) == pytest.approx(TRUE, rel=1e-3)


@pytest.mark.parametrize("settings", [PLAIN, SEMI, GAUSS], ids=["plain", "semi", "gauss"])
def test_contraction_breaks_every_backsolve(settings):
    with pytest.raises(SolverError, match="blow-up"):
        forgets(settings, torch.float32, rtol=1e-4)
    assert abs(forgets(settings, DOUBLE, rtol=1e-4, at_rest="ignore") / TRUE - 1) > 0.1


def test_van_der_pol():
    """Errors against the true gradient, relative: below 1.5e-4 read from the forward steps, above 5e-2 backsolved."""
    y0 = torch.tensor([2.0, 0.0], dtype=DOUBLE, requires_grad=True)

    def gradient_of(gradient, **options):
        def f(t, y):
            return torch.stack([y[1], (0.15 - y[0] ** 2) * y[1] - y[0]])

        ys = solve(f, y0, [0.0, 25.0], gradient=gradient, **options).ys
        return torch.autograd.grad(ys[-1].pow(2).sum(), y0)[0]

    true = gradient_of("direct", method="dopri8", rtol=1e-10, atol=1e-10)

    def off(gradient):
        return ((gradient_of(gradient, rtol=1e-5, atol=1e-5) - true).norm() / true.norm()).item()

    assert off(INTERPOLATED) < 1.5e-4
    assert off(BOTH) < 1.5e-4
    assert off(PLAIN) > 5e-2
    assert off(GAUSS) > 5e-2


# --- what is kept, what is evaluated ---


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("method", METHODS)
def test_the_record_is_the_dense_output(method, dtype):
    y0 = COSINE.y1.to(dtype)
    sol = solve(COSINE.f, y0, [*COSINE.span[::-1]], dense=True, method=method, n_steps=7)
    steps = [SimpleNamespace(basis=lambda n=n: sol.dense.bases[n]) for n in range(7)]
    kept = []
    recorded = Recorded(METHODS[method], sol.steps, kept)
    assert list(recorded.taking(steps, kept)) == steps
    precision = 100 * torch.finfo(dtype).eps
    for t in [*sol.steps, 3.4, 1.7, 0.2, 0.0, -0.3, -0.499]:
        torch.testing.assert_close(recorded(t), sol(t), rtol=precision, atol=precision)


@new
def test_autocast_is_for_f_alone(settings):
    """This f has nothing to cast: its gradients are those of full precision."""
    case = {
        "y0": torch.tensor([1.0, -0.3, 2.1], requires_grad=True),
        "k": torch.tensor(0.7, requires_grad=True),
    }

    def gradients(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sol = solve(
                lambda t, y: -case["k"] * y * y * torch.cos(t), case["y0"], [0.0, 2.0], rtol=1e-6, gradient=settings
            )  # fmt: skip
        return gradients_of(sol.ys, case, lambda ys: ys[-1].sum())

    assert_same(gradients(True), gradients(False), 1e-6)


def network(*widths):
    torch.manual_seed(3)
    sizes = (3, *(widths or (16,)), 3)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    net = nn.Sequential(*layers[:-1]).double()
    return (lambda t, y: net(y) * torch.cos(5 * t)), net


def backward_of(settings, times=(0.0, 3.0), y0=None, **options):
    f, net = network()
    y0 = torch.ones(4, 3, dtype=DOUBLE, requires_grad=True) if y0 is None else y0
    sol = solve(f, y0, list(times), gradient=settings, **options)
    grads = torch.autograd.grad((10 * sol.ys[1:].pow(2).sum()), [y0, *net.parameters()])
    return sol.stats, dict(zip(("y0", "w1", "b1", "w2", "b2"), grads, strict=True))


@pytest.mark.parametrize("state", ["backsolve", "interpolated"])
def test_gauss_takes_the_semi_norm_s_steps(state):
    """Neither sees the parameters: same steps; one evaluation a node and accepted step more."""
    options = {"rtol": 1e-6, "atol": 1e-6, "times": (0.0, 1.0, 3.0)}
    semi, semi_grads = backward_of(Adjoint(norm="semi", state=state), **options)
    gauss, grads = backward_of(Adjoint(quadrature="gauss", state=state), **options)
    full, _ = backward_of(Adjoint(state=state), **options)
    assert (gauss.accepted_backward, gauss.rejected_backward) == (
        semi.accepted_backward,
        semi.rejected_backward,
    )
    assert gauss.nfe_backward == semi.nfe_backward + 3 * gauss.accepted_backward
    assert semi.nfe_backward < full.nfe_backward
    torch.testing.assert_close(grads["y0"], semi_grads["y0"], rtol=1e-11, atol=1e-12)
    assert_same(grads, semi_grads, 1e-3)


def test_the_semi_norm_is_kidger_s():
    """The larger RMS of state and adjoint, as in the authors' code; parameter gradients do not count."""
    seen = []

    def norm(parts):
        seen.append(len(parts))
        return torch.maximum(*(part.pow(2).mean().sqrt() for part in parts[1:3]))

    own, _ = backward_of(Adjoint(norm=norm))
    assert own == backward_of(SEMI)[0]
    assert set(seen) == {7}


@pytest.mark.parametrize(("settings", "count"), [(GAUSS, 3), (INTERPOLATED, 6), (BOTH, 2)])
def test_a_norm_of_one_s_own_sees_what_is_integrated(settings, count):
    seen = []

    def norm(parts):
        seen.append(len(parts))
        return torch.stack([part.abs().max() for part in parts]).max()

    chosen = Adjoint(norm=norm, state=settings.state, quadrature=settings.quadrature)
    backward_of(chosen)
    assert set(seen) == {count}


@new
def test_evaluations_are_counted(settings):
    f, net = network()
    counter = Counter(f)
    y0 = torch.ones(4, 3, dtype=DOUBLE, requires_grad=True)
    sol = solve(counter, y0, [0.0, 1.0, 3.0], gradient=settings)
    forward = sol.stats.nfe
    counter.calls = 0
    sol.ys.sum().backward()
    stats = sol.stats
    assert stats.nfe_backward == counter.calls
    assert stats.nfe == forward
    trials = stats.accepted_backward + stats.rejected_backward
    nodes = 3 * stats.accepted_backward if settings.quadrature == "gauss" else 0
    assert stats.nfe_backward == 6 * trials + 2 * 1 + 1 + nodes + 2  # the last: is f what it was?
    assert net[0].weight.grad is not None


def test_no_quadrature_where_there_is_nothing_to_sum_up():
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    costs = []
    for settings in (SEMI, GAUSS):
        sol = solve(lambda t, y: -(y**2), y0, [0.0, 1.0], gradient=settings)
        sol.ys[-1].sum().backward()
        costs.append(sol.stats.nfe_backward)
    assert costs[0] == costs[1]


DEGREE = {"euler": 1, "rk4": 3, "dopri5": 4, "dopri8": 7}
"""Of the interpolants."""


@pytest.mark.parametrize("method", DEGREE)
@reading
def test_the_forward_steps_are_kept_and_nothing_else(settings, method):
    f, _ = network()

    def held(n):
        storages = {}

        def pack(x):
            storages[x.untyped_storage().data_ptr()] = x.numel()
            return x

        y0 = torch.ones(5, 3, dtype=DOUBLE, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            sol = solve(f, y0, [0.0, 1.0], gradient=settings, method=method, n_steps=n)
        return sum(storages.values()), sol

    (few, _), (many, sol) = held(4), held(10)
    assert many - few == 6 * (1 + DEGREE[method]) * 15
    sol.ys.sum().backward()


def test_gauss_holds_the_parameters_once_more_and_their_gradient():
    """The totals, and the gradient at one node; the augmented state goes through all stages of the method."""
    f, net = network(100, 100)
    numbers = sum(p.numel() for p in net.parameters())

    def peak(settings):
        sol = solve(f, torch.ones(3, dtype=DOUBLE, requires_grad=True), [0.0, 1.0], gradient=settings)
        with Peak(net.parameters()) as peak:
            torch.autograd.grad(sol.ys[-1].sum(), list(net.parameters()))
        return peak

    augmented, gauss, both = peak(PLAIN), peak(GAUSS), peak(BOTH)
    assert augmented.peak > 20 * numbers
    assert augmented.largest > numbers
    for lean in (gauss, both):
        assert 2 * numbers < lean.peak < 2.1 * numbers  # and the graph of one evaluation
        assert lean.largest == max(p.numel() for p in net.parameters())


# --- as robust as the rest ---


@reading
@pytest.mark.parametrize("on_failure", ["status", "nan"])
def test_the_prefix_of_a_failed_solve(settings, on_failure):
    y0 = torch.tensor([1.0], dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: y * y, y0, [0.0, 0.3, 0.6, 2.0], gradient=settings, on_failure=on_failure, rtol=1e-6, atol=1e-6
    )  # fmt: skip
    assert sol.status != "success"
    (g,) = torch.autograd.grad(sol.ys[2].sum(), y0)
    torch.testing.assert_close(g.item(), 1 / (1 - 0.6) ** 2, rtol=1e-3, atol=0)


@reading
def test_backward_twice_and_dense_output(settings):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: -w * y, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], gradient=settings, dense=True, rtol=1e-6
    )
    first, second = (torch.autograd.grad(sol.ys[-1].sum(), w, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first.item(), -math.exp(-0.5), rtol=1e-5, atol=0)
    torch.testing.assert_close(sol(0.3).item(), math.exp(-0.15), rtol=1e-5, atol=0)
    with pytest.raises(NotImplementedError, match="gradient='aca'"):
        sol(0.3).backward()


@new
def test_second_derivatives_are_refused_in_words(settings):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    ys = solve(lambda t, y: -w * y * y, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], gradient=settings).ys
    (first,) = torch.autograd.grad(ys[-1].sum(), w, create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient='aca'"):
        first.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_parameters_are_summed_up_in_float32(dtype):
    """Four hundred summands of bfloat16 would lose every digit."""
    w = torch.tensor(1.0, dtype=dtype, requires_grad=True)
    sol = solve(
        lambda t, y: torch.ones_like(y) * w.float(), torch.zeros(1), [0.0, 1.0], method="euler", n_steps=400,
        gradient=GAUSS,
    )  # fmt: skip
    (g,) = torch.autograd.grad(sol.ys[-1].sum(), w)
    assert g.dtype == dtype
    assert g.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("handed", [True, False], ids=["argument", "captured"])
@pytest.mark.parametrize("settings", [PLAIN, *NEW.values()], ids=["plain", *NEW])
def test_sparse_gradients_stay_sparse(settings, handed):
    torch.manual_seed(0)
    table, rows = torch.randn(5, 2, dtype=DOUBLE, requires_grad=True), torch.tensor([1, 3])

    def f(t, y, table):
        return torch.tanh(nn.functional.embedding(rows, table, sparse=True) * y)

    def solved(gradient):
        field, args = (f, (table,)) if handed else ((lambda t, y: f(t, y, table)), ())
        ys = solve(
            field, torch.ones(2, 2, dtype=DOUBLE), [0.0, 0.5, 1.0], args=args, rtol=1e-8, atol=1e-8, gradient=gradient
        ).ys  # fmt: skip
        return torch.autograd.grad(ys.sum(), table)[0]

    got = solved(settings)
    assert got.is_sparse
    assert set(got.coalesce().indices()[0].tolist()) == {1, 3}
    torch.testing.assert_close(got.to_dense(), solved("direct").to_dense(), rtol=1e-6, atol=1e-9)


def test_unknown_and_idle_settings_are_refused():
    for setting, wrong in product(("state", "quadrature"), ("gaus", None)):
        with pytest.raises(ValueError, match=f"unknown {setting} {wrong!r}.*use '"):
            Adjoint(**{setting: wrong})
    with pytest.raises(ValueError, match="norm='semi' has no effect beside quadrature='gauss'"):
        Adjoint(norm="semi", quadrature="gauss")


@pytest.mark.parametrize("settings", [PLAIN, *NEW.values()], ids=["plain", *NEW])
def test_several_cotangents_at_once_are_refused_in_words(settings):
    y0 = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    sol = solve(lambda t, y: -(y**2), y0, [0.0, 1.0], gradient=settings, method="rk4", n_steps=10)
    with pytest.raises(NotImplementedError, match=r"one cotangent at a time.*gradient='aca'"):
        torch.autograd.grad(sol.ys[-1], y0, torch.eye(3, dtype=DOUBLE), is_grads_batched=True)
