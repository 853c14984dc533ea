"""The continuous adjoint: right up to its tolerances, cheap in memory, and clear about what it cannot do."""

import pytest
import torch
from gradient_cases import DOUBLE, Counter, Everything, differences, gradients_of, loss_of
from torch import nn

import torchaca
from torchaca import METHODS, Adaptive, Adjoint, FixedSteps, SolverError, solve

TIMES = [0.0, 0.3, 0.9, 1.5]


@pytest.mark.parametrize("times", [TIMES, TIMES[::-1]], ids=["increasing", "decreasing"])
def test_the_error_falls_with_the_tolerance(times):
    case = Everything(times)
    exact = case.gradients("direct", method="dopri8", rtol=1e-11, atol=1e-11)
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        got = case.gradients("adjoint", rtol=tolerance, atol=tolerance)
        errors.append(max(differences(got, exact).values()))
    assert errors[2] < 1e-5
    assert errors[2] < 0.1 * errors[1] < 0.01 * errors[0]


@pytest.mark.parametrize("method", ["rk4", "dopri5", "heun3"])
def test_the_error_falls_with_fixed_steps(method):
    case = Everything(TIMES)
    exact = case.gradients("direct", method="dopri8", rtol=1e-11, atol=1e-11)
    errors = [
        max(differences(case.gradients("adjoint", method=method, n_steps=n), exact).values())
        for n in (20, 40)
    ]
    assert errors[1] < errors[0] * 2.0 ** -(METHODS[method].order - 0.6)


def test_losses_at_intermediate_times_are_counted():
    case = Everything(TIMES)
    exact = case.solve("direct", method="dopri8", rtol=1e-8, atol=1e-8).ys
    ys = case.solve("adjoint", method="dopri8", rtol=1e-8, atol=1e-8).ys
    for i in range(len(TIMES)):
        losses = [lambda ys, i=i: ys["z"][i].sum(), lambda ys, i=i: 2 * ys["l"][i].sum()]
        for loss in losses:
            got, want = (
                dict(zip(case.inputs, torch.autograd.grad(
                    loss(out), list(case.inputs.values()), retain_graph=True, allow_unused=True), strict=True,
                ))
                for out in (ys, exact)
            )  # fmt: skip
            assert max(differences(got, want).values()) < 1e-4


def mlp():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    return (lambda t, y: net(y) * torch.cos(5 * t)), net


def backward_of(settings, times=(0.0, 3.0), **options):
    f, net = mlp()
    y0 = torch.ones(4, 3, dtype=DOUBLE, requires_grad=True)
    sol = solve(f, y0, list(times), gradient=settings, **options)
    (10 * sol.ys[1:].pow(2).sum()).backward()
    return sol.stats, torch.cat([p.grad.reshape(-1) for p in net.parameters()])


def test_the_semi_norm_takes_no_more_evaluations():
    options = {"rtol": 1e-5, "atol": 1e-7}
    full, full_grad = backward_of(Adjoint(), **options)
    semi, semi_grad = backward_of(Adjoint(norm="semi"), **options)
    assert semi.nfe_backward < full.nfe_backward
    assert semi.accepted_backward <= full.accepted_backward
    torch.testing.assert_close(full_grad, semi_grad, rtol=1e-2, atol=1e-3 * full_grad.abs().max().item())


def test_a_norm_of_one_s_own():
    seen = []

    def norm(parts):
        seen.append([tuple(part.shape) for part in parts])
        return torch.stack([part.abs().max() for part in parts]).max()

    stats, grad = backward_of(Adjoint(norm=norm))
    assert all(shapes[:3] == [(), (4, 3), (4, 3)] for shapes in seen)
    assert all(sorted(shapes[3:]) == [(3,), (3, 16), (16,), (16, 3)] for shapes in seen)
    torch.testing.assert_close(
        grad, backward_of(Adjoint())[1], rtol=1e-1, atol=1e-2 * grad.abs().max().item()
    )
    assert stats.accepted_backward > 0


