"""Which tensors f depends on: wherever Python lets a function find them, their gradients arrive, or an error."""

import collections
import contextvars
import copy
import functools
import gc
import re
import threading
import types
import weakref
from dataclasses import dataclass

import pytest
import torch
from gradient_cases import ALL, DOUBLE, EXACT, FROZEN, REPLAYED, assert_same, gradients_of, others
from torch import nn

from torchaca import solve

FINDS = [name for name in ALL if name not in {"direct", "naive"}]
"""Gradients that have to be told, or to find, what f depends on."""
OPTIONS = {"method": "rk4", "n_steps": 4}
THIS = types.ModuleType("somebodys_module")


def tolerance(gradient):
    return 1e-11 if gradient in EXACT else 1e-2


class Box:
    def __init__(self, w):
        self.w = w

    def method(self, t, y):
        return -self.w * y * y

    def __call__(self, t, y):
        return self.method(t, y)

    @property
    def doubled(self):
        return 2 * self.w


class Slots:
    __slots__ = ("w",)

    def __init__(self, w):
        self.w = w

    def __call__(self, t, y):
        return -self.w * y * y


@dataclass
class Record:
    w: torch.Tensor

    def __call__(self, t, y):
        return -self.w * y * y


class Derived(Box):
    def __init__(self, w):
        super().__init__([w])

    def method(self, t, y):
        return -self.w[0] * y * y


class Module(nn.Module):
    """Holds a tensor that is no parameter under a public name."""

    def __init__(self, w):
        super().__init__()
        self.w = w if w.grad_fn is not None else nn.Parameter(w)
        if w.grad_fn is None:
            del self.w
            self.w = [w]

    def forward(self, t, y):
        return -(self.w if isinstance(self.w, torch.Tensor) else self.w[0]) * y * y


