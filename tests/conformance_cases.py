"""The features of docs/conformance.md: each a small program, its inputs, and how its derivative is asked for.

A new feature is one function here, decorated with its name on the page. It returns a `Case`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from gradient_cases import DOUBLE
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchaca import Solution, solve
from torchaca.core import Gradient

Options = dict[str, Any]
Program = Callable[[Gradient, Options], Tensor]
"""The value to differentiate, computed under a gradient and with these options of `solve`."""
Derivative = Callable[[Gradient, Options], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """`program` as a function of the leaves in `inputs`.

    `derivative` asks for d sum(program) / d inputs in another way than `autograd.grad`; names that are no inputs are
    compared with those of `direct` alone. `truth` replaces finite differences where there are none.
    """

    inputs: dict[str, Tensor]
    program: Program
    derivative: Derivative | None = None
    truth: Callable[[], dict[str, Tensor]] | None = None
    options: Options | None = None
    tolerance: float | None = None


FEATURES: dict[str, Callable[[], Case]] = {}


def feature(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def add(build: Callable[[], Case]) -> Callable[[], Case]:
        FEATURES[name] = build
        return build

    return add


def leaf(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype).requires_grad_()


def constant(*shape: int, seed: int = 0) -> Tensor:
    return leaf(*shape, seed=seed).detach()


def weighted(ys: Any) -> Tensor:
    """A number in which every output has its own weight."""
    parts = [torch.view_as_real(y) if y.is_complex() else y for y in pytree.tree_leaves(ys)]
    return sum((y * torch.linspace(1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() for y in parts)


def rotation(w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A field of vectors of two numbers, in which time and all of `w` matter."""
    return lambda t, y: torch.tanh(y @ w) + 0.3 * torch.cos(t) * y


def plain(
    t: Any = (0.0, 1.0), options: Options | None = None, dtype: torch.dtype = DOUBLE, **given: Any
) -> Case:
    """The usual case: y0 and captured weights, outputs at `t`."""
    y0, w = leaf(2, dtype=dtype), leaf(2, 2, seed=1, dtype=dtype)

    def program(gradient: Gradient, steps: Options) -> Tensor:
        return weighted(solve(rotation(w), y0, list(t), gradient=gradient, **steps, **given).ys)

    return Case({"y0": y0, "w": w}, program, options=options)


# With respect to what.


@feature("the initial state")
def initial_state() -> Case:
    y0, w = leaf(2), constant(2, 2, seed=1)
    return Case({"y0": y0}, lambda g, o: weighted(solve(rotation(w), 2 * y0, [0.0, 1.0], gradient=g, **o).ys))


@feature("parameters of a module: shared, frozen and unused ones among them")
def parameters() -> Case:
    net = nn.Module()
    net.weight, net.scale = nn.Parameter(constant(2, 2, seed=1)), nn.Parameter(constant(2, seed=2))
    net.shared, net.unused = net.weight, nn.Parameter(constant(3, seed=3))
    net.frozen = nn.Parameter(constant(2, seed=4), requires_grad=False)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return net.scale * torch.tanh(y @ net.weight + net.frozen) @ net.shared

    y0 = constant(2)
    inputs = {"weight": net.weight, "scale": net.scale, "unused": net.unused}
    return Case(inputs, lambda g, o: weighted(solve(f, y0, [0.0, 1.0], gradient=g, **o).ys))


@feature("`args`, nested")
def args() -> Case:
    a, b, y0 = leaf(2), leaf(2, 2, seed=1), constant(2)

    def f(t: Tensor, y: Tensor, a: Tensor, rest: dict[str, Tensor]) -> Tensor:
        return a * torch.tanh(y @ rest["b"]) + t

    return Case(
        {"a": a, "b": b},
        lambda g, o: weighted(solve(f, y0, [0.0, 1.0], args=(2 * a, {"b": b}), gradient=g, **o).ys),
    )


@feature("captured leaves")
def captured_leaf() -> Case:
    w, y0 = leaf(2, 2), constant(2)
    return Case({"w": w}, lambda g, o: weighted(solve(rotation(w), y0, [0.0, 1.0], gradient=g, **o).ys))


