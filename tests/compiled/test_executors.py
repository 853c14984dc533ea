"""What every executor promises, over the table of them: the same costs, words and refusals; one way back."""

import contextlib
import re
import warnings

import pytest
import torch
from compiled_helpers import Net, loss_of
from covering import pairs
from torch import nn
from torch._C import _autograd
from torch._C._functorch import _grad_increment_nesting, _vmap_increment_nesting

from torchaca import ACA, executors, solve
from torchaca.compiled import compiler
from torchaca.compiled.door import CUDA_GRAPHS
from torchaca.compiled.failure import Modes
from torchaca.executors import EXECUTORS
from torchaca.field import dynamics
from torchaca.field import inputs as params
from torchaca.gradients.replay import IN_PLACE
from torchaca.native import programs

OTHERS = [mode for mode in EXECUTORS if mode]  # beside the eager loop
DOUBLE = torch.float64
over_executors = pytest.mark.parametrize("mode", OTHERS)


@pytest.fixture(autouse=True)
def anywhere(interpreted, monkeypatch):
    """Every executor on the CPU, and no compiler."""
    plain = executors.refuse_steps
    monkeypatch.setattr(compiler, "replayed", lambda step: compiler.compiled(step, forward=True))
    monkeypatch.setattr(
        executors, "refuse_steps", lambda *args: None if CUDA_GRAPHS in args else plain(*args)
    )


def solved(f, mode, y0=None, t=(0.0, 0.3, 1.0), wrt=(), context=contextlib.nullcontext, **options):
    """Outputs and gradients (or the error), costs, and what was warned of.

    Steps are replayed by default, here as there: the default of `checkpoints` keeps graphs in the eager loop alone.
    """
    options = {"gradient": ACA(checkpoints="all"), **options}
    torch.manual_seed(3)
    y0 = torch.ones(3, 2, dtype=DOUBLE) if y0 is None else y0
    y0 = y0.detach().clone().requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in (DeprecationWarning, FutureWarning):  # PyTorch's, of itself
            warnings.simplefilter("ignore", kind)
        try:
            with context():
                sol = solve(f, y0, list(t), compile=mode, **options)
            wanted = (y0, *wrt) if sol.ys.requires_grad else ()
            grads = torch.autograd.grad(loss_of(sol.ys), wanted, allow_unused=True) if wanted else ()
            grads = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)]
            found = [sol.ys, *grads], sol.stats
        except (RuntimeError, ValueError, TypeError) as error:
            found = type(error), str(error)
    said = [str(w.message) for w in caught]
    return found, [x for x in said if "compile=" not in x], [x for x in said if "compile=" in x]


def assert_as_eager(f, mode, wrt=(), tolerance=1e-12, **options):
    """Returns what was said about the compiler."""
    want, words, _ = solved(f, False, wrt=wrt, **options)
    got, said, about = solved(f, mode, wrt=wrt, **options)
    assert said == words
    if isinstance(want[0], type):
        assert got == want
    else:
        torch.testing.assert_close(got[0], want[0], rtol=tolerance, atol=tolerance)
        assert got[1] == want[1]
    return about


HALF = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
PRECISIONS = {
    "autocast": HALF,
    "widened": lambda y: HALF(y).float(),
    "by hand": lambda y: (y.bfloat16() * 1.01).float(),
    "detached": lambda y: HALF(y).float().detach() + HALF(y),
    "not differentiated": lambda y: y * (y > 0).bfloat16().float(),
    "a half weight": lambda y: y * HALF[2].bias.detach().bfloat16().float(),
}


@pytest.mark.parametrize(("mode", "kind"), pairs(OTHERS, PRECISIONS))
def test_tolerances_below_the_precision_of_f_are_raised(mode, kind):
    computed, half = PRECISIONS[kind], kind in ("autocast", "widened", "detached")

    def f(t, y):
        return -computed(y)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()

    options = {"y0": torch.ones(3, 2), "context": autocast, "rtol": 1e-5, "atol": 1e-5, "tolerance": 0.1}
    options["at_rest"] = (
        "ignore"  # f's own rounding decides whether an error is zero, and with that who is probed
    )
    about = assert_as_eager(f, mode, **options)
    assert not about or re.search(r"autocast is on|has bfloat16 numbers", about[0])
    _, words, _ = solved(f, mode, **{k: v for k, v in options.items() if k != "tolerance"})
    assert len(words) == (half or kind == "by hand")