class Nested(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.layers = nn.ModuleList([Module(w)])

    def forward(self, t, y):
        return self.layers[0](t, y)


class InAList(nn.Module):
    """A list of modules that torch does not know of."""

    def __init__(self, w):
        super().__init__()
        self.blocks = [Module(w)]

    def forward(self, t, y):
        return self.blocks[0](t, y)


class Private(nn.Module):
    def __init__(self, w):
        super().__init__()
        self._w = [w]

    def forward(self, t, y):
        return -self._w[0] * y * y


class OnTheClass:
    w = None

    def __call__(self, t, y):
        return -self.w * y * y


class Mangled:
    __slots__ = ("__w",)

    def __init__(self, w):
        self.__w = w

    def __call__(self, t, y):
        return -self.__w * y * y


def in_user_dict(w):
    ws = collections.UserDict(w=w)
    return lambda t, y: -ws["w"] * y * y


def in_chain_map(w):
    ws = collections.ChainMap({}, {"w": w})
    return lambda t, y: -ws["w"] * y * y


def in_mapping_proxy(w):
    ws = types.MappingProxyType({"w": w})
    return lambda t, y: -ws["w"] * y * y


def in_context_variable(w):
    ws = contextvars.ContextVar("ws")
    ws.set(w)
    return lambda t, y: -ws.get() * y * y


def in_thread_local(w):
    ws = threading.local()
    ws.w = w
    return lambda t, y: -ws.w * y * y


def closure(w):
    return lambda t, y: -w * y * y


def deep_closure(w):
    inner = closure(w)

    def outer(t, y):
        def deeper():
            return inner(t, y)

        return deeper()

    return outer


def default_argument(w):
    return lambda t, y, w=w: -w * y * y


def keyword_default(w):
    def f(t, y, *, w=w):
        return -w * y * y

    return f


def in_list(w):
    ws = [None, [w]]
    return lambda t, y: -ws[1][0] * y * y


def in_dict(w):
    ws = {"a": {"b": w}}
    return lambda t, y: -ws["a"]["b"] * y * y


def in_tuple_and_set(w):
    ws = ((w,), {1, 2})
    return lambda t, y: -ws[0][0] * y * y


def in_object(w):
    box = Box(w)
    return lambda t, y: -box.w * y * y


def in_namespace(w):
    box = types.SimpleNamespace(w=w)
    return lambda t, y: -box.w * y * y


def in_ordered_dict(w):
    ws = collections.OrderedDict(w=w)
    return lambda t, y: -ws["w"] * y * y


def in_deque(w):
    ws = collections.deque([w])
    return lambda t, y: -ws[0] * y * y


def partial_positional(w):
    return functools.partial(lambda w, t, y: -w * y * y, w)


def partial_keyword(w):
    return functools.partial(lambda t, y, w: -w * y * y, w=w)


def bound_method(w):
    return Box(w).method


def property_of(w):
    box = Box(w)
    return lambda t, y: -box.doubled * y * y / 2


def class_attribute(w):
    OnTheClass.w = w
    return OnTheClass()


def global_variable(w):
    globals()["GLOBAL"] = w
    return lambda t, y: -GLOBAL * y * y  # noqa: F821


def global_function(w):
    globals()["GLOBAL"] = w
    return lambda t, y: uses_global(t, y)  # noqa: PLW0108


def uses_global(t, y):
    return -GLOBAL * y * y  # noqa: F821


def in_module(w):
    THIS.w = w
    globals()["THIS"] = THIS
    return lambda t, y: -THIS.w * y * y


def decorated(w):
    def decorator(function):
        @functools.wraps(function)
        def wrapper(t, y):
            return function(t, y)

        return wrapper

    return decorator(closure(w))


def function_attribute(w):
    def f(t, y):
        return -f.w * y * y

    f.w = w
    return f


PLACES = {
    f.__name__: f
    for f in (
        *(
            closure,
            deep_closure,
            default_argument,
            keyword_default,
            in_list,
            in_dict,
            in_tuple_and_set,
            in_object,
        ),
        *(
            in_namespace,
            in_ordered_dict,
            in_deque,
            partial_positional,
            partial_keyword,
            bound_method,
            property_of,
        ),
        *(in_user_dict, in_chain_map, in_mapping_proxy, in_context_variable, in_thread_local, Mangled),
        *(class_attribute, global_variable, global_function, in_module, decorated, function_attribute),
        *(Box, Slots, Record, Derived, Module, Nested, InAList, Private),
    )
}


def late(place):
    """The same f, which uses its tensor after t = 0.5 only."""

    def build(w):
        f = place(w)
        return lambda t, y: f(t, y) if t > 0.5 else -y

    return build


def gradient_of(build, gradient, history, y0_wanted=True, **options):
    root = torch.tensor([0.5, 0.8], dtype=DOUBLE, requires_grad=True)
    w = torch.sin(2 * root) if history else root
    y0 = torch.ones(2, dtype=DOUBLE, requires_grad=y0_wanted)
    ys = solve(build(w), y0, [0.0, 0.6, 1.0], gradient=gradient, **{**OPTIONS, **options}).ys
    root.grad = y0.grad = None
    ys[1:].pow(2).sum().backward()
    return {"root": root.grad, **({"y0": y0.grad} if y0_wanted else {})}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("gradient", FINDS)
def test_a_leaf_is_found_anywhere(gradient, place):
    for y0_wanted in (True, False):
        got, want = (gradient_of(place, g, False, y0_wanted) for g in (gradient, "direct"))
        assert want["root"].abs().min() > 0.1
        assert_same(got, want, tolerance(gradient))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("gradient", FINDS)
def test_a_tensor_with_a_history_is_found_anywhere(gradient, place):
    for y0_wanted in (True, False):
        got, want = (gradient_of(place, g, True, y0_wanted) for g in (gradient, "direct"))
        assert_same(got, want, tolerance(gradient))


def same_or_refused(build, gradient, history):
    """The gradient of plain backpropagation, or an error that says what to do."""
    try:
        got = gradient_of(build, gradient, history)
    except ValueError as error:
        assert "args=" in str(error)  # noqa: PT017
        return str(error)
    # An f that jumps in time costs the continuous adjoint digits.
    allowed = tolerance(gradient) if gradient in EXACT else 0.2
    assert_same(got, gradient_of(build, "direct", history), allowed)
    return ""


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("gradient", FINDS)
def test_a_leaf_that_is_first_used_later_is_found(gradient, place):
    want = gradient_of(late(place), "direct", False)
    assert want["root"].abs().min() > 0.05
    refused = same_or_refused(late(place), gradient, False)
    if gradient in EXACT:
        assert not refused


@pytest.mark.parametrize("gradient", FINDS)
def test_a_tensor_with_a_history_that_is_first_used_later_is_found_or_named(gradient):
    refused = same_or_refused(late(in_dict), gradient, True)
    if gradient == REPLAYED:
        assert re.search(r"first used .*ws.*a.*b.* in the step", refused)


# --- where nobody can look ---


def hidden(w):
    cycle = iter(lambda: w, None)
    return lambda t, y: -next(cycle) * y * y


def generated(w):
    def forever():
        while True:
            yield w

    stream = forever()
    return lambda t, y: -next(stream) * y * y


HIDDEN = {"iterator": hidden, "generator": generated}


@pytest.mark.parametrize("place", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("gradient", FINDS)
def test_a_hidden_leaf_is_found_in_the_graph(gradient, place):
    got, want = (gradient_of(place, g, False) for g in (gradient, "direct"))
    assert_same(got, want, tolerance(gradient))


@pytest.mark.parametrize("place", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("gradient", FINDS)
def test_a_hidden_tensor_with_a_history_is_an_error_at_the_door(gradient, place):
    with pytest.raises(ValueError, match=r"SinBackward.*cannot be found.*args=\(tensor, \.\.\.\)"):
        gradient_of(place, gradient, True)
    with torch.no_grad():
        solve(place(torch.ones(2, dtype=DOUBLE)), torch.ones(2, dtype=DOUBLE), [0.0, 1.0], gradient=gradient)


@pytest.mark.parametrize("history", [False, True], ids=["leaf", "history"])
@pytest.mark.parametrize("place", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("gradient", FINDS)
def test_a_hidden_tensor_that_is_first_used_later_is_not_lost(gradient, place, history):
    same_or_refused(late(place), gradient, history)


@pytest.mark.parametrize("place", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("gradient", FINDS)
def test_the_error_s_advice_works(gradient, place):
    def solved(name):
        root = torch.tensor([0.5, 0.8], dtype=DOUBLE, requires_grad=True)
        ys = solve(
            lambda t, y, w: -w * y * y if t > 0.5 else -y, torch.ones(2, dtype=DOUBLE), [0.0, 1.0],
            args=(torch.sin(root),), gradient=name, **OPTIONS,
        ).ys  # fmt: skip
        return gradients_of(ys, {"root": root})

    assert_same(solved(gradient), solved("direct"), tolerance(gradient) if gradient in EXACT else 0.2)


# --- arguments ---


@pytest.mark.parametrize("gradient", FINDS)
def test_arguments_of_any_structure(gradient):
    def solved(name):
        x = {n: torch.tensor(0.1 * i + 0.3, dtype=DOUBLE, requires_grad=True) for i, n in enumerate("abcd")}
        args = ([x["a"], {"k": (x["b"] * 2,)}], "text", 3, x["c"], x["c"], x["d"])

        def f(t, y, nested, text, number, c, again, unused):
            assert (text, number) == ("text", 3)
            return -nested[0] * y + nested[1]["k"][0] * c - again * y * y

        return gradients_of(
            solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], args=args, gradient=name, **OPTIONS).ys, x
        )

    got, want = solved(gradient), solved("direct")
    assert_same(got, want, tolerance(gradient))
    assert want["d"] is None


@pytest.mark.parametrize("gradient", FINDS)
@pytest.mark.parametrize("late_use", [False, True])
def test_a_module_as_an_argument(gradient, late_use):
    torch.manual_seed(1)
    nets = nn.ModuleDict({"early": nn.Linear(2, 2), "late": nn.Linear(2, 2)}).double()

    def f(t, y, nets):
        return nets["late" if late_use and t > 0.5 else "early"](y)

    def solved(name):
        ys = solve(f, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], args=(nets,), gradient=name, **OPTIONS).ys
        return gradients_of(ys, dict(nets.named_parameters()))

    assert_same(solved(gradient), solved("direct"), tolerance(gradient) if gradient in EXACT else 0.2)


@pytest.mark.parametrize("history", [False, True], ids=["leaf", "history"])
@pytest.mark.parametrize("gradient", FINDS)
def test_a_tensor_that_is_an_argument_and_captured(gradient, history):
    def solved(name):
        root = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
        w = root.sin() if history else root
        ys = solve(lambda t, y, a: -w * y + a.cos(), torch.ones(2, dtype=DOUBLE), [0.0, 1.0], args=(w,), gradient=name,
            **OPTIONS).ys  # fmt: skip
        return gradients_of(ys, {"root": root})

    assert_same(solved(gradient), solved("direct"), tolerance(gradient))


@pytest.mark.parametrize("history", [False, True], ids=["leaf", "history"])
@pytest.mark.parametrize("gradient", FINDS)
def test_f_that_captures_the_initial_state_and_the_times(gradient, history):
    def solved(name):
        root = torch.tensor([0.7, 0.2], dtype=DOUBLE, requires_grad=True)
        times = torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE, requires_grad=True)
        y0 = root.sin() if history else root
        ys = solve(lambda t, y: -(y - 2 * y0) * times[2], y0, times, gradient=name, **OPTIONS).ys
        return gradients_of(ys, {"root": root, "times": times})

    assert_same(solved(gradient), solved("direct"), tolerance(gradient))


# --- histories ---


@pytest.mark.parametrize("gradient", FINDS)
def test_a_hypernetwork_shares_no_gradient_twice(gradient):
    """W = h(code) and b = g(W) are used, and so is the code itself, and the layer that made W."""
    torch.manual_seed(2)
    hyper = nn.Linear(2, 4).double()

    def solved(name):
        code = torch.tensor([0.3, -0.8], dtype=DOUBLE, requires_grad=True)
        w = torch.tanh(hyper(code)).reshape(2, 2)
        b = w.sum(0).sin()

        def f(t, y):
            return y @ w + b - code * y + hyper.bias[:2] * t

        ys = solve(f, torch.ones(3, 2, dtype=DOUBLE), [0.0, 0.6, 1.0], gradient=name, **OPTIONS).ys
        return gradients_of(ys, {"code": code, **dict(hyper.named_parameters())})

    assert_same(solved(gradient), solved("direct"), tolerance(gradient))


@pytest.mark.parametrize("gradient", FINDS)
def test_histories_of_one_another(gradient):
    """A chain a -> b -> c in which every link is used, in an order that is not the chain's."""

    def solved(name):
        root = torch.tensor([0.3, 0.9], dtype=DOUBLE, requires_grad=True)
        a = root.exp()
        b = (a * root).sin()
        c = a * b
        used = [c, root, a, b]
        ys = solve(lambda t, y: sum(x * y.sin() ** i for i, x in enumerate(used)), torch.ones(2, dtype=DOUBLE),
            [0.0, 1.0], gradient=name, **OPTIONS).ys  # fmt: skip
        return gradients_of(ys, {"root": root})

    assert_same(solved(gradient), solved("direct"), tolerance(gradient))


@pytest.mark.parametrize("gradient", FINDS)
def test_parts_of_one_tensor(gradient):
    def solved(name):
        root = torch.tensor([0.3, 0.9, -0.4], dtype=DOUBLE, requires_grad=True)
        w, b, c = (root * 2).unbind()
        ys = solve(lambda t, y: torch.tanh(w * y + b) * c, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], gradient=name,
            **OPTIONS).ys  # fmt: skip
        return gradients_of(ys, {"root": root})

    assert_same(solved(gradient), solved("direct"), tolerance(gradient))