@feature("captured tensors with a history")
def captured_history() -> Case:
    w, y0 = leaf(2, 2), constant(2)

    def program(g: Gradient, o: Options) -> Tensor:
        made, root = torch.sin(w), w
        return weighted(
            solve(lambda t, y: torch.tanh(y @ made) - y * root[0], y0, [0.0, 1.0], gradient=g, **o).ys
        )

    return Case({"w": w}, program)


@feature("output times")
def times() -> Case:
    t = torch.tensor([0.1, 0.35, 0.35, 0.8, 1.2], dtype=DOUBLE, requires_grad=True)
    w, y0 = constant(2, 2, seed=1), constant(2)
    apart = torch.tensor(
        [0.0, 0.0, 1e-3, 0.0, 0.0], dtype=DOUBLE
    )  # or finite differences would leave the order
    return Case({"t": t}, lambda g, o: weighted(solve(rotation(w), y0, t + apart, gradient=g, **o).ys))


# Of what.


@feature("many outputs")
def many_outputs() -> Case:
    return plain(torch.linspace(0, 1, 26).tolist())


@feature("repeated output times")
def repeated() -> Case:
    return plain([0.0, 0.0, 0.4, 0.4, 1.0, 1.0])


@feature("backwards in time")
def backwards() -> Case:
    return plain([1.0, 0.4, 0.0])


@feature("all times equal")
def at_rest() -> Case:
    return plain([0.5, 0.5])


@feature("dense output")
def dense() -> Case:
    y0, w = leaf(2), leaf(2, 2, seed=1)

    def program(g: Gradient, o: Options) -> Tensor:
        return weighted(solve(rotation(w), y0, [0.0, 1.0], gradient=g, dense=True, **o)([0.21, 0.77]))

    return Case({"y0": y0, "w": w}, program)


@feature("its derivative by time, `sol.derivative(t)`")
def derivative() -> Case:
    y0, w = leaf(2), leaf(2, 2, seed=1)
    at = torch.tensor([0.21, 0.77], dtype=DOUBLE, requires_grad=True)

    def program(g: Gradient, o: Options) -> Tensor:
        return weighted(solve(rotation(w), y0, [0.0, 1.0], gradient=g, dense=True, **o).derivative(at))

    return Case({"y0": y0, "w": w, "t": at}, program)


@feature("nested state")
def nested() -> Case:
    x, v, k = leaf(2), leaf(1, seed=1), leaf(seed=2)

    def f(t: Tensor, y: dict[str, Any]) -> dict[str, Any]:
        return {"x": -k * y["x"] * y["v"][0], "v": (torch.sin(y["x"]).sum(0, keepdim=True),)}

    return Case(
        {"x": x, "v": v, "k": k},
        lambda g, o: weighted(solve(f, {"x": x, "v": (v,)}, [0.0, 0.3, 1.0], gradient=g, **o).ys),
    )


@feature("complex state")
def complex_state() -> Case:
    y0, k = leaf(2), leaf(seed=2)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return (0.3 + 1j * k) * y + 0.1 * y.conj() * torch.cos(t)

    return Case(
        {"y0": y0, "k": k},
        lambda g, o: weighted(solve(f, torch.complex(y0, 0.5 * y0), [0.0, 0.3, 1.0], gradient=g, **o).ys),
    )


def in_low_precision(dtype: torch.dtype, autocast: bool) -> Case:
    y0, w = leaf(2, dtype=dtype), leaf(2, 2, seed=1, dtype=dtype)

    def program(g: Gradient, o: Options) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return weighted(solve(rotation(w), y0, [0.0, 1.0], gradient=g, **o).ys[-1]).float()

    def truth() -> dict[str, Tensor]:
        wide = {"y0": y0.detach().to(DOUBLE).requires_grad_(), "w": w.detach().to(DOUBLE).requires_grad_()}
        total = weighted(solve(rotation(wide["w"]), wide["y0"], [0.0, 1.0], gradient="direct").ys[-1])
        return dict(zip(wide, torch.autograd.grad(total, list(wide.values()))))

    return Case({"y0": y0, "w": w}, program, truth=truth, tolerance=5e-2)


@feature("bfloat16 state")
def bfloat16() -> Case:
    return in_low_precision(torch.bfloat16, autocast=False)


@feature("under autocast to bfloat16")
def autocast() -> Case:
    return in_low_precision(torch.float32, autocast=True)


# On which steps.


