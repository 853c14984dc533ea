"""Solves on a device that is not the host; run by test_device.py, in a process of its own."""

import contextlib
from collections import deque

import pytest
import torch
from double import NAME, install, recording
from torch import nn

with torch.device("meta"):  # its tables say where they are
    from torchaca import ACA, GRADIENTS, METHODS, Adaptive, solve

DEVICE = install()
TIMES = [0.0, 0.31, 1.0]
BITS = [(name, "aca", not method.adaptive) for name, method in METHODS.items()]
BITS += [("alf", name, fixed) for fixed in (True, False) for name in GRADIENTS]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


def trained(device, **options):
    """A solution on a device, the gradients of its sum of squares, and the waits of the solve."""
    torch.manual_seed(0)
    net, y0 = Net().to(device), torch.randn(3, 2).to(device).requires_grad_()
    with recording() as waits:
        solution = solve(net, y0, TIMES, **options)
    solution.ys.square().sum().backward()
    return solution, [x.grad.cpu() for x in (y0, *net.parameters())], waits


@pytest.mark.parametrize(("method", "gradient", "fixed"), BITS, ids=str)
def test_the_bits_of_the_host(method, gradient, fixed):
    """With one read a trial, and one for the first step size, beside those of naive, which keeps its times there."""
    steps = {"n_steps": 1} if fixed else {"rtol": 1.0, "atol": 1.0, "at_rest": "ignore"}
    options = {"method": method, "gradient": gradient, **steps}
    (here, right, _), (there, grads, waits) = (trained(device, **options) for device in ("cpu", DEVICE))
    assert there.ys.device == DEVICE
    assert torch.equal(there.ys.cpu(), here.ys)
    for grad, expected in zip(grads, right, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-7)
    if gradient != "naive":
        reads = [wait for wait in waits if wait.startswith("read")]
        trials = there.stats.accepted + there.stats.rejected
        assert len(reads) == (0 if fixed else trials + 1), reads


@pytest.mark.parametrize(
    ("dtype", "cast", "options"),
    [
        (torch.float32, True, {}),
        (torch.float32, True, {"method": "tsit5", "rtol": torch.full((2,), 1e-2)}),
        (torch.bfloat16, False, {}),
        (torch.float32, False, {"rtol": 1e-8, "atol": 0.0}),
    ],
    ids=["autocast", "tensor", "half", "single"],
)
def test_tolerances_that_f_cannot_meet_are_raised(dtype, cast, options):
    net, y0 = Net().to(DEVICE, dtype), torch.ones(3, 2, dtype=dtype).to(DEVICE)
    around = torch.autocast(NAME, torch.bfloat16) if cast else contextlib.nullcontext()
    with around, torch.no_grad(), pytest.warns(UserWarning, match="too coarse"):
        solution = solve(net, y0, [0.0, 1.0], **options)
    assert solution.stats.nfe < 40


@pytest.mark.parametrize("gradient", [ACA(checkpoints="all"), ACA(stagewise=True)], ids=str)
@pytest.mark.parametrize("drifts", [False, True])
def test_a_gradient_that_f_lost_before_backward_is_nan(drifts, gradient):
    """The host would have to wait for the device to raise after fixed steps; what f never read has no gradient."""
    w, spare = torch.ones(2, device=DEVICE, requires_grad=True), torch.ones(2).to(DEVICE)
    unused = torch.ones(2, device=DEVICE, requires_grad=True)
    reads = deque([w, unused])  # a list's entries are put back for the backward pass
    other = torch.ones(2).to(DEVICE).requires_grad_()
    y0 = torch.ones(2).to(DEVICE).requires_grad_()
    ys = solve(
        lambda t, y: reads[0] * other * y, y0, [0.0, 1.0], method="rk4", n_steps=3, gradient=gradient
    ).ys
    if drifts:
        reads[0] = 2 * spare
    ys[-1].sum().backward()
    for x in (w, other, y0):
        assert x.grad.isnan().all().item() == drifts
    assert unused.grad is None


def test_tensors_on_several_devices_are_named():
    net, y0 = Net(), torch.ones(3, 2).to(DEVICE)
    with pytest.raises(ValueError, match=r"y0, which is on spare:0: .*parameter net\.0\.bias is on cpu"):
        solve(net, y0, [0.0, 1.0])
    net.to(DEVICE)
    assert solve(net, y0, torch.tensor([0.0, 1.0])).ys.device == DEVICE  # times belong to the host
    tolerances = torch.full((2,), 1e-2)  # and are moved
    for options in ({"rtol": tolerances}, {"control": Adaptive(rtol=tolerances, atol=tolerances)}):
        assert solve(net, y0, [0.0, 1.0], **options).ys.device == DEVICE
    with pytest.raises(ValueError, match=r"args\[0\] is on cpu"):
        solve(lambda t, y, a: net(t, y) + a, y0, [0.0, 1.0], args=(torch.ones(3, 2),))


def test_an_error_of_f_reads_no_device():
    """Which may be broken, so that another error would hide the first."""

    def f(t, y):
        raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert") as caught, recording() as waits:
        solve(f, torch.ones(2).to(DEVICE), [0.5, 1.0], gradient="naive")
    assert not [wait for wait in waits if "copy" not in wait]
    assert "t = 0.5" in caught.value.__notes__[0]


def test_the_device_as_default():
    y0 = torch.ones(2, device="cpu", requires_grad=True)
    with torch.device(DEVICE):
        ys = solve(lambda t, y: -y * t, y0, TIMES, rtol=1e-2).ys
    ys.sum().backward()
    assert y0.grad.device == ys.device == torch.device("cpu")