@pytest.mark.parametrize(
    "gradient",
    FINDS,
)
def test_parts_of_one_tensor_that_are_not_all_used(gradient):
    def solved(name):
        root = torch.tensor([0.3, 0.9, -0.4], dtype=DOUBLE, requires_grad=True)
        w, b, unused = (root * 2).unbind()
        ys = solve(lambda t, y: torch.tanh(w * y + b) + len(unused.shape), torch.ones(2, dtype=DOUBLE),
            [0.0, 1.0], gradient=name, **OPTIONS).ys  # fmt: skip
        return gradients_of(ys, {"root": root})

    assert_same(solved(gradient), solved("direct"), tolerance(gradient))


@pytest.mark.parametrize("gradient", FINDS)
def test_a_tensor_that_f_reaches_and_never_uses(gradient):
    root = torch.tensor([0.5, 0.8], dtype=DOUBLE, requires_grad=True)
    unused = {"leaf": torch.ones(3, requires_grad=True), "history": root.exp()}
    ys = solve(
        lambda t, y: -root * y if unused else y, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], gradient=gradient
    ).ys
    ys.sum().backward()
    assert root.grad.abs().min() > 0
    assert unused["leaf"].grad is None or not unused["leaf"].grad.any()


@pytest.mark.parametrize("gradient", FINDS)
def test_a_change_of_what_f_never_uses_is_no_error(gradient):
    """Two players in one object: the discriminator's update must not disturb the generator's backward pass."""
    players = nn.ModuleDict({"generator": nn.Linear(2, 2), "discriminator": nn.Linear(2, 1)})
    fake = solve(lambda t, y: players["generator"](y), torch.ones(1, 2), [0.0, 1.0], gradient=gradient).ys[-1]
    with torch.no_grad():
        players["discriminator"].weight.add_(1.0)
    players["discriminator"](fake).sum().backward()
    assert players["generator"].weight.grad is not None


