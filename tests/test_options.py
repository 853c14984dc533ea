"""Options by other libraries' names, classes for objects, and the options of a block that is yet to be called."""

import copy
import functools
import inspect
import pickle
import warnings
from dataclasses import fields

import pytest
import torch
from torch import nn

import torchaca as aca
from torchaca import GRADIENTS, METHODS, NeuralODE, solve
from torchaca.elsewhere import NAMES
from torchaca.options import OPTIONS, Options

T = [0.0, 1.0]


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, t, y):
        return torch.tanh(self.linear(y))


DOORS = {
    "solve": lambda **options: solve(lambda t, y: -y, torch.ones(3), T, **options),
    "NeuralODE": lambda **options: NeuralODE(Field(), **options),
    "LatentODE": lambda **options: aca.nn.LatentODE(
        2, latent=2, units=4, layers=1, state=4, gru_units=4, **options
    ),
}
doors = pytest.mark.parametrize("door", DOORS)


def test_solve_has_the_options_with_their_order_and_defaults():
    signature = inspect.signature(solve).parameters.values()
    of_solve = [(p.name, p.default) for p in signature if p.kind is p.KEYWORD_ONLY]
    assert of_solve == [(x.name, x.default) for x in fields(Options)]


def test_no_name_of_others_is_one_of_ours():
    assert not NAMES.keys() & set(OPTIONS)


@doors
def test_other_libraries_names_are_answered_by_ours(door):
    own = {"steps", "num_steps", "features", "state"} if door == "LatentODE" else set()
    for name, ours in NAMES.items():
        if name in own or (door != "solve" and name in ("t", "f")):
            continue
        with pytest.raises(TypeError, match=f"{door}.* has no option '{name}'. Here that is ") as caught:
            DOORS[door](**{name: 1})
        assert str(caught.value).endswith(f"{ours}.")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("step_size", "dt="), ("options", "dt0="), ("saveat", "dense=True"), ("event", "events"), ("h", "dt="),
        ("event_fn", "events"), ("min_step", "dt_min="), ("adjoint_params", "every tensor that f uses"),
        ("solver", "method="), ("max_num_steps", "max_steps="), ("first_step", "dt0="), ("t_eval", "t="),
        ("t_span", "t="), ("adjoint_method", "Adjoint("), ("stepsize_controller", "control="),
        ("sensitivity", "gradient="), ("checkpoints", "ACA(checkpoints="), ("neval_max", "max_steps="),
    ],
)  # fmt: skip
@doors
def test_what_the_answer_names(door, name, part):
    with pytest.raises(TypeError) as caught:
        DOORS[door](**{name: 1})
    assert part in str(caught.value)


@doors
@pytest.mark.parametrize("option", ["method", "gradient", "control"])
def test_a_class_in_place_of_an_object(option, door):
    table = {
        "method": METHODS,
        "gradient": GRADIENTS,
        "control": {"": aca.Adaptive, "fixed": aca.FixedSteps},
    }[option]
    classes = {value if isinstance(value, type) else type(value) for value in table.values()}
    for cls in classes:
        with pytest.raises(
            TypeError, match=f"{option}={cls.__name__} is a class: write {option}={cls.__name__}"
        ):
            DOORS[door](**{option: cls})
    if option != "control":
        with pytest.raises(TypeError, match=f"{option} must be a name or"):
            DOORS[door](**{option: len})


def test_classes_in_the_adjoint():
    for name, cls in (("method", aca.ALF), ("control", aca.Adaptive)):
        with pytest.raises(TypeError, match=rf"Adjoint\({name}=\) is the class {cls.__name__}"):
            aca.Adjoint(**{name: cls})
    with pytest.raises(TypeError, match="method=ALF is a class"):
        aca.odeint(lambda t, y: -y, torch.ones(3), torch.tensor(T), method=aca.ALF)