@feature("adaptive steps")
def adaptive() -> Case:
    return plain([0.0, 0.3, 1.0], {"rtol": 1e-8, "atol": 1e-9})


@feature("adaptive steps, `jump_ts`")
def jumps() -> Case:
    y0, k = leaf(2), leaf(seed=2)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -k * y * torch.where(t < 0.3, 1.0, 2.0)

    def program(g: Gradient, o: Options) -> Tensor:
        return weighted(solve(f, y0, [0.0, 0.6, 1.0], gradient=g, jump_ts=[0.3], **o).ys)

    return Case({"y0": y0, "k": k}, program, options={"rtol": 1e-8, "atol": 1e-9})


@feature("`jump_ts` that carries a derivative")
def jump_derivative() -> Case:
    y0, k, s = constant(2), constant(seed=2), torch.tensor([0.3, 0.6], dtype=DOUBLE, requires_grad=True)

    def program(g: Gradient, o: Options) -> Tensor:
        at = s.detach()

        def f(t: Tensor, y: Tensor) -> Tensor:
            return -k * y * (1 + (t >= at[0]) + 2 * (t >= at[1])) + torch.cos(t)

        return weighted(solve(f, y0, [0.0, 0.5, 1.0], gradient=g, jump_ts=s, **o).ys)

    return Case({"s": s}, program, options={"rtol": 1e-8, "atol": 1e-9})


@feature("a given grid")
def grid() -> Case:
    return plain([0.0, 0.3, 1.0], {"grid": [i**2 / 400 for i in range(21)]})


@feature("a grid that carries a derivative")
def grid_derivative() -> Case:
    inner, w, y0 = (
        torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE, requires_grad=True),
        constant(2, 2),
        constant(2),
    )
    ends = torch.tensor([0.0, 1.0], dtype=DOUBLE)

    def program(g: Gradient, o: Options) -> Tensor:
        steps = torch.cat([ends[:1], inner, ends[1:]])
        return weighted(solve(rotation(5 * w), y0, [0.0, 1.0], gradient=g, grid=steps, **o).ys)

    return Case({"grid": inner}, program, options={})


# How f is written.


