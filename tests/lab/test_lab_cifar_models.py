"""The networks of `torchaca run cifar10`: their parameters, their weights, and batch normalisation inside f."""

from dataclasses import replace

import pytest
import torch
from gradient_cases import assert_same
from torch import nn

from torchaca.lab.cifar_node.models import Residual, node18, resnet18
from torchaca.lab.cifar_node.recipe import Settings, build, row_of, rows, solver

GRADIENTS = ("aca", "direct", "naive", "adjoint")
HEUN_EULER = {"method": "heun_euler", "rtol": 1e-2, "atol": 1e-2}
SMALL = Settings(width=4, gradient=GRADIENTS, seeds=1, rtol=1e-3, atol=1e-3)


def images(count=4, side=8, dtype=torch.float64):
    return torch.randn(count, 3, side, side, dtype=dtype, generator=torch.Generator().manual_seed(1))


def gradients(net, x):
    """Of every parameter, by name."""
    net.zero_grad()
    net(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def norms(net):
    """The batch normalisation of the last ODE block's f."""
    return [module for module in net.blocks()[-1].modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("row", rows(replace(Settings(), seeds=1)), ids=lambda row: row.label)
def test_parameters_of_the_paper(row):
    net = build(Settings(), row, 10)
    assert sum(p.numel() for p in net.parameters()) == 11_173_962
    wide = build(Settings(), row, 100)
    assert sum(p.numel() for p in wide.parameters()) == 11_173_962 + 90 * 513


def test_rows_are_seed_by_seed():
    found = [row.name for row in rows(replace(Settings(), seeds=2))]
    first = ["resnet18", "node18-aca", "node18-adjoint", "node18-naive", "anode18"]
    assert found == [f"{label} seed {seed}" for seed in (0, 1) for label in first]


def test_rows_of_a_seed_have_the_same_weights():
    nets = [build(SMALL, row, 10) for row in rows(SMALL)]
    for net in nets[1:]:
        for p, q in zip(nets[0].parameters(), net.parameters(), strict=True):
            assert torch.equal(p, q)
    other = build(SMALL, row_of("node18", "aca", 1), 10)
    assert not torch.equal(nets[0].head.weight, other.head.weight)


def test_a_residual_block_is_one_euler_step_before_its_last_relu():
    """z + f(z) of the ODE block; the residual block has its last ReLU behind the sum."""
    torch.manual_seed(0)
    residual = Residual(4, 4, 1).double()
    net = node18(4, 10, 0.1, {"method": "euler", "n_steps": 1}).double()
    block = net.blocks()[0]
    block.f.layers.load_state_dict(residual.layers.state_dict(), strict=True)
    z = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(block(z), z + residual.layers(z).relu())
    torch.testing.assert_close(residual(z), (z + residual.layers(z)).relu())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_discrete_gradients_are_one(training):
    """float64: ACA and backpropagation; ANODE and backpropagation through its Euler steps."""
    x = images()
    for options in ({**HEUN_EULER, "rtol": 1e-3}, {"method": "euler", "n_steps": 5}):
        found = {}
        for gradient in ("aca", "direct"):
            torch.manual_seed(0)
            net = node18(4, 10, 0.1, {**options, "gradient": gradient}).double().train(training)
            found[gradient] = gradients(net, x)
        assert_same(found["aca"], found["direct"], 1e-9)


def test_the_continuous_adjoint_tends_to_the_same_gradient():
    """In evaluation mode, with a tight tolerance; to a few percent, since f's derivative jumps in its ReLUs."""
    found = {}
    for gradient in ("direct", "adjoint"):
        torch.manual_seed(0)
        net = node18(2, 10, 0.1, {"rtol": 1e-8, "atol": 1e-8, "gradient": gradient}).double().eval()
        found[gradient] = gradients(net, images(2))
    for name, want in found["direct"].items():
        distance = torch.linalg.vector_norm(found["adjoint"][name] - want)
        assert distance <= 0.05 * torch.linalg.vector_norm(want), name


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_running_statistics_move_once_per_accepted_forward_evaluation(gradient):
    row = row_of("node18", gradient, 0)
    torch.manual_seed(0)
    net = node18(4, 10, 0.1, {**solver(SMALL, row), "dt0": 1.0}).double()  # too long a step: it is rejected
    scores = net(images())
    (norm, _), stats = norms(net), net.blocks()[-1].stats
    assert stats.rejected > 0
    # Two stages a step. An evaluation in a rejected trial does not count, though the next trial may start from it.
    assert 2 * stats.accepted - stats.rejected <= norm.num_batches_tracked <= 2 * stats.accepted
    moved = [buffer.clone() for buffer in net.buffers()]
    scores.sum().backward()
    assert stats.nfe_backward > 0 or gradient in ("direct", "naive")
    net.eval()(images()).sum().backward()
    for buffer, before in zip(net.buffers(), moved, strict=True):
        assert torch.equal(buffer, before)


def test_evaluation_mode_does_not_mix_images():
    torch.manual_seed(0)
    net = build(SMALL, row_of("anode18", None, 0), 10).double().eval()
    x = images()
    torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=1e-10, atol=1e-12)


def test_blocks_take_another_solver_for_a_while():
    net = build(SMALL, row_of("node18", "aca", 0), 10).double().eval()
    with torch.no_grad():
        net.solve_with(method="rk4", n_steps=3)
        net(images())
    assert [stats.nfe for stats in net.stats()] == [12] * 4
    assert resnet18(4, 10).stats() == []