BAD = {
    "method": {"method": "dopri55"},
    "gradient": {"gradient": "adjiont"},
    "needs its steps": {"method": "rk4"},
    "tolerance of fixed steps": {"method": "rk4", "n_steps": 3, "rtol": 1e-3},
    "two kinds of steps": {"dt": 0.1, "n_steps": 3},
    "rtol": {"rtol": -1.0},
    "rtol in words": {"rtol": "small"},
    "atol with a gradient": {"atol": torch.ones(3, requires_grad=True)},
    "n_steps": {"n_steps": 0},
    "dt": {"dt": -0.5},
    "grid": {"grid": [0.0, 1.0, 0.5]},
    "limits": {"dt_min": 0.5, "dt_max": 0.1},
    "max_steps": {"max_steps": -1},
    "norm": {"norm": "euclidean"},
    "control and options": {"control": aca.Adaptive(), "rtol": 1e-3},
    "control of another kind": {"control": "adaptive"},
    "control of fixed steps": {"method": "rk4", "control": aca.Adaptive()},
    "on_failure": {"on_failure": "ignore"},
    "args": {"args": torch.ones(3)},
    "mali": {"gradient": "mali"},
    "mali of a damped method": {"gradient": "mali", "method": aca.ALF(eta=0.5)},
    "adjoint of fixed steps": {"gradient": aca.Adjoint(rtol=1e-3), "n_steps": 3},
    "adjoint without an estimate": {"gradient": aca.Adjoint(method=METHODS["rk4"])},
    "adjoint's grid": {"gradient": "adjoint", "grid": torch.tensor(T, requires_grad=True)},
    "debug": {"debug": True, "gradient": "adjoint"},
    "compiled gradient": {"compile": True, "gradient": "naive"},
    "compiled method": {"compile": True, "method": "alf"},
    "compiled debug": {"compile": True, "debug": True},
    "compiled in words": {"compile": "yes"},
    "steps of an adjoint": {"compile": "steps", "gradient": "adjoint"},
}


@pytest.mark.parametrize("case", BAD)
def test_a_block_refuses_what_its_first_call_would(case):
    f, y0 = Field(), torch.ones(3)
    with pytest.raises((TypeError, ValueError)) as late:
        solve(f, y0, T, **BAD[case])
    with pytest.raises(type(late.value)) as early:
        NeuralODE(f, **BAD[case])
    if case != "args":
        assert str(early.value) == str(late.value)


GOOD = [
    {"rtol": torch.full((3,), 1e-3), "atol": [1e-3, 1e-4]},
    {"gradient": aca.Adjoint(rtol=torch.full((3,), 1e-3))},
    {"norm": lambda y: y["x"].abs().max()},
    {"jump_ts": torch.tensor([0.5]), "dt0": 0.1},
    {"grid": [0.0, 0.5, 2.0], "method": "rk4"},
    {"compile": "cuda-graphs"},
    {"args": (torch.ones(3), {"a": torch.ones(2)})},
    {"on_failure": "nan", "debug": True},
]


@pytest.mark.parametrize("options", GOOD, ids="-".join)
def test_what_depends_on_y0_is_left_to_the_call(options):
    assert NeuralODE(Field(), **options).options == options