class Notes(nn.Module):
    """f that keeps what it computed, as people do to look at it or to regularise it."""

    def __init__(self, w):
        super().__init__()
        self.w, self.notes, self.last = [w], [], None

    def forward(self, t, y):
        self.last = torch.sin(self.w[0] * y)
        out = self.last - y
        self.notes.append(out)
        return out


@pytest.mark.parametrize("history", [False, True], ids=["leaf", "history"])
@pytest.mark.parametrize("gradient", FINDS)
def test_f_that_keeps_its_results(gradient, history):
    with pytest.warns(UserWarning, match=r"f keeps f\.(last|notes\[0\])"):
        got = gradient_of(Notes, gradient, history)
    want = gradient_of(Notes, "direct", history)
    assert_same(got, want, tolerance(gradient))


@pytest.mark.parametrize(
    "gradient", others(FROZEN)
)  # the continuous adjoint replays nothing and cannot see it
def test_a_tensor_that_was_exchanged_before_backward_is_not_lost(gradient):
    """A context that is set before every solve: backward comes after the second."""

    def solved(name):
        box = Box(None)
        contexts = {
            n: torch.tensor(x, dtype=DOUBLE, requires_grad=True) for n, x in (("one", 1.0), ("two", 2.0))
        }
        total = 0.0
        for box.w in contexts.values():
            total = (
                total
                + solve(box, torch.ones(2, dtype=DOUBLE), [0.0, 1.0], gradient=name, **OPTIONS).ys[-1].sum()
            )
        return gradients_of(total, contexts)

    want = solved("direct")
    try:
        got = solved(gradient)
    except (RuntimeError, ValueError):
        return  # refused
    assert_same(got, want, tolerance(gradient))