@over_executors
def test_all_pass_through_one_preamble(mode, monkeypatch):
    own = vars(executors)
    seen, plain = [], own["prepared"]
    monkeypatch.setitem(own, "prepared", lambda *args: seen.append(args[0]) or plain(*args))
    f = Net()
    assert not solved(f, mode)[2]
    (problem,) = seen
    assert problem.f0 is not None
    assert problem.stats.nfe > 1


@over_executors
@pytest.mark.parametrize("options", [{}, {"method": "rk4", "n_steps": 3}], ids=["adaptive", "fixed"])
def test_what_is_sharded_inside_is_refused(mode, options, monkeypatch):
    def note(self, inside):
        self.gathered = "f.weight"

    monkeypatch.setattr(dynamics.Dynamics, "note_precision", note)
    monkeypatch.setattr(params, "gathered_inside", lambda *args: "f.weight")
    assert not assert_as_eager(lambda t, y: -y, mode, **options)
    kind, message = solved(lambda t, y: -y, mode, **options)[0]
    assert kind is ValueError
    assert message.startswith("f.weight is sharded")


@over_executors
@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad])
def test_noise_is_told_of(mode, context):
    def f(t, y):
        return nn.functional.dropout(-y, 0.1)

    (about,) = assert_as_eager(f, mode, context=context, rtol=1.0, atol=1.0)
    assert "draws random numbers" in about
    assert any("step control takes the noise" in x for x in solved(f, mode, rtol=1.0, atol=1.0)[1])
    numbers = torch.get_rng_state()
    solved(f, False, rtol=1.0, atol=1.0)
    assert torch.equal(torch.get_rng_state(), numbers)


@over_executors
def test_f_that_differentiates_its_state(mode):
    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)

    def f(t, y):
        with torch.enable_grad():
            x = y if y.requires_grad else y.detach().requires_grad_()
            return -torch.autograd.grad((k * x**2).sum(), x, create_graph=True)[0]

    (about,) = assert_as_eager(f, mode, (k,))
    assert "cannot be traced" in about


@over_executors
def test_f_that_writes_into_the_state(mode):
    assert_as_eager(lambda t, y: y.mul_(-0.5), mode)


