"""Graphs as they are captured, many of them compiled in one C file, and called with tensors."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from torchaca.native.operations import Function, addresses, decompositions, prelude, translate, translate_pair

FLAGS = "-O3 -march=native -std=gnu11 -fno-math-errno -fno-trapping-math -ffp-contract=fast -fopenmp-simd"
N = 7
"""The size that is symbolic in graphs, where tensors have it while they are captured."""


def captured(f: Callable[..., Any], inputs: Sequence[Any], symbolic: bool = True) -> fx.GraphModule:
    """The graph of f; sizes of N are symbolic, or none."""
    mode = FakeTensorMode(shape_env=ShapeEnv() if symbolic else None)
    fakes = [_fake(mode, x, symbolic) if isinstance(x, Tensor) else x for x in inputs]
    with mode:
        graph = make_fx(f, decomposition_table=decompositions())(*fakes)
    graph.graph.eliminate_dead_code()
    return _closed(graph)


def _closed(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with its constants as further inputs; `meta["constants"]` has them."""
    constants = []
    for node in graph.graph.find_nodes(op="get_attr"):
        constants.append(getattr(graph, node.target).detach())
        with graph.graph.inserting_after(graph.graph.find_nodes(op="placeholder")[-1]):
            holder = graph.graph.placeholder(f"constant_{len(constants)}")
        holder.meta["val"] = constants[-1]
        node.replace_all_uses_with(holder)
        graph.graph.erase_node(node)
    graph.recompile()
    graph.meta["constants"] = constants
    return graph


def _fake(mode: FakeTensorMode, x: Tensor, symbolic: bool) -> Tensor:
    if not symbolic:
        return mode.from_tensor(x)
    sizes = [DimDynamic.DUCK if n and n % N == 0 else DimDynamic.STATIC for n in x.shape]
    return mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(sizes))


def with_pull(f: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The function (cotangent, *inputs) -> (f, its vector-Jacobian product in each floating-point input)."""
    wanted = [x.is_floating_point() for x in inputs]

    def joint(cotangent: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            own = [x.detach().requires_grad_() if want else x for x, want in zip(given, wanted)]
            k = f(*own)
            leaves = [x for x, want in zip(own, wanted) if want]
            if not k.requires_grad:
                return (k, *map(torch.zeros_like, leaves))
            pulled = torch.autograd.grad(k, leaves, cotangent, allow_unused=True, materialize_grads=True)
        return (k.detach(), *pulled)

    return joint


def assert_as_good(got: Tensor, want: Tensor, exact: Tensor) -> None:
    """Assert that single-precision numbers are about as close to the exact ones as PyTorch's are."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), want.isfinite())
    size = exact[finite].abs().max().item() if finite.any() else 0.0
    theirs = (want.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
    ours = (got.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
    assert ours <= 8 * theirs + 32 * torch.finfo(want.dtype).eps * size


@dataclass
class Compiled:
    """A C function, called with tensors as the graph's placeholders are."""

    function: Function
    dtypes: Sequence[torch.dtype]
    call: Any
    workspace: Any
    shapes: Any
    constants: Sequence[Tensor]

    def __call__(self, *args: Any) -> list[Tensor]:
        args = (*args, *self.constants)
        taken = self.function.symbols
        sizes = [args[s.argument] if s.dim is None else args[s.argument].shape[s.dim] for s in taken]
        c_sizes = (ctypes.c_longlong * max(1, len(sizes)))(*sizes)
        given = zip(args, self.function.arguments)
        data = [x for x, a in given if a.kind == "data"]
        numbers = [x for x, a in zip(args, self.function.arguments) if a.kind == "number"]
        outs = self.room(c_sizes)
        n = self.workspace(c_sizes)
        space = torch.full((n + 128,), 255, dtype=torch.uint8)  # nan, if it were read
        start = -(-space.data_ptr() // 64) * 64
        c_numbers = (ctypes.c_double * max(1, len(numbers)))(*numbers)
        self.call(_pointers(data), _pointers(outs), c_sizes, c_numbers, ctypes.c_void_p(start))
        assert (space[start - space.data_ptr() + n :] == 255).all(), "it wrote beyond its workspace"
        return outs

    def room(self, sizes: Any) -> list[Tensor]:
        flat = (ctypes.c_longlong * 64)()
        self.shapes(sizes, flat)
        numbers = iter(flat)
        shapes = [[next(numbers) for _ in shape] for shape in self.function.outputs]
        return [torch.empty(shape, dtype=dtype) for shape, dtype in zip(shapes, self.dtypes)]


SECOND = """
    const void *without[64] = {{0}};  /* the first does not read the cotangent */
    for (int k = 1; k < {n}; k++) without[k] = in[k];
    f{i}(without, out, sizes, numbers, space);
    g{i}(in, out + 1, sizes, numbers, space);
"""


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * max(1, len(tensors)))(*(x.data_ptr() for x in tensors))


def compiled(
    graphs: Sequence[fx.GraphModule], dtype: torch.dtype, flags: str = FLAGS, halved: bool = False
) -> list[Compiled]:
    """The graphs as functions of one library; `halved` those of `with_pull`, f first and then the products."""
    made = [
        translate_pair(graph, (f"f{i}", f"g{i}"), dtype, cotangent=0)
        if halved
        else (translate(graph, f"f{i}", dtype),)
        for i, graph in enumerate(graphs)
    ]
    functions = [replace(x[0], outputs=tuple(shape for y in x for shape in y.outputs)) for x in made]
    libraries = frozenset().union(*(x.libraries for x in functions))
    text = [prelude(dtype, libraries)]
    for i, function in enumerate(functions):
        sizes = [size for shape in function.outputs for size in shape]
        text += [
            *(x.text for x in made[i]),
            f"void run{i}(const void *const *in, void *const *out, const i64 *sizes, const double *numbers, T *space)",
            "{",
            SECOND.format(i=i, n=len(function.arguments))
            if halved
            else f"f{i}(in, out, sizes, numbers, space);",
            "}",
            f"i64 space{i}(const i64 *sizes) {{ (void)sizes; return {function.workspace}; }}",
            f"void shapes{i}(const i64 *sizes, i64 *out) {{ (void)sizes; (void)out;",
            *(f"out[{k}] = {size};" for k, size in enumerate(sizes)),
            "}",
        ]
    library = built("\n".join(text), flags)
    library.native_load(addresses(dtype, libraries))
    return [_bound(library, i, f, g) for i, (f, g) in enumerate(zip(functions, graphs))]


def _bound(library: ctypes.CDLL, i: int, function: Function, graph: fx.GraphModule) -> Compiled:
    space = library[f"space{i}"]
    space.restype = ctypes.c_longlong
    (nodes,) = next(iter(graph.graph.find_nodes(op="output"))).args
    dtypes = [node.meta["val"].dtype for node in (nodes if isinstance(nodes, tuple | list) else [nodes])]
    return Compiled(
        function, dtypes, library[f"run{i}"], space, library[f"shapes{i}"], graph.meta["constants"]
    )


def built(text: str, flags: str = FLAGS) -> ctypes.CDLL:
    """The library of a C file; a warning is an error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graphs.c"
        path.write_text(text)
        command = [
            "cc",
            *flags.split(),
            "-Wall",
            "-Werror",
            "-shared",
            "-fPIC",
            str(path),
            "-o",
            f"{path}.so",
            "-lm",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
        return ctypes.CDLL(f"{path}.so")