@pytest.mark.parametrize("history", [False, True], ids=["leaf", "history"])
@pytest.mark.parametrize("gradient", FINDS)
def test_hooks_of_a_tensor_see_its_whole_gradient_once(gradient, history):
    def solved(name):
        calls = []
        root = torch.tensor([0.5, 0.8], dtype=DOUBLE, requires_grad=True)
        w = root.sin() if history else root
        w.register_hook(lambda g: calls.append(1) or g.clamp(-0.1, 0.1))
        ys = solve(closure(w), torch.ones(2, dtype=DOUBLE), [0.0, 1.0], gradient=name, **OPTIONS).ys
        return gradients_of(ys, {"root": root}), len(calls)

    (got, times), (want, _) = solved(gradient), solved("direct")
    assert times == 1
    assert_same(got, want, tolerance(gradient))


@pytest.mark.parametrize("gradient", FINDS)
def test_modules_of_torch_in_all_their_forms(gradient):
    torch.manual_seed(0)
    linear = nn.Linear(2, 2).double()
    forms = {
        "linear": linear,
        "sequential": nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
        "weight-norm": torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2).double()),
        "parameter-list": nn.ParameterList([torch.ones(2, 2, dtype=DOUBLE)]),
        "tied": nn.Sequential(linear, linear),
        "spectral-norm": torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2).double()),
    }
    for form, module in forms.items():

        def solved(name, form=form, module=module):
            own = copy.deepcopy(module)  # a spectral norm moves its buffers

            def f(t, y):
                return torch.tanh(y @ own[0] if form == "parameter-list" else own(y))

            ys = solve(f, torch.ones(3, 2, dtype=DOUBLE), [0.0, 0.4, 1.0], gradient=name, **OPTIONS).ys
            return gradients_of(ys, dict(own.named_parameters()))

        assert_same(solved(gradient), solved("direct"), tolerance(gradient))