def test_a_block_of_something_else():
    for f in (Field, 3.0):
        with pytest.raises(TypeError, match=r"called as f\(t, y\)"):
            NeuralODE(f)
    with pytest.raises(ValueError, match="sort it"):
        NeuralODE(Field(), t=[0.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="dense=True has no effect"):
        NeuralODE(Field(), dense=True)


CHANGES = {
    "method": "bosh3", "rtol": 1e-5, "atol": 1e-7, "gradient": "adjoint", "dt0": 0.125, "dt_min": 1e-3, "dt_max": 0.25,
    "max_steps": 500, "jump_ts": [0.5], "norm": "max", "on_failure": "nan", "debug": True,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_options_are_attributes(name):
    block, x = NeuralODE(Field(), t=(0.0, 2.0)), torch.randn(2, 3)
    block.train()
    default = getattr(block, name)
    setattr(block, name, CHANGES[name])
    assert getattr(block, name) == CHANGES[name]
    assert block.options == {name: CHANGES[name]}
    other = solve(block.f, x, [0.0, 2.0], **{name: CHANGES[name]})
    assert torch.equal(block(x), other.ys[-1])
    assert block.stats.nfe == other.stats.nfe
    delattr(block, name)
    assert block.options == {}
    assert getattr(block, name) == default
    setattr(block, name, CHANGES[name])
    setattr(block, name, None)
    assert block.options == {}


def test_every_option_is_an_attribute():
    block, read = NeuralODE(Field(), method="rk4", n_steps=3), set(OPTIONS) - {"compile"}
    assert (block.method, block.n_steps, block.rtol, block.gradient) == ("rk4", 3, None, "aca")
    assert all(hasattr(block, name) for name in read)
    block.compile = "steps"
    assert block.options["compile"] == "steps"
    block.compile = None
    assert block.compile.func is nn.Module.compile  # the method of every module


@pytest.mark.parametrize("case", [case for case, options in BAD.items() if len(options) == 1])
def test_what_is_set_is_checked(case):
    ((name, value),) = BAD[case].items()
    block = NeuralODE(Field(), max_steps=100)
    with pytest.raises((TypeError, ValueError)):
        setattr(block, name, value)
    assert block.options == {"max_steps": 100}


def test_what_is_set_is_checked_beside_the_others():
    block = NeuralODE(Field(), rtol=1e-3)
    with pytest.raises(ValueError, match="rtol= has no effect with fixed steps"):
        block.n_steps = 3
    block.rtol = None
    block.n_steps = 3
    block.method = "rk4"
    with pytest.raises(ValueError, match="needs its steps"):
        del block.n_steps
    block(torch.ones(2, 3))
    assert block.stats.nfe == 12


@pytest.mark.parametrize("make", [copy.deepcopy, lambda block: pickle.loads(pickle.dumps(block))])
def test_copies_keep_what_was_set(make):
    block, x = NeuralODE(Field(), rtol=1e-3), torch.randn(2, 3)
    block.rtol, block.method = 1e-6, "tsit5"
    other = make(block)
    assert (other.rtol, other.method) == (1e-6, "tsit5")
    assert torch.equal(other(x), block(x))
    other.rtol = 1e-2
    assert block.rtol == 1e-6
    assert block.state_dict().keys() == {"f.linear.weight", "f.linear.bias"}


NET, RATE = nn.Linear(3, 3), nn.Parameter(torch.ones(3))


def uses_a_global(t, y):
    return NET(y)


class Holder:
    def __init__(self):
        self.field = Field()

    def slope(self, t, y):
        return self.field(t, y)


def over(deep):
    return lambda t, y: deep(y)


FUNCTIONS = {
    "lambda": (lambda net: lambda t, y: net(y), "parameters of net,"),
    "layers": (lambda net: over(nn.Sequential(net, nn.Tanh(), nn.Linear(3, 3))), "parameters of deep,"),
    "global": (lambda net: uses_a_global, "parameters of NET,"),
    "method of a module": (lambda net: Field().forward, "parameters of f.linear,"),
    "method of an object": (lambda net: Holder().slope, "parameters of f.field.linear,"),
    "partial": (lambda net: functools.partial(lambda net, t, y: net(y), net), "which the block does not register"),
    "a parameter": (lambda net: lambda t, y: -RATE * y, "parameters 'RATE'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_function_over_a_module_registers_nothing(case):
    make, words = FUNCTIONS[case]
    with pytest.warns(UserWarning, match=words) as caught:
        block = NeuralODE(make(nn.Linear(3, 3)))
    assert [warning.filename for warning in caught] == [__file__]
    assert not list(block.parameters())


class Model(nn.Module):
    """Registers what its block's function uses."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 3)
        self.one = NeuralODE(lambda t, y: self.net(y))
        self.two = NeuralODE(self.slope)

    def slope(self, t, y):
        return torch.tanh(self.net(y))


def test_nothing_to_warn_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeuralODE(Field())
        NeuralODE(lambda t, y: -y)
        weight = torch.ones(3, requires_grad=True)
        NeuralODE(lambda t, y: -weight * y)
        model = Model()
        copy.deepcopy(model)
    assert len(list(model.parameters())) == 2


def test_a_norm_that_is_a_module_is_an_option():
    class Largest(nn.Module):
        def forward(self, x):
            return x.abs().max()

    block = NeuralODE(Field())
    block.norm = Largest()
    assert isinstance(block.options["norm"], Largest)
    assert list(block.children()) == [block.f]
    block(torch.ones(2, 3))
