"""The walk over what f can read: it finds what f's code names, and passes by what it does not."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchaca import solve
from torchaca.field.places import label
from torchaca.field.reach import LONG, reach

DATA: list = []


class Trainer:
    def __init__(self, samples):
        self.samples = [(torch.zeros(2), i) for i in range(samples)]
        self.loader = DataLoader(TensorDataset(torch.zeros(max(samples, 1), 2)))
        self.records = {i: {"x": torch.zeros(2)} for i in range(samples)}


class Model(nn.Module):
    """As a LightningModule: the network, the data and the loop in one object."""

    def __init__(self, samples):
        super().__init__()
        self.net, self.trainer = nn.Linear(3, 3), Trainer(samples)
        self.data = self.trainer.samples

    def field(self, t, y):
        return torch.tanh(self.net(y))

    def named(self, t, y):
        return torch.tanh(self.net(y)) * (1.0 if self.data is not None else 0.0)

    def by_name(self, t, y):
        return torch.tanh(getattr(self, "net")(y))  # noqa: B009


def method(samples):
    return Model(samples).field


def method_that_names_the_data(samples):
    return Model(samples).named


def method_that_names_nothing(samples):
    return Model(samples).by_name


def closure_over_the_model(samples):
    model = Model(samples)
    return lambda t, y: 2 * model.field(t, y)


def closure_over_a_loader(samples):
    net, loader = nn.Linear(3, 3), Trainer(samples).loader
    return lambda t, y: net(y) * (0.0 if loader is None else 1.0)


def global_list(samples):
    DATA[:] = [(torch.zeros(2), i) for i in range(samples)]
    net = nn.Linear(3, 3)
    return lambda t, y: net(y) * (0.0 if DATA is None else 1.0)


FIELDS = {
    f.__name__: f
    for f in (
        *(method, method_that_names_the_data, method_that_names_nothing, closure_over_the_model),
        *(closure_over_a_loader, global_list),
    )
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_the_walk_does_not_depend_on_the_number_of_samples(field):
    few, many, more = (reach(field(n)).looked for n in (LONG + 1, 2_000, 20_000))
    assert few == many == more < 200
    assert {"weight", "bias"} <= {label(path).split(".")[-1] for path, _ in reach(field(10)).tensors}


@pytest.mark.parametrize("samples", [0, 20_000])
def test_data_that_no_code_names_is_not_looked_at(samples):
    assert reach(method(samples)).looked == reach(method(0)).looked
    assert not reach(method(samples)).blind


def test_arguments_with_many_samples():
    def f(t, y, data):
        return -y

    looked = [reach(f, ([torch.zeros(1) for _ in range(n)],)).looked for n in (1_000, 50_000)]
    assert looked[0] == looked[1]


def test_a_long_list_of_parameters_is_a_model():
    weights = [torch.ones(2, requires_grad=True) for _ in range(2 * LONG)]
    found = reach(lambda t, y: y * weights[int(t)])
    assert len(found.tensors) == len(weights)
    assert not found.blind


def test_names_that_are_known_later_are_looked_up_again():
    """An object is met before the code that names its attribute."""

    class Box:
        pass

    box = Box()
    box.weight = torch.ones(2, requires_grad=True)
    box.other = torch.ones(2, requires_grad=True)

    def inner(b):
        return b.weight

    def f(t, y, b=box):
        return y * inner(b)

    assert [label(path) for path, _ in reach(f).tensors] == ["f[0].weight"]


def test_a_tensor_that_one_cannot_look_at_is_found_or_named_when_it_is_used_late():
    """Behind a long list of other things: the replay sees it, and says so."""
    hidden = [*range(1000), torch.ones(2, requires_grad=True)]
    hidden.insert(0, torch.zeros(1))

    def f(t, y):
        return y * hidden[-1] if t > 0.5 else -y

    sol = solve(f, torch.ones(2, requires_grad=True), [0.0, 1.0], method="rk4", n_steps=4)
    with pytest.raises(ValueError, match=r"f first used a tensor of shape \(2,\).*args=\(tensor"):
        sol.ys.sum().backward()