@pytest.mark.parametrize("options", [{"n_steps": 4}, {"rtol": 1e-4, "dt0": 1.0}], ids=["fixed", "adaptive"])
def test_buffers_that_f_reads_are_where_they_were(options):
    """The power iteration of a spectral norm goes on in every call: no value of f is good for two places."""
    torch.manual_seed(0)
    module = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4).double())
    module.parametrizations.weight.original.data.normal_()  # far from the converged iteration

    def solved(name):
        own = copy.deepcopy(module)
        y0 = torch.ones(3, 4, dtype=DOUBLE, requires_grad=True)
        ys = solve(lambda t, y: torch.tanh(own(y)), y0, [0.0, 0.37, 1.0], gradient=name, **options).ys
        return {**gradients_of(ys, dict(own.named_parameters())), "ys": ys, **dict(own.named_buffers())}

    assert_same(solved("aca"), solved("direct"), 1e-14)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2).double()

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(y)) * t


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gradient", ALL)
def test_a_scripted_module(gradient):
    module = Scripted()
    script = torch.jit.script(module)
    options = {**OPTIONS, "gradient": gradient}
    got, want = (
        gradients_of(
            solve(f, torch.ones(3, 2, dtype=DOUBLE), [0.0, 1.0], **options).ys, dict(f.named_parameters())
        )
        for f in (script, module)
    )
    assert_same(got, want, 1e-12)


@pytest.mark.parametrize("gradient", FINDS)
def test_f_that_computes_its_weights_once(gradient):
    def build(w):
        weights = functools.cache(lambda: torch.tanh(w))
        return lambda t, y: -weights() * y * y

    for history in (True, False):
        with pytest.warns(UserWarning, match="f keeps a tensor"):
            got = gradient_of(build, gradient, history)
        assert_same(got, gradient_of(build, "direct", history), tolerance(gradient))


@pytest.mark.parametrize("gradient", FINDS)
def test_sparse_gradients(gradient):
    torch.manual_seed(0)
    table, rows = nn.Embedding(5, 2, sparse=True).double(), torch.tensor([1, 3])

    def solved(name):
        ys = solve(
            lambda t, y: torch.tanh(table(rows) * y), torch.ones(2, 2, dtype=DOUBLE), [0.0, 1.0], gradient=name,
            **OPTIONS,
        ).ys  # fmt: skip
        (grad,) = torch.autograd.grad(ys[-1].sum(), table.weight)
        assert grad.is_sparse
        return {"table": grad.to_dense()}

    assert_same(solved(gradient), solved("direct"), tolerance(gradient))


@pytest.mark.parametrize("gradient", FINDS)
def test_frozen_parts_get_no_gradient(gradient):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    net[0].requires_grad_(False)
    solve(
        lambda t, y: net(y), torch.ones(3, 2, dtype=DOUBLE), [0.0, 1.0], gradient=gradient
    ).ys.sum().backward()
    assert net[0].weight.grad is None
    assert net[2].weight.grad.abs().max() > 0
    net.requires_grad_(False)
    sol = solve(lambda t, y: net(y), torch.ones(3, 2, dtype=DOUBLE), [0.0, 1.0], gradient=gradient)
    assert not sol.ys.requires_grad


def test_looking_for_tensors_keeps_none_alive():
    gc.collect()
    gc.disable()
    try:
        w = torch.ones(2, requires_grad=True)
        box = Box(w * 1)
        refs = [weakref.ref(x) for x in (w, box.w, box)]
        solve(box, torch.ones(2), [0.0, 1.0]).ys.sum().backward()
        del w, box
        assert [ref() for ref in refs] == [None] * 3
    finally:
        gc.enable()


def test_a_large_container_is_data():
    """A walk over everything that f can reach must not take longer than the solve."""
    data = [torch.zeros(1) for _ in range(100_000)]
    w = torch.ones(2, requires_grad=True)
    ys = solve(lambda t, y: -w * y if data else y, torch.ones(2), [0.0, 1.0]).ys
    ys.sum().backward()
    assert w.grad is not None
