"""What a solve that failed still tells, and states without components."""

import pytest
import torch
from gradient_cases import ADAPTIVE, SETTINGS, takes
from problems import DOUBLE
from torch.utils import _pytree as pytree

from torchaca import METHODS, SolverError, solve

T = [0.0, 0.5, 1.0]


def hurried(t, y):
    return -50 * y * torch.cos(30 * t)


@pytest.mark.parametrize("on_failure", ["raise", "status", "nan"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_accepted_step_is_listed(setting, on_failure):
    options = {"gradient": SETTINGS[setting], "method": takes(setting)[0], "max_steps": 10}
    for times in ([0.0, 1.0], [0.0, 0.001, 1.0], [1.0, 0.0]):
        y0 = torch.ones(2, dtype=DOUBLE, requires_grad=True)
        try:
            sol = solve(hurried, y0, times, **options, on_failure=on_failure)
        except SolverError as error:
            sol = error.partial
        assert len(sol.steps) == sol.stats.accepted + 1 > 2
        if on_failure != "raise" and len(times) == 3:
            (slope,) = torch.autograd.grad(sol.ys[1].sum(), y0)
            right = torch.autograd.grad(
                solve(hurried, y0, times[:2], method=options["method"]).ys[1].sum(), y0
            )[0]
            torch.testing.assert_close(slope, right, rtol=1e-2, atol=0)


EMPTY = {
    "vector": torch.ones(0),
    "matrix": torch.ones(3, 0, dtype=DOUBLE),
    "complex": torch.ones(0, 2, dtype=torch.complex64),
    "half": torch.ones(0, dtype=torch.bfloat16),
    "one of two": {"x": torch.ones(2), "none": torch.ones(0)},
    "all of two": (torch.ones(0), [torch.ones(2, 0)]),
}


def emptied(empty, **options):
    """Outputs and gradients of a solve of y' = -w y; the number of components is checked."""
    w = torch.ones((), requires_grad=True)
    y0 = pytree.tree_map(lambda x: x.clone().requires_grad_(), EMPTY[empty])
    sol = solve(lambda t, y: pytree.tree_map(lambda x: -w.to(x.dtype) * x, y), y0, T, **options)
    starts, ends = pytree.tree_leaves(y0), pytree.tree_leaves(sol.ys)
    assert [y.shape[1:] for y in ends] == [y.shape for y in starts]
    grads = torch.autograd.grad(sum(y.real.sum().float() for y in ends), [*starts, w], allow_unused=True)
    assert [g.shape for g in grads[:-1]] == [y.shape for y in starts]
    assert (len(starts) == 2 and starts[0].numel()) or not grads[-1]
    return sol


@pytest.mark.parametrize("norm", [None, "max", "mixed"])
@pytest.mark.parametrize("empty", EMPTY)
def test_a_state_without_components(empty, norm):
    sol = emptied(empty, norm=norm, dense=True)
    assert sol.status == "success"
    assert [y.shape[0] for y in pytree.tree_leaves(sol([0.1, 0.2]))] == [2] * len(pytree.tree_leaves(sol.ys))
    emptied(empty, jump_ts=[0.3])


@pytest.mark.parametrize("empty", ["vector", "one of two"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_state_without_components_under_every_gradient(setting, empty):
    options = {"gradient": SETTINGS[setting], "method": takes(setting)[0]}
    emptied(empty, **options)
    emptied(empty, n_steps=2, **options)
    assert emptied(empty, max_steps=1, dt0=0.1, on_failure="nan", **options).status == "max-steps"


@pytest.mark.parametrize("method", METHODS)
def test_a_state_without_components_in_every_method(method):
    emptied("matrix", method=method, **({} if method in ADAPTIVE else {"n_steps": 2}))


@pytest.mark.parametrize("executor", [True, "steps"])
@pytest.mark.parametrize("empty", ["vector", "all of two"])
def test_a_state_without_components_has_nothing_to_compile(empty, executor):
    assert emptied(empty, compile=executor).stats.nfe == emptied(empty).stats.nfe


@pytest.mark.parametrize("options", [{}, {"n_steps": 2}], ids=str)
def test_a_state_without_components_in_a_map(options):
    ys = torch.func.vmap(lambda y: solve(lambda t, y: -y, y, T, **options).ys)(torch.ones(3, 0))
    assert ys.shape == (3, 3, 0)


def test_a_map_over_nothing_is_refused():
    with pytest.raises(ValueError, match=r"vmap over no lanes.*skip"):
        torch.func.vmap(lambda y: solve(lambda t, y: -y, y, T).ys)(torch.ones(0, 2))


# Lanes of vmap.


def growing(t, y, w):
    """y' = w y^2 leaves to infinity at t = 1 / (w y0)."""
    return w * y * y


def lanes_of(starts, w, on_failure, f=growing, times=(0.0, 0.2, 0.5, 1.0), **options):
    found = []

    def lane(y0):
        sol = solve(f, y0, list(times), args=(w,), on_failure=on_failure, **{"rtol": 1e-6, **options})
        found.append(sol)
        return sol.ys

    return torch.func.vmap(lane)(starts), found[0]


ENDS = {
    "later": ([0.3, 3.0, 0.7], [4, 2, 4]),
    "at once": ([0.3, float("nan"), 0.7], [4, 1, 4]),
    "two": ([9.0, 0.3, 1.4], [1, 4, 3]),
    "all": ([9.0, 3.0, float("inf")], [1, 2, 1]),
}
METHODS_IN_LANES = [name for name in ADAPTIVE if not hasattr(METHODS[name], "resume")]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own
@pytest.mark.parametrize("on_failure", ["nan", "status"])
@pytest.mark.parametrize("ends", ENDS)
def test_a_lane_fails_alone(ends, on_failure):
    starts, reached = torch.tensor(ENDS[ends][0], dtype=DOUBLE, requires_grad=True), ENDS[ends][1]
    w = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    ys, sol = lanes_of(starts, w, on_failure)
    assert sol.failure is not None
    assert sol.status in ("step-size", "max-steps")
    right_y0, right_w, total = torch.zeros_like(starts), 0.0, torch.zeros((), dtype=DOUBLE)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=DOUBLE)
    for i, n in enumerate(reached):
        assert ys[i, n:].isnan().all()
        assert torch.equal(ys[i, :1].nan_to_num(), starts[i : i + 1].nan_to_num())
        if n > 1:
            shrink = 1 - t[: n - 1] * starts.detach()[i]
            torch.testing.assert_close(ys[i, 1:n], starts.detach()[i] / shrink, rtol=1e-4, atol=0)
            right_y0[i] = (shrink**-2).sum()
            right_w += (t[: n - 1] * (starts.detach()[i] / shrink) ** 2).sum().item()
            total = total + ys[i, 1:n].sum()
    if max(reached) > 1:
        slope_y0, slope_w = torch.autograd.grad(total, [starts, w])
        healthy = torch.tensor(reached) > 1
        torch.testing.assert_close(slope_y0[healthy], right_y0[healthy], rtol=1e-3, atol=0)
        assert slope_w.item() == pytest.approx(right_w, rel=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("method", METHODS_IN_LANES)
def test_a_lane_fails_alone_in_every_method(method):
    starts, w = torch.tensor([0.3, 3.0, 0.7], dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE)
    options = {"method": method, "max_steps": 300, "rtol": 1e-3}
    ys, _ = lanes_of(starts, w, "nan", **options)
    assert ys.isfinite().sum(1).tolist() == [4, 2, 4]
    healthy = starts[[0, 2]]
    torch.testing.assert_close(ys[[0, 2], -1], healthy / (1 - healthy), rtol=3e-1, atol=0)
    slopes = torch.func.jacrev(lambda w: lanes_of(starts, w, "nan", **options)[0][[0, 2], -1])(w)
    torch.testing.assert_close(slopes, healthy**2 / (1 - healthy) ** 2, rtol=5e-1, atol=0)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("step-size", {}), ("max-steps", {"max_steps": 6}), ("dt-min", {"dt_min": 0.05, "dt0": 0.05})],
    ids=["step-size", "max-steps", "dt-min"],
)
def test_every_reason_for_a_lane_to_fail(kind, options):
    starts = torch.tensor([0.1, 2.0], dtype=DOUBLE)

    def lane(y, on_failure):
        sol = solve(lambda t, y: y * y, y, [0.0, 0.02, 1.0], on_failure=on_failure, **options)
        assert on_failure == "raise" or sol.status == kind
        return sol.ys

    for on_failure in ("nan", "status"):
        ys = torch.func.vmap(lambda y, on_failure=on_failure: lane(y, on_failure))(starts)
        assert ys[0].isfinite().all()
        assert ys[1, 2].isnan()
    with pytest.raises(SolverError, match="a lane of vmap") as caught:
        torch.func.vmap(lambda y: lane(y, "raise"))(starts)
    assert caught.value.kind == kind


def test_nested_maps_and_nested_states_fail_alone():
    starts = torch.tensor([[0.3, 3.0], [9.0, 0.7], [0.1, 0.2]], dtype=DOUBLE)

    def f(t, y):
        return {"y": -(y["y"] ** 2), "still": 0 * y["still"]}

    def lane(y0):
        ys = solve(f, {"y": y0, "still": torch.ones(2, dtype=DOUBLE)}, [1.0, 0.0], on_failure="nan").ys
        return ys["y"], ys["still"]

    y, still = torch.func.vmap(torch.func.vmap(lane))(starts)
    failed = starts > 1.0
    assert torch.equal(y[..., 1].isnan(), failed)
    assert torch.equal(still[..., 1, :].isnan().all(-1), failed)
    assert (still[..., 0, :] == 1).all()