def test_its_own_tolerances():
    reference = backward_of("direct", rtol=1e-10, atol=1e-10)[1]
    scale = reference.abs().max()
    forward = {"rtol": 1e-9, "atol": 1e-9}
    same = backward_of(Adjoint(), **forward)
    loose = backward_of(Adjoint(rtol=1e-3, atol=1e-3), **forward)
    assert loose[0].nfe_backward < 0.5 * same[0].nfe_backward
    assert loose[0].nfe == same[0].nfe
    assert (same[1] - reference).abs().max() < 1e-6 * scale
    assert 1e-6 * scale < (loose[1] - reference).abs().max() < 1e-1 * scale
    only_rtol = backward_of(Adjoint(rtol=1e-3), **forward)
    assert loose[0].nfe_backward < only_rtol[0].nfe_backward < same[0].nfe_backward


def test_tolerances_per_component():
    atol = torch.full((4, 3), 1e-9, dtype=DOUBLE)
    uniform = backward_of(Adjoint(), rtol=1e-6, atol=1e-9)
    spread = backward_of(Adjoint(), rtol=1e-6, atol=atol)
    assert uniform[0] == spread[0]
    torch.testing.assert_close(uniform[1], spread[1], rtol=1e-10, atol=1e-12)
    own = backward_of(Adjoint(atol=atol), rtol=1e-6, atol=1e-3)
    assert own[0].nfe_backward > backward_of(Adjoint(), rtol=1e-6, atol=1e-3)[0].nfe_backward


def test_its_own_method_and_control():
    reference = backward_of("direct", rtol=1e-10, atol=1e-10)[1]
    forward = {"rtol": 1e-8, "atol": 1e-8}
    other = backward_of(Adjoint(method=METHODS["dopri8"]), **forward)
    assert other[0].nfe_backward != backward_of(Adjoint(), **forward)[0].nfe_backward
    torch.testing.assert_close(other[1], reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())
    fixed = backward_of(Adjoint(control=FixedSteps(n_steps=100)), **forward)
    assert fixed[0].accepted_backward == 100
    torch.testing.assert_close(fixed[1], reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())
    adaptive = backward_of(
        Adjoint(control=Adaptive(rtol=1e-7, atol=1e-7), method=METHODS["dopri5"]), method="rk4", n_steps=200
    )
    assert adaptive[0].rejected_backward + adaptive[0].accepted_backward > 3
    torch.testing.assert_close(adaptive[1], reference, rtol=1e-3, atol=1e-4 * reference.abs().max().item())
    spans = []

    def control(start, end):
        spans.append((start, end))
        return FixedSteps(n_steps=40)

    stretches = backward_of(Adjoint(control=control), (0.0, 1.0, 3.0), **forward)
    assert spans == [(3.0, 1.0), (1.0, 0.0)]
    assert stretches[0].accepted_backward == 80


def test_fixed_steps_go_back_over_the_grid_they_came():
    f, _ = mlp()
    counter = Counter(f)
    sol = solve(
        counter, torch.ones(4, 3, dtype=DOUBLE, requires_grad=True), [0.0, 1.0], gradient="adjoint", method="rk4",
        grid=[0.0, 0.25, 0.75, 1.0],
    )  # fmt: skip
    counter.seen.clear()
    sol.ys[-1].sum().backward()
    assert sol.stats.accepted_backward == 3
    assert {t for t, _ in counter.seen} >= {1.0, 0.75, 0.25, 0.0}


def test_a_watcher_sees_the_backward_trials():
    events = []
    stats, _ = backward_of(Adjoint(watch=lambda event, t0, y, dt: events.append((event, t0, dt))))
    names = [name for name, *_ in events]
    assert names.count("accepted") == stats.accepted_backward
    assert names.count("rejected") == stats.rejected_backward
    assert names.count("trial") == stats.accepted_backward + stats.rejected_backward
    assert all(dt < 0 for _, _, dt in events)
    assert events[0][1] == 3.0


