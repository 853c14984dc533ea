"""The cases of each row of the table of operations: its example on tensors of several shapes and layouts."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from generated import N, captured, with_pull
from torch import Tensor, fx

from torchaca.native.operations import OPERATIONS
from torchaca.native.operations.table import VARIABLES, Operation

SHAPES = {"x": (N, 4), "y": (N, 4), "z": (N, 4), "p": (N, 4), "u": (N, 4), "w": (4, 5), "v": (4,), "c": ()}
SHAPES |= {"s": (2, N, 4), "i": (N, 4), "b": (N, 4)}


def has_symbols(graph: fx.GraphModule) -> bool:
    """Whether sizes are symbolic, after all that was found about them."""
    sizes = (n for node in graph.graph.find_nodes(op="placeholder") for n in node.meta["val"].shape)
    return any(isinstance(n, torch.SymInt) and n.node.expr.free_symbols for n in sizes)


def variables(example: str) -> list[str]:
    """The names in an example that are tensors."""
    names = {node.id for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Name)}
    return [name for name in VARIABLES if name in names]


def tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers as `VARIABLES` says, always the same."""
    made = torch.Generator().manual_seed(1000 * seed + ord(name))
    if name == "i":
        return torch.randint(0, 4, shape, generator=made)
    x = torch.randn(shape, generator=made, dtype=torch.float64)
    if name == "b":
        return x > 0
    return {"p": x.abs() + 0.3, "u": 0.9 * torch.tanh(x)}.get(name, x).to(dtype)


def evaluated(example: str, names: list[str]) -> Callable[..., Tensor]:
    """The example as a function of its variables."""
    code = compile(example, "<example>", "eval")
    return lambda *given: eval(code, {"torch": torch, **dict(zip(names, given))})


@dataclass(frozen=True)
class Case:
    """An example on tensors of certain shapes; `turned` are laid out with their dimensions backwards."""

    row: Operation
    name: str
    shapes: dict[str, tuple[int, ...]]
    turned: bool = False

    def inputs(self, dtype: torch.dtype, n: int = N, seed: int = 0) -> list[Tensor]:
        """A cotangent, and the tensors of the example."""
        sizes = {k: tuple(n if m == N else m for m in shape) for k, shape in self.shapes.items()}
        given = [tensor(k, shape, dtype, seed) for k, shape in sizes.items()]
        if self.turned:
            given = [
                x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
                for x in given
            ]
        out = self.f(*given)
        return [tensor("g", tuple(out.shape), out.dtype, seed), *given]

    @property
    def key(self) -> tuple[str, str]:
        """The same for the same graph: rows of an operation and of its derivative may share an example."""
        return (self.row.example, self.name)

    @property
    def f(self) -> Callable[..., Tensor]:
        return evaluated(self.row.example, list(self.shapes))

    def joint(self, given: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        return with_pull(self.f, given[1:])

    def graph(self, dtype: torch.dtype, symbolic: bool = True) -> fx.GraphModule:
        """The graph; for one size only where PyTorch captures no other, which `meta["fixed"]` says."""
        given = self.inputs(dtype)
        try:
            graph = captured(self.joint(given), given, symbolic)
        except RuntimeError as error:
            if "symbolic" not in str(error):
                raise
            graph = captured(self.joint(given), given, symbolic=False)
        graph.meta["fixed"] = not has_symbols(graph)
        return graph


def cases(row: Operation) -> Iterator[Case]:
    """The row's example as it is, on transposed memory; and broadcast and on 0-dim tensors, if it is pointwise."""
    names = variables(row.example)
    plain = {name: SHAPES[name] for name in names}
    yield Case(row, "plain", plain)
    turned = Case(row, "turned", plain, turned=True)
    if row.name not in (
        "view",
        "as_strided",
    ):  # which PyTorch, and this package, have for contiguous memory only
        yield turned
    if row.kind == "pointwise":
        yield Case(row, "0-dim", dict.fromkeys(names, ()))
        if len(names) > 1:
            yield Case(row, "broadcast", plain | {names[-1]: (4,), names[0]: (N, 1)})


EVERY = [case for row in OPERATIONS for case in cases(row)]
HARDEST = [list(cases(row))[min(1, len(list(cases(row))) - 1)] for row in OPERATIONS]
"""One case a row: on memory that is not contiguous, where it can be."""