@feature("f that calls `autograd.grad`")
def hamiltonian() -> Case:
    w, y0 = leaf(2, 2), leaf(2, seed=1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        energy = torch.tanh(y @ w).square().sum()
        (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.stack([slope[1], -slope[0]])

    return Case({"w": w, "y0": y0}, lambda g, o: weighted(solve(f, y0, [0.0, 1.0], gradient=g, **o).ys))


@feature("Dropout in f")
def dropout() -> Case:
    w, y0, drop = leaf(3, 3), leaf(4, 3, seed=1), nn.Dropout(0.5)

    def program(g: Gradient, o: Options) -> Tensor:
        torch.manual_seed(5)
        return weighted(solve(lambda t, y: torch.tanh(drop(y) @ w), y0, [0.0, 1.0], gradient=g, **o).ys)

    return Case({"w": w, "y0": y0}, program)


@feature("BatchNorm in f, training: its statistics move once per forward evaluation")
def batch_norm() -> Case:
    w, y0 = leaf(3, 3), leaf(4, 3, seed=1)

    def solved(norm: nn.Module, g: Gradient, o: Options) -> Solution:
        return solve(lambda t, y: torch.tanh(norm(y @ w)), y0, [0.0, 1.0], gradient=g, **o)

    def program(g: Gradient, o: Options) -> Tensor:
        return weighted(solved(nn.BatchNorm1d(3).to(DOUBLE), g, o).ys)

    def derivative(g: Gradient, o: Options) -> dict[str, Any]:
        norm = nn.BatchNorm1d(3).to(DOUBLE)
        sol = solved(norm, g, o)
        forward, count = norm.running_mean.clone(), norm.num_batches_tracked.item()
        grads = torch.autograd.grad(weighted(sol.ys), [w, y0])
        moved, missed = norm.running_mean - forward, torch.tensor(count - sol.stats.nfe)
        return {"w": grads[0], "y0": grads[1], "moved in backward": moved, "evaluations missed": missed}

    return Case({"w": w, "y0": y0}, program, derivative)


# How the derivative is asked for.


@feature("backward twice, `retain_graph=True`")
def twice() -> Case:
    case = plain()

    def derivative(g: Gradient, o: Options) -> dict[str, Any]:
        total = case.program(g, o)
        torch.autograd.grad(total, list(case.inputs.values()), retain_graph=True)
        return dict(zip(case.inputs, torch.autograd.grad(total, list(case.inputs.values()))))

    return Case(case.inputs, case.program, derivative)


@feature("`debug=True`")
def debug() -> Case:
    case, watched = plain(), plain(debug=True)

    def derivative(g: Gradient, o: Options) -> dict[str, Any]:
        grads = torch.autograd.grad(watched.program(g, o), list(watched.inputs.values()))
        return dict(zip(watched.inputs, grads))

    return replace(case, derivative=derivative)


def of_the_gradient(times: int) -> Case:
    """A number made of the derivatives of that order: its derivative is one order higher."""
    case = plain()

    def program(g: Gradient, o: Options) -> Tensor:
        total = case.program(g, o)
        for _ in range(times):
            grads = torch.autograd.grad(total, list(case.inputs.values()), create_graph=True)
            total = weighted([grad.square() for grad in grads])
        return total

    return Case(case.inputs, program)


@feature("second derivatives, `create_graph=True`")
def second() -> Case:
    return of_the_gradient(1)


@feature("third derivatives")
def third() -> Case:
    return of_the_gradient(2)


def through(
    transform: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor],
    batch: tuple[int, ...] = (),
    options: Options | None = None,
) -> Case:
    """A derivative with respect to y0 by torch.func; `transform` gets the outputs as a function of y0, and y0."""
    y0, w = leaf(*batch, 2), constant(2, 2, seed=1)

    def end(y: Tensor, g: Gradient, o: Options) -> Tensor:
        ys = solve(rotation(w), y, [0.0, 0.4, 1.0], gradient=g, **o).ys
        return (ys * torch.arange(1.0, 4.0, dtype=DOUBLE).reshape(3, *[1] * y.ndim)).sum(0)

    return Case(
        {"y0": y0},
        lambda g, o: end(y0, g, o),
        lambda g, o: {"y0": transform(lambda y: end(y, g, o), y0.detach())},
        options=options,
    )


@feature("`torch.func.grad`")
def func_grad() -> Case:
    return through(lambda end, y0: torch.func.grad(lambda y: end(y).sum())(y0))


@feature("`torch.func.jacrev`")
def jacrev() -> Case:
    return through(lambda end, y0: torch.func.jacrev(end)(y0).sum(0))


@feature("`torch.func.jvp`, `jacfwd`")
def jvp() -> Case:
    def basis(end: Callable[[Tensor], Tensor], y0: Tensor) -> Tensor:
        one_by_one = [torch.func.jvp(end, (y0,), (e,))[1].sum() for e in torch.eye(2, dtype=DOUBLE)]
        assert torch.allclose(torch.func.jacfwd(end)(y0).sum(0), torch.stack(one_by_one))
        return torch.stack(one_by_one)

    return through(basis)


@feature("`torch.func.vmap` of the solve")
def vmap() -> Case:
    def batched(end: Callable[[Tensor], Tensor], y0: Tensor) -> Tensor:
        own = y0.requires_grad_()
        return torch.autograd.grad(torch.func.vmap(end)(own).sum(), own)[0]

    return through(batched, (3,))


def each_gradient(end: Callable[[Tensor], Tensor], y0: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda y: end(y).sum()))(y0)


@feature("`torch.func.vmap` of a gradient")
def vmap_grad() -> Case:
    return through(each_gradient, (3,))


@feature("the same on adaptive steps, each lane its own")
def lanes() -> Case:
    return through(each_gradient, (3,), {"rtol": 1e-8, "atol": 1e-9})


@feature("`torch.func.hessian`")
def hessian() -> Case:
    y0, w = leaf(2), constant(2, 2, seed=1)

    def total(y: Tensor, g: Gradient, o: Options) -> Tensor:
        return weighted(solve(rotation(w), y, [0.0, 1.0], gradient=g, **o).ys)

    def program(g: Gradient, o: Options) -> Tensor:
        return torch.autograd.grad(total(y0, g, o), y0, create_graph=True)[0]

    return Case(
        {"y0": y0},
        program,
        lambda g, o: {"y0": torch.func.hessian(lambda y: total(y, g, o))(y0.detach()).sum(0)},
    )