def test_backward_steps_and_evaluations_are_counted():
    f, net = mlp()
    counter = Counter(f)
    y0 = torch.ones(4, 3, dtype=DOUBLE, requires_grad=True)
    sol = solve(counter, y0, [0.0, 1.0, 3.0], gradient="adjoint")
    forward = (sol.stats.nfe, sol.stats.accepted, sol.stats.rejected)
    assert (sol.stats.accepted_backward, sol.stats.rejected_backward) == (0, 0)
    counter.calls = 0
    sol.ys.sum().backward()
    stats = sol.stats
    assert stats.nfe_backward == counter.calls
    assert stats.accepted_backward > 1
    trials = stats.accepted_backward + stats.rejected_backward
    # dopri5; two stretches, the first step size of one, and whether f is what it was
    assert stats.nfe_backward == 6 * trials + 2 * 1 + 1 + 2
    assert (stats.nfe, stats.accepted, stats.rejected) == forward
    assert next(net.parameters()).grad is not None


def test_a_failing_backward_pass_says_so():
    """Backwards in time y' = -50 (y - cos t) grows like exp(50 t)."""
    k = torch.tensor(50.0, requires_grad=True)
    sol = solve(
        lambda t, y: -k * (y - torch.cos(t)), torch.ones(1), [0.0, 5.0], gradient="adjoint", max_steps=400
    )
    with pytest.raises(SolverError, match="in the backward pass") as caught:
        sol.ys[-1].sum().backward()
    assert caught.value.backward
    assert sol.stats.accepted_backward > 0
    assert sol.stats.nfe_backward > 0


def test_a_failing_forward_pass_does_not():
    with pytest.raises(SolverError, match="in the forward pass") as caught:
        solve(lambda t, y: y * y, torch.ones(1, requires_grad=True), [0.0, 2.0], gradient="adjoint")
    assert not caught.value.backward


@pytest.mark.parametrize("call", ["backward", "grad"])
def test_second_derivatives_are_refused_in_words(call):
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    ys = solve(
        lambda t, y: -w * y * y, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], gradient="adjoint", rtol=1e-6
    ).ys
    plain = torch.autograd.grad(ys[-1].sum(), w, retain_graph=True)[0]
    (first,) = torch.autograd.grad(ys[-1].sum(), w, create_graph=True)
    torch.testing.assert_close(first.detach(), plain)
    torch.testing.assert_close(first.item(), -1 / 1.5**2, rtol=1e-4, atol=0)
    total = first.pow(2) + w.sin()
    differentiate = {"backward": total.backward, "grad": lambda: torch.autograd.grad(total, w)}
    with pytest.raises(NotImplementedError, match="gradient='aca'"):
        differentiate[call]()