@over_executors
def test_weights_changed_before_the_backward_pass(mode):
    f = Net()
    ys = solve(f, torch.ones(3, 2, dtype=DOUBLE), [0.0, 1.0], compile=mode).ys
    with torch.no_grad():
        next(f.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as error:
        loss_of(ys).backward()
    assert str(error.value).startswith(IN_PLACE)


# --- what f's graph says of gradients is what f says ---


class Straight(torch.autograd.Function):
    """Rounds; its derivative is that of not rounding."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, g):
        return g


WEIGHT = torch.randn(2, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)).requires_grad_()


def scaled_by_a_constant(t, y):
    with torch.no_grad():
        scale = y.norm()
    return -torch.tanh(y @ WEIGHT) * scale


def in_part_without_gradient(t, y):
    with torch.no_grad():
        z = y @ WEIGHT
        with torch.enable_grad():
            k = torch.tanh(y @ WEIGHT)
    return z - 3 * k


@torch.no_grad()
def without_gradient(t, y):
    return -y @ WEIGHT


def straight(t, y):
    return Straight.apply(y @ WEIGHT) - y


PARTS = [scaled_by_a_constant, in_part_without_gradient, without_gradient, straight]


@pytest.mark.parametrize(("mode", "f"), pairs(OTHERS, PARTS))
def test_what_f_takes_out_of_autograd_stays_out(f, mode):
    for options in ({}, {"gradient": "direct"}, {"context": torch.no_grad}):
        assert_as_eager(f, mode, (WEIGHT,), method="bosh3", rtol=0.1, **options)


# --- one way back ---


def energy(y):
    return torch.tanh(y @ WEIGHT).square().sum()


def branching(t, y):
    return -y if y.sum() > 0 else y


def modal(t, y):
    with torch.inference_mode():
        scale = y.norm()
    return -y @ WEIGHT * scale.clone()


UNTRACEABLE = {
    "vjp": lambda t, y: torch.func.vjp(lambda z: torch.tanh(z @ WEIGHT), y)[1](y)[0],
    "grad": lambda t, y: torch.func.grad(energy)(y),
    "vmap grad": lambda t, y: torch.func.vmap(torch.func.grad(energy))(y),
    "jacrev": lambda t, y: torch.func.vmap(torch.func.jacrev(lambda z: torch.tanh(z @ WEIGHT)))(y).sum(1),
    "jvp": lambda t, y: torch.func.jvp(lambda z: torch.tanh(z @ WEIGHT), (y,), (y,))[1],
    "jvp of grad": lambda t, y: torch.func.jvp(torch.func.grad(energy), (y,), (y,))[1],
    "branch": branching,
    "inference mode": modal,
}
COMPILED = [mode for mode in OTHERS if mode != CUDA_GRAPHS]
REVERSE = {"vjp", "grad", "jacrev", "vmap grad"}  # are translated to C
LONG = {"jacrev", "jvp of grad", "vmap grad"}  # to trace


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *pairs([kind for kind in UNTRACEABLE if kind not in LONG], COMPILED),
        *(pytest.param(kind, mode, marks=pytest.mark.slow) for kind in sorted(LONG) for mode in COMPILED),
    ],
)
def test_what_cannot_be_compiled_is_solved_after_one_warning(kind, mode):
    f, modes = UNTRACEABLE[kind], Modes.now()
    for options in (
        {},
        {"gradient": "direct"},
        {"context": torch.no_grad},
        {"context": torch.inference_mode},
    ):
        found = assert_as_eager(f, mode, (WEIGHT,), t=(0.0, 0.1), **options)
        assert Modes.now() == modes
        if mode == "native" and kind in REVERSE:
            assert not found
            continue
        (about,) = found
        assert about.startswith(f"compile={mode!r}: f ")
        assert about.endswith("in the eager loop")


def broken(*args):
    """Fails in the middle of everything, as PyTorch's compiler may."""
    torch.rand(3)
    _grad_increment_nesting()
    _vmap_increment_nesting(3, "error")
    _autograd._saved_tensors_hooks_disable("a compiler has left this")
    torch.set_grad_enabled(not torch.is_grad_enabled())
    torch.set_autocast_enabled("cpu", True)
    raise RuntimeError("the compiler's own words")


def bad_backward(function):
    """The function with a backward pass that cannot be compiled, which nobody knows before it is."""

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return broken()

    return lambda *args: [Bad.apply(x) for x in function(*args)]


@pytest.mark.parametrize(
    ("gradient", "mode"),
    [
        pytest.param(
            gradient, mode, marks=[pytest.mark.slow] if (gradient, mode) == ("direct", "loops") else []
        )
        for gradient in (ACA(checkpoints="all"), "direct")
        for mode in COMPILED
    ],
)
@pytest.mark.parametrize("failing", ["forward", "backward", "late backward"])
def test_a_compiler_that_fails_leaves_nothing_behind(failing, gradient, mode, monkeypatch):
    plain = compiler.compiled

    def compiled(function, *, forward):
        if failing == "late backward" and mode != "loops":
            return plain(function, forward=forward) if forward else bad_backward(function)
        return broken if forward == (failing == "forward") else plain(function, forward=forward)

    def translate(graph, name, *others):
        return broken() if (name == "value") == (failing == "forward") else translated(graph, name, *others)

    translated = programs.translate
    monkeypatch.setattr(programs, "translate", translate)
    monkeypatch.setattr(compiler, "compiled", compiled)
    f, modes, hooked = Net(), Modes.now(), []
    next(f.parameters()).register_hook(hooked.append)
    for _ in range(2):  # the second time it is remembered
        own = ACA(checkpoints="all") if gradient == "aca" else gradient
        about = assert_as_eager(f, mode, tuple(f.parameters()), gradient=own, method="bosh3", rtol=0.1)
        assert len(about) == 1 or (failing, gradient, mode) == ("forward", "direct", "steps")
        assert all("the compiler's own words" in x for x in about)
        assert Modes.now() == modes
    assert len(hooked) == 4


@pytest.mark.parametrize("mode", COMPILED)
def test_tolerances_are_told_of_once_where_the_compiler_fails(mode, monkeypatch):
    monkeypatch.setattr(compiler, "compiled", lambda function, *, forward: broken)
    monkeypatch.setattr(programs, "translate", broken)
    options = {"y0": torch.ones(3, 2), "rtol": 1e-5, "atol": 1e-5}
    (about,) = assert_as_eager(lambda t, y: (y.bfloat16() * 1.01).float(), mode, **options)
    assert "the compiler's own words" in about


@pytest.mark.parametrize("gradient", ["aca", pytest.param("direct", marks=pytest.mark.slow)])
def test_a_compiled_solve_multiplies_no_matrices(gradient):
    """Which would have ten bits on a GPU under `torch.set_float32_matmul_precision("high")`."""
    options = {"y0": torch.ones(3, 2), "t": (0.0, 0.1, 0.2, 0.35, 1.0), "gradient": gradient}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _, _, about = solved(lambda t, y: -y * t, True, **options)
    assert not about
    products = {"aten::mm", "aten::mv", "aten::bmm", "aten::addmm", "aten::dot"}
    assert [e.name for e in profile.events() if e.name in products] == []
