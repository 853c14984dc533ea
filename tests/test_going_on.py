"""Going on where a solve ended: the bits of one solve that lands there, its gradients, and states that are kept."""

import copy
import io
import pickle

import pytest
import torch
from gradient_cases import ADAPTIVE, DOUBLE, assert_same, gradients_of
from gradients.settings import EVERY
from torch.autograd import gradcheck, gradgradcheck

import torchaca as aca
from torchaca import ACA, METHODS, Adaptive, solve

FIXED = sorted(set(METHODS) - set(ADAPTIVE))
CARRYING = [name for name, method in METHODS.items() if hasattr(method, "resume")]
Y0 = torch.tensor([1.0, -0.5, 0.25], dtype=DOUBLE)
END = 2.0
MIDDLE = 0.7


def pull(t, y):
    return torch.stack([y[1] * torch.cos(2 * t), y[2] - y[0] * y[1], -y[2] + torch.sin(3 * t) * y[0]])


def autonomous(t, y):
    return torch.stack([y[1], y[2] - y[0] * y[1], -y[2] + y[0]])


def bits(x):
    return [x.view(torch.int64).tolist() if x.numel() else []]


def same(a, b):
    assert bits(a) == bits(b)


# --- bits ---


@pytest.mark.parametrize("times", [(0.0, MIDDLE, END), (END, MIDDLE, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_two_solves_are_one_that_lands_between_them(method, times):
    t0, t1, t2 = times
    settings = {"rtol": 1e-4, "atol": 1e-5}
    whole = solve(pull, Y0, [t0, t1, t2], method=method, control=Adaptive(**settings, stop_ts=(t1,)))
    first = solve(pull, Y0, [t0, t1], method=method, **settings)
    then = solve(pull, first.state, [t1, t2], method=method, **settings)
    same(first.ys[-1], whole.ys[1])
    same(then.ys[-1], whole.ys[2])
    assert (*first.steps, *then.steps[1:]) == whole.steps
    assert (then.stats.accepted, then.stats.rejected) == (whole.stats.accepted, whole.stats.rejected)
    assert then.state.dt == whole.state.dt


@pytest.mark.parametrize("pid", [aca.PI_CONTROL, aca.PID_CONTROL])
def test_the_controller_remembers_its_error_ratios(pid):
    settings = {"rtol": 1e-5, "atol": 1e-7, "pid": pid}
    whole = solve(pull, Y0, [0.0, END], control=Adaptive(**settings, stop_ts=(MIDDLE,)))
    first = solve(pull, Y0, [0.0, MIDDLE], control=Adaptive(**settings))
    then = solve(pull, first.state, [MIDDLE, END], control=Adaptive(**settings))
    assert len(first.state.ratios) == 2
    same(then.ys[-1], whole.ys[-1])
    anew = solve(pull, first.state.y, [MIDDLE, END], control=Adaptive(**settings))
    assert anew.steps != then.steps


@pytest.mark.parametrize("method", [name for name in ADAPTIVE if name not in CARRYING])
def test_two_solves_are_one_with_a_jump_where_f_does_not_jump(method):
    options = {"method": method, "rtol": 1e-4, "atol": 1e-5}
    whole = solve(autonomous, Y0, [0.0, MIDDLE, END], jump_ts=[MIDDLE], **options)
    first = solve(autonomous, Y0, [0.0, MIDDLE], **options)
    then = solve(autonomous, first.state, [MIDDLE, END], **options)
    same(then.ys[-1], whole.ys[-1])
    assert then.stats == whole.stats  # a jump evaluates f anew as well


@pytest.mark.parametrize("steps", [{"dt": 0.1}, {"n_steps": 7}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_fixed_steps_go_on_in_their_grid(method, steps):
    count = {"n_steps": 20} if "n_steps" in steps else steps
    whole = solve(pull, Y0, [0.0, END], method=method, **count)
    first = solve(pull, Y0, [0.0, whole.steps[7]], method=method, **steps)
    rest = {"n_steps": 13} if "n_steps" in steps else steps
    then = solve(pull, first.state, [first.state.t, END], method=method, **rest)
    if "dt" in steps:  # seven times 0.7 / 7 is not the same to the last digit
        assert (*first.steps, *then.steps[1:]) == whole.steps
        same(then.ys[-1], whole.ys[-1])
    torch.testing.assert_close(then.ys[-1], whole.ys[-1], rtol=1e-13, atol=1e-13)


def test_fixed_steps_after_a_shorter_one_are_counted_from_there():
    first = solve(pull, Y0, [0.0, 0.95], method="rk4", dt=0.1)
    then = solve(pull, first.state, [0.95, 1.5], method="rk4", dt=0.1)
    last = solve(pull, then.state, [1.5, 2.0], method="rk4", dt=0.1)
    assert then.steps == solve(pull, first.state.y, [0.95, 1.5], method="rk4", dt=0.1).steps
    assert last.steps == solve(pull, then.state.y, [1.5, 2.0], method="rk4", dt=0.1).steps


def test_the_size_of_the_next_step_is_the_one_before_the_end_cut_it():
    free = solve(autonomous, Y0, [0.0, END])
    n = len(free.steps) // 2
    cut = free.steps[n] + 1e-3 * (free.steps[n + 1] - free.steps[n])
    state = solve(autonomous, Y0, [0.0, cut]).state
    assert state.dt == pytest.approx(free.steps[n + 1] - free.steps[n], rel=1e-6)


def test_nothing_is_solved_between_equal_times_and_nothing_is_lost():
    state = solve(pull, Y0, [0.0, MIDDLE], method="alf").state
    still = solve(pull, state, [MIDDLE, MIDDLE], method="alf").state
    assert (still.dt, still.ratios, still.stats) == (state.dt, state.ratios, state.stats)
    same(still.carry, state.carry)


def test_nested_states_and_arguments():
    def f(t, y, k):
        return {"a": -k * y["a"], "b": (y["a"].sum() - y["b"][0],)}

    y0 = {"a": torch.ones(2, dtype=DOUBLE), "b": (torch.zeros(1),)}
    k = torch.tensor(0.7, dtype=DOUBLE)
    whole = solve(f, y0, [0.0, END], args=(k,), control=Adaptive(stop_ts=(MIDDLE,)))
    state = solve(f, y0, [0.0, MIDDLE], args=(k,)).state
    then = solve(f, state, [MIDDLE, END], args=(k,))
    same(then.ys["a"][-1], whole.ys["a"][-1])
    assert state.y["b"][0].dtype == torch.float32


def at_rest(t, y):
    return -20 * (y - 1)


def test_what_is_known_of_f_at_rest_goes_on():
    first = solve(at_rest, torch.ones(3, dtype=DOUBLE), [0.0, 1.0])
    assert first.state.before is not None
    assert first.state.direction is not None
    then = solve(at_rest, first.state, [1.0, 3.0])
    # The bound |J| theta of a step is kept, although the step before it had no error.
    assert max(b - a for a, b in zip(then.steps, then.steps[1:])) < 0.5
    assert then.state.steepness >= 0.7 * first.state.steepness > 1


# --- gradients ---

PAIRS = [
    (gradient, method)
    for gradient, settings in EVERY.items()
    for method in ("dopri5", "alf", "reversible_heun")
    if method == "dopri5" or gradient != "aca-grad-rtol"  # which is for methods of a higher order
    if method != "dopri5" or settings.name != "mali"
]


class Windows:
    """The solution at two ends, as a function of everything: in one solve that lands between, and in two."""

    def __init__(self, gradient, method, **settings):
        self.gradient, self.method = EVERY[gradient], method
        self.settings = {"rtol": 1e-3, "atol": 1e-5, **settings}
        generator = torch.Generator().manual_seed(3)
        self.inputs = {
            "y0": Y0.clone().requires_grad_(),
            "w": torch.randn(3, 3, generator=generator, dtype=DOUBLE).requires_grad_(),
            "k": torch.tensor(0.5, dtype=DOUBLE, requires_grad=True),
        }

    def options(self):
        return {"gradient": self.gradient, "method": self.method, "args": (self.inputs["k"],)}

    def f(self, t, y, k):
        return torch.tanh(self.inputs["w"] @ y) * torch.cos(t) - k * y

    def whole(self):
        control = Adaptive(**self.settings, stop_ts=(MIDDLE,))
        return solve(self.f, self.inputs["y0"], [0.0, MIDDLE, 1.5], control=control, **self.options()).ys[1:]

    def windows(self):
        first = solve(self.f, self.inputs["y0"], [0.0, MIDDLE], **self.settings, **self.options())
        then = solve(self.f, first.state, [MIDDLE, 1.5], **self.settings, **self.options())
        return torch.stack([first.ys[-1], then.ys[-1]])


@pytest.mark.parametrize(("gradient", "method"), PAIRS)
def test_gradients_go_through_the_state(gradient, method):
    case = Windows(gradient, method)
    loose = gradient in ("adjoint", "aca-grad-rtol")  # right up to a tolerance
    if loose:
        case.settings = {"rtol": 1e-4, "atol": 1e-6}
    tolerance = 3e-2 if loose else 1e-11
    want, got = case.whole(), case.windows()
    assert_same(gradients_of(got, case.inputs), gradients_of(want, case.inputs), tolerance)


@pytest.mark.parametrize("method", ["dopri5", "alf"])
def test_second_derivatives_go_through_the_state(method):
    def ends(y0):
        options = {"method": method, "n_steps": 2, "gradient": ACA(checkpoints="all")}
        first = solve(pull, y0, [0.0, 0.4], **options)
        return solve(pull, first.state, [0.4, 0.8], **options).ys[-1]

    assert gradcheck(ends, Y0.clone().requires_grad_())
    assert gradgradcheck(ends, Y0.clone().requires_grad_())


@pytest.mark.parametrize("method", ["dopri5", "alf"])
def test_a_detached_state_ends_the_graph(method):
    y0 = Y0.clone().requires_grad_()
    state = solve(pull, y0, [0.0, MIDDLE], method=method).state
    assert state.y.requires_grad
    assert not solve(pull, state.detach(), [MIDDLE, END], method=method).ys.requires_grad


def test_what_the_adjoint_carries_has_no_derivative_elsewhere():
    y0 = Y0.clone().requires_grad_()
    state = solve(pull, y0, [0.0, MIDDLE], method="alf", gradient="adjoint").state
    ends = solve(pull, state, [MIDDLE, END], method="alf", gradient="direct").ys[-1]
    with pytest.raises(NotImplementedError, match=r"'alf' carries .* no derivative with gradient='adjoint'"):
        ends.sum().backward()


# --- states that are kept ---


def through_torch(state):
    file = io.BytesIO()
    torch.save({"epoch": 3, "ode": state}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["ode"]


KEPT = {
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "torch.save": through_torch,
    "deepcopy": copy.deepcopy,
    "detach": lambda state: state.detach(),
}


@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("method", ["dopri5", "alf"])
def test_a_state_that_was_kept_goes_on_as_the_original(method, keep):
    y0 = Y0.clone().requires_grad_()
    state = solve(pull, y0, [0.0, MIDDLE], method=method, gradient="naive").state
    kept = keep(state)
    assert not kept.y.requires_grad
    assert state.y.requires_grad
    same(
        solve(pull, kept, [MIDDLE, END], method=method).ys[-1],
        solve(pull, state, [MIDDLE, END], method=method).ys[-1].detach(),
    )


def test_a_saved_state_holds_itself_and_not_all_outputs():
    sol = solve(lambda t, y: -y, torch.ones(1000), torch.linspace(0, 1, 50))
    assert len(pickle.dumps(sol.state)) < 10_000


def test_a_copied_solution_has_its_state():
    sol = copy.deepcopy(solve(pull, Y0, [0.0, MIDDLE]))
    same(sol.state.y, sol.ys[-1])
    assert "t 0.7" in repr(sol.state)


# --- refusals ---


def test_the_state_of_another_method():
    state = solve(pull, Y0, [0.0, MIDDLE]).state
    with pytest.raises(ValueError, match="method 'dopri5', and this one has 'tsit5'"):
        solve(pull, state, [MIDDLE, END], method="tsit5")


def test_the_state_of_another_time():
    state = solve(pull, Y0, [0.0, MIDDLE]).state
    with pytest.raises(ValueError, match=r"t = 0\.7, and t\[0\] is 0\.8"):
        solve(pull, state, [0.8, END])


def test_a_state_with_another_y():
    from dataclasses import replace

    state = solve(pull, Y0, [0.0, MIDDLE], method="alf").state
    for other in (torch.ones(2, dtype=DOUBLE), Y0.float()):
        with pytest.raises(ValueError, match=r"of \(3,\), torch.float64 \(its carry\), and state.y is now"):
            solve(pull, replace(state, y=other), [MIDDLE, END], method="alf")


def test_a_failed_solve_has_no_state():
    sol = solve(lambda t, y: y**2, torch.ones(1, dtype=DOUBLE), [0.0, 2.0], on_failure="status")
    with pytest.raises(ValueError, match="the solve failed"):
        _ = sol.state


def test_lanes_have_no_state():
    state = solve(pull, Y0, [0.0, MIDDLE]).state

    def ends(k):
        return solve(lambda t, y: k * pull(t, y), state, [MIDDLE, END]).ys[-1]

    with pytest.raises(NotImplementedError, match="going on from the state"):
        torch.func.vmap(ends)(torch.ones(2, dtype=DOUBLE))