def test_second_derivatives_with_respect_to_the_cotangent_are_refused_too():
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    v = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    ys = solve(lambda t, y: -w * y * y, torch.ones(1, dtype=DOUBLE), [0.0, 1.0], gradient="adjoint").ys
    (first,) = torch.autograd.grad(ys[-1], w, v, create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient='aca'"):
        (first * v).sum().backward()


def test_dense_output_can_be_read_but_not_differentiated():
    w = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    sol = solve(
        lambda t, y: -w * y,
        torch.ones(1, dtype=DOUBLE),
        [0.0, 1.0],
        gradient="adjoint",
        dense=True,
        rtol=1e-6,
    )
    at = sol(torch.tensor([0.3, 0.5], dtype=DOUBLE))
    torch.testing.assert_close(
        at[:, 0], torch.exp(torch.tensor([-0.15, -0.25], dtype=DOUBLE)), rtol=1e-5, atol=0
    )
    with pytest.raises(NotImplementedError, match="gradient='aca'"):
        at.sum().backward()
    sol.ys[-1].sum().backward()
    assert w.grad is not None


FIXED = {"method": "rk4", "n_steps": 2}


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        (Adjoint(rtol=1e-3), FIXED, r"Adjoint\(rtol=\) has no effect on fixed steps.*control=Adaptive"),
        (Adjoint(atol=1e-3), FIXED, r"Adjoint\(atol=\) has no effect on fixed steps"),
        (Adjoint(norm="semi"), FIXED, r"Adjoint\(norm=\) has no effect on fixed steps"),
        (Adjoint(rtol=1e-3, control=FixedSteps(n_steps=2)), {}, "no effect on fixed steps"),
        (Adjoint(method=METHODS["rk4"]), {}, r"rk4 has no error estimate.*control=FixedSteps"),
        (Adjoint(control=Adaptive()), FIXED, r"rk4 has no error estimate.*adaptive method"),
        (Adjoint(rtol=-1.0), {}, "rtol must not be negative"),
        (Adjoint(atol=torch.ones(2)), {}, r"atol of shape \(2,\) does not broadcast"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_door(settings, options, words):
    y0 = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=words):
        solve(lambda t, y: -y, y0, [0.0, 1.0], gradient=settings, **options)


def test_settings_of_another_kind_are_refused():
    for norm in ("seminorm", 3):
        with pytest.raises(ValueError, match="unknown norm"):
            Adjoint(norm=norm)
    with pytest.raises(TypeError, match=r"method=.*METHODS\['dopri8'\], got 'rk4'"):
        Adjoint(method="rk4")
    with pytest.raises(TypeError, match=r"control=.*Adaptive\(...\).*got 0.1"):
        Adjoint(control=0.1)


def test_jumps_are_met_on_the_way_back():
    k = torch.tensor([1.0, -2.0], dtype=DOUBLE, requires_grad=True)
    f = Counter(lambda t, y: torch.where(t < 0.4, k[0], k[1]) * y)
    t = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    options = {"jump_ts": torch.tensor([0.4], dtype=DOUBLE), "rtol": 1e-8, "atol": 1e-10}
    sol = solve(f, torch.ones(1, dtype=DOUBLE), t, gradient="adjoint", **options)
    (g,) = torch.autograd.grad(sol.ys[-1].sum(), k)
    y1 = torch.exp(torch.tensor(0.4 - 2 * 0.6, dtype=DOUBLE))
    torch.testing.assert_close(g, torch.stack([0.4 * y1, 0.6 * y1]), rtol=1e-6, atol=0)
    assert sol.stats.rejected_backward <= 1
    assert 0.4 not in {t for t, _ in f.seen}


def test_a_state_that_does_not_depend_on_the_parameter_at_first():
    k = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    case = {"y0": torch.ones(1, dtype=DOUBLE, requires_grad=True), "k": k}
    ys = solve(lambda t, y: k * torch.zeros_like(y), case["y0"], [0.0, 0.5, 1.0], gradient="adjoint").ys
    grads = gradients_of(ys, case, lambda ys: ys.sum())
    assert grads["y0"].item() == 3.0
    assert grads["k"].item() == 0.0


def test_the_object_takes_the_name_s_defaults():
    case = Everything(TIMES)
    one, two = (case.gradients(g, rtol=1e-4) for g in ("adjoint", torchaca.Adjoint()))
    assert max(differences(one, two).values()) == 0.0
    assert torch.isfinite(loss_of(case.solve("adjoint").ys))


def test_a_segment_starts_with_the_size_that_the_steps_had_grown_to():
    """Between outputs that lie closer than the steps are long, one step each; the first few have to grow."""
    k = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    times = torch.linspace(0, 1, 41, dtype=DOUBLE)
    sol = solve(lambda t, y: -k * y, torch.ones(2, dtype=DOUBLE), times, gradient="adjoint", dt0=1e-3)
    sol.ys.sum().backward()
    assert 40 <= sol.stats.accepted_backward <= 44
    assert sol.stats.rejected_backward == 0
