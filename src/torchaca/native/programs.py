"""f as code: which programs there are for a graph of Dynamo's, and how one is called.

A program is found by what is asked of it, and by sizes for which its graph is right: another batch size is mostly no
other program. Programs of one graph lie in it, so that they live as long as it does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..compiled.capture import TRACING
from ..compiled.failure import CannotCompile, attempt, first_line
from ..compiled.field_graph import FieldGraph
from . import records
from .build import Build, CannotBuild, Library
from .graphs import Lanes, Traced, Wanted, dynamic_of, pull_graph, value_graph
from .operations import Function, Uncovered, addresses, prelude, translate

ENTRY = """
#define API __attribute__((visibility("default")))
API i64 {name}_bytes(const i64 *sizes) {{ (void)sizes; return {bytes}; }}
API void {name}_load(void *const *addresses) {{ native_load(addresses); }}
API void {name}_entry(const void *const *in, void *const *out, const i64 *sizes, const double *numbers, T *workspace) {{
    {name}(in, out, sizes, numbers, workspace);
}}
"""
"""What a library shows of a graph's function."""

ALIGNED = 64  # bytes


@dataclass(frozen=True)
class Code:
    """One graph, compiled: how it is called, and for which sizes it is right."""

    function: Function
    build: Build
    name: str
    traced: Traced
    dtype: torch.dtype

    def sizes(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        """The values of its symbols for inputs of these shapes."""
        return {s.name: tensors[s.argument].shape[s.dim] for s in self.function.symbols if s.dim is not None}

    @cached_property
    def result(self) -> torch.dtype:
        """The dtype of its first output."""
        (output,) = self.traced.graph.graph.find_nodes(op="output")
        return output.args[0][0].meta["val"].dtype

    @cached_property
    def library(self) -> Library:
        """The code, loaded; waits for the compiler.

        Raises
        ------
        CannotBuild
        """
        library = self.build.result()
        library.function(f"{self.name}_load")(addresses(self.dtype, self.function.libraries))
        return library

    @cached_property
    def _entry(self) -> int:
        return self.library.pointer(f"{self.name}_entry")

    def evaluate(self, called: Called) -> None:
        """Run the code once."""
        g = called.graph
        self._run(g.inputs, g.outputs, g.sizes, g.numbers, g.workspace)

    @cached_property
    def _run(self) -> Any:
        found = self.library.function(f"{self.name}_entry")
        found.restype, found.argtypes = None, [ctypes.c_void_p] * 5
        return found

    @cached_property
    def _bytes(self) -> Any:
        found = self.library.function(f"{self.name}_bytes")
        found.restype, found.argtypes = ctypes.c_int64, [ctypes.c_void_p]
        return found

    @cached_property
    def _data(self) -> bool:
        """Whether its inputs are tensors, all of them."""
        return all(argument.kind == "data" for argument in self.function.arguments)

    def workspace(self, tensors: Sequence[Tensor]) -> int:
        """The bytes that it takes beside its inputs and outputs."""
        return self._bytes(self._sizes(tensors))

    def _sizes(self, tensors: Sequence[Tensor]) -> Any:
        return (records.WHOLE * max(1, len(self.function.symbols)))(*self.sizes(tensors).values())

    def called_with(self, tensors: Sequence[Tensor], outputs: Sequence[Tensor | None]) -> Called:
        """The code together with its inputs, the first of which change from call to call."""
        own: Sequence[Tensor] = [*tensors, *self.traced.constants]
        if not self._data:
            kinds = [argument.kind for argument in self.function.arguments]
            own = [x for x, kind in zip(own, kinds, strict=True) if kind == "data"]
        sizes = self._sizes(tensors)
        workspace = torch.empty(self._bytes(sizes) + ALIGNED, dtype=torch.uint8, device="cpu")
        start = -(-workspace.data_ptr() // ALIGNED) * ALIGNED
        given, found = records.places(own), records.places(outputs)
        graph = records.Graph(self._entry, *map(records.address, (given, found, sizes)), None, start)
        return Called(graph, given, found, (sizes, workspace, own, outputs))


@dataclass(frozen=True)
class Called:
    """A graph as the loops in C call it, where its inputs and outputs are, and what has to live as long."""

    graph: records.Graph
    inputs: Any
    outputs: Any
    alive: tuple[Any, ...]


Asked = tuple[Wanted | None, Lanes | None]
"""What of f there is code for: its value, or a product; for one state, or for lanes."""


@dataclass
class Programs:
    """What was compiled for one graph of Dynamo's, `f`, and why something could not be."""

    f: FieldGraph
    codes: dict[Asked, list[Code]] = field(default_factory=dict)
    known: dict[Any, Code] = field(default_factory=dict)
    failed: dict[Asked, str] = field(default_factory=dict)
    changing: dict[tuple[int, Lanes | None], list[tuple[int, int]]] = field(default_factory=dict)

    @staticmethod
    def of(f: FieldGraph) -> Programs:
        """Those of a graph, which holds them."""
        return f.loops.setdefault("native", Programs(f))

    def value(self, t: Tensor, y: Tensor, inputs: Sequence[Tensor], lanes: Lanes | None = None) -> Code:
        """Code of f for inputs such as these.

        Raises
        ------
        CannotCompile
            For an operation that there is no code for.
        """
        return self._found((None, lanes), (t, y, *inputs))

    def pull(
        self, t: Tensor, y: Tensor, inputs: Sequence[Tensor], wanted: Wanted, lanes: Lanes | None = None
    ) -> Code:
        """The same of a vector-Jacobian product of f."""
        return self._found((wanted, lanes), (t, y, y, *inputs))

    def _changing(self, lead: int, lanes: Lanes | None) -> list[tuple[int, int]]:
        """The sizes that may change, by where the inputs of f start."""
        if (lead, lanes) not in self.changing:
            own = dynamic_of(self.f, lead, lanes)
            self.changing[lead, lanes] = [(i, d) for i, dims in own.items() for d in dims]
        return self.changing[lead, lanes]

    def _traced(self, key: Asked, given: Sequence[Tensor]) -> Traced:
        wanted, lanes = key
        try:
            return self._graph(wanted, lanes, given)
        except (RuntimeError, ValueError):
            if lanes is None:
                raise
            return self._graph(
                wanted, replace(lanes, copies=True), given
            )  # a view that needs its samples first

    def _graph(self, wanted: Wanted | None, lanes: Lanes | None, given: Sequence[Tensor]) -> Traced:
        return (
            value_graph(self.f, given, lanes) if wanted is None else pull_graph(self.f, given, wanted, lanes)
        )

    def _found(self, key: Asked, given: Sequence[Tensor]) -> Code:
        name, lead = ("value", 2) if key[0] is None else ("pull", 3)
        place = key, *(given[i].shape[dim] for i, dim in self._changing(lead, key[1]))
        if place in self.known:
            return self.known[place]
        codes = self.codes.setdefault(key, [])
        fitting = next((code for code in codes if code.traced.holds(given)), None)
        if fitting is None and key not in self.failed:
            try:
                with TRACING, attempt():
                    fitting = compiled(self._traced(key, given), name, given[1].dtype)
                codes.append(fitting)
            except Uncovered as reason:
                self.failed[key] = f"f has {reason}"
            except Exception as error:  # of PyTorch's tracer
                self.failed[key] = f"f cannot be traced ({first_line(error)})"
        if fitting is None:
            raise CannotCompile(self.failed[key])  # another attempt would take as long
        self.known[place] = fitting
        return fitting


def loaded(code: Code) -> Code:
    """The code, when it is there.

    Raises
    ------
    CannotCompile
        Where the compiler fails.
    """
    try:
        code.library  # noqa: B018
    except CannotBuild as reason:
        raise CannotCompile(str(reason)) from reason
    return code


def compiled(traced: Traced, name: str, dtype: torch.dtype) -> Code:
    """The code of a traced graph, in the making."""
    function = translate(traced.graph, name, dtype, traced.samples_last)
    entry = ENTRY.format(name=name, bytes=function.workspace)
    text = "\n".join([prelude(dtype, function.libraries), function.text, entry])
    return Code(function, Build(text, name), name, traced, dtype)
