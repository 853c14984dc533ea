"""From a graph of ATen operations to one C function."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import fx

from . import composed, indexing, joining, made, parts, pointwise, products, reductions, shapes
from .assembly import Output, Part, assembled
from .code import Code
from .decompose import decomposed, is_tensor, rules
from .function import Argument, CFunction, Uncovered
from .hints import why_not
from .sizes import Symbols, product, size_of
from .table import Call, Operation, by_target
from .values import Place, Value

OPERATIONS: tuple[Operation, ...] = (
    *pointwise.OPERATIONS,
    *made.OPERATIONS,
    *shapes.OPERATIONS,
    *parts.OPERATIONS,
    *joining.OPERATIONS,
    *indexing.OPERATIONS,
    *products.OPERATIONS,
    *reductions.OPERATIONS,
    *composed.OPERATIONS,
)
"""The table."""

ROWS = by_target(OPERATIONS)
COVERED = frozenset(target for target, row in ROWS.items() if row.write is not None)
COMPOSED = tuple(target for target, row in ROWS.items() if row.write is None)
NO_EFFECT = {"layout", "device", "pin_memory", "memory_format", "non_blocking", "dtype", "implicit", "copy"}
"""Arguments of operations that say nothing about numbers; a dtype is that of the result."""

ONCE = 2
"""What a number may cost and yet be computed again for each use."""


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `make_fx` takes as `decomposition_table`, so that a graph has operations with rows wherever there is a way.

    `translate` decomposes what is left: twice the time, and some operations cannot be captured with symbolic sizes.
    """
    return rules(COVERED, COMPOSED)


def translate(
    graph_module: fx.GraphModule, name: str, dtype: torch.dtype, samples_last: bool = False
) -> CFunction:
    """Translate a graph into a C function.

    Parameters
    ----------
    graph_module
        A graph of ATen operations, as `make_fx` leaves it. Its nodes have `meta["val"]`, its outputs are tensors.
    name
        That of the C function: an identifier.
    dtype
        torch.float32 or torch.float64: that of nearly all of its numbers, which C calls T.
    samples_last
        Whether inputs and outputs have in their last dimension what is the first one inside.

    Raises
    ------
    Uncovered
        If an operation, a dtype or a size is not translated; the message says how to write it, if there is a way.
    """
    nodes = list(decomposed(graph_module, COVERED, decompositions()).graph.nodes)
    code, values, arguments, heads = _begun(nodes, dtype)
    code.samples_last = samples_last
    for node in nodes:
        _step(code, node, values)
    return assembled(code, arguments, heads, [Part(name, _outputs(code, _wanted(nodes), values))])[0]


def translate_pair(
    graph_module: fx.GraphModule, names: tuple[str, str], dtype: torch.dtype, cotangent: int, first: int = 1
) -> tuple[CFunction, CFunction]:
    """Translate a graph into two C functions: what does not depend on one of its inputs, and then the rest.

    The second continues in the workspace that the first has left, so that a vector-Jacobian product computes nothing
    again. Both take all arguments; the first reads nothing of `cotangent`.

    Parameters
    ----------
    graph_module
        As in `translate`.
    names
        Those of the functions.
    dtype
        As in `translate`.
    cotangent
        The number of the placeholder.
    first
        How many of the outputs, in front, are the first function's; they do not depend on the cotangent. The others
        are the second's.

    Raises
    ------
    Uncovered
        As in `translate`.
    """
    nodes = list(decomposed(graph_module, COVERED, decompositions()).graph.nodes)
    late = {[node for node in nodes if node.op == "placeholder"][cotangent]}
    for node in nodes:
        if not late.isdisjoint(node.all_input_nodes) and node.op == "call_function":
            late.add(node)
    wanted = _wanted(nodes)
    if not late.isdisjoint(wanted[:first]):
        raise ValueError("an output of the first function depends on the cotangent")
    code, values, arguments, heads = _begun(nodes, dtype)
    for node in nodes:
        if node not in late:
            _step(code, node, values, late)
    early = _outputs(code, wanted[:first], values)
    copies = _outputs(code, wanted[:first], values, own=False)
    code.barrier = len(code.statements)
    for node in nodes:
        if node in late:
            _step(code, node, values)
    rest = _outputs(code, wanted[first:], values, {name for name, _ in early})
    read = set().union(*(x.reads for x in code.statements[code.barrier :]))
    chosen = [b if a[0] in read else a for a, b in zip(early, copies, strict=True)]
    one, two = assembled(code, arguments, heads, [Part(names[0], chosen), Part(names[1], rest)])
    return one, two


def _begun(
    nodes: Sequence[fx.Node], dtype: torch.dtype
) -> tuple[Code, dict[fx.Node, Any], list[Argument], list[str]]:
    """The code of a graph with its inputs, if all of its operations have rows."""
    targets = dict.fromkeys(node.target for node in nodes if node.op == "call_function" and is_tensor(node))
    missing = [
        why_not(target) for target in targets if target not in COVERED and target is not operator.getitem
    ]
    if missing:
        raise Uncovered("; ".join(missing))
    holders = [node for node in nodes if node.op == "placeholder"]
    code = Code(dtype, Symbols.of([node.meta.get("val") for node in holders]))
    values: dict[fx.Node, Any] = {}
    return code, values, *_inputs(code, holders, values)


def _step(code: Code, node: fx.Node, values: dict[fx.Node, Any], late: Collection[fx.Node] = ()) -> None:
    """Translate a node; `late` are those of another function."""
    if node.op == "call_function":
        values[node] = _value(code, node, values, late)
    elif node.op not in ("placeholder", "output"):
        raise Uncovered(f"a graph with {node.op.replace('_', ' ')}: constants have to be inputs of it")


def _wanted(nodes: Sequence[fx.Node]) -> list[Any]:
    (output,) = nodes[-1].args
    return list(output) if isinstance(output, Sequence) else [output]


def _inputs(
    code: Code, holders: Sequence[fx.Node], values: dict[fx.Node, Any]
) -> tuple[list[Argument], list[str]]:
    """The arguments, and the C that names them."""
    arguments, heads, data, numbers = [], [], 0, 0
    heads += [f"const i64 n{i} = sizes[{i}]; (void)n{i};" for i in range(len(code.symbols.taken))]
    for node in holders:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            plain_tensor(node, value)
            ctype = code.ctype(value.dtype)
            heads.append(f"const {ctype} *const a{data} = (const {ctype} *)in[{data}]; (void)a{data};")
            place = Place(f"a{data}", tuple(size_of(s) for s in value.stride()))
            shape = [size_of(n) for n in value.shape]
            values[node] = code.placed(f"a{data}", shape, value.dtype, place)
            arguments.append(Argument("data", data))
            data += 1
        elif isinstance(value, float | torch.SymFloat):
            heads.append(f"const double z{numbers} = numbers[{numbers}]; (void)z{numbers};")
            number = isinstance(value, float)  # else the symbol is in the expressions of others
            values[node] = code.constant(f"z{numbers}", torch.float64) if number else size_of(value)
            arguments.append(Argument("number", numbers))
            numbers += 1
        else:
            values[node] = None if value is None else size_of(value)
            arguments.append(Argument("size", None))
    return arguments, heads


def plain_tensor(node: fx.Node, value: torch.Tensor) -> None:
    """Refuse what is no dense tensor of real numbers."""
    if value.layout != torch.strided:
        raise Uncovered(f"a sparse tensor ({node.target}): use a dense one")
    if value.is_complex():
        raise Uncovered("complex numbers: compute with real and imaginary parts")


def _value(code: Code, node: fx.Node, values: dict[fx.Node, Any], late: Collection[fx.Node]) -> Any:
    val = node.meta.get("val")
    if isinstance(val, int | float | torch.SymInt | torch.SymFloat | torch.SymBool):
        return size_of(val)  # arithmetic of sizes
    if node.target is operator.getitem:
        return values[node.all_input_nodes[0]][node.args[1]]
    row = ROWS.get(node.target)
    if row is None or row.write is None:  # what gives neither tensors nor sizes
        raise Uncovered(why_not(node.target))
    results = val if isinstance(val, list | tuple) else [val]
    made = tuple(
        (tuple(size_of(n) for n in x.shape), x.dtype) for x in results if isinstance(x, torch.Tensor)
    )
    for shape_of in results:
        if isinstance(shape_of, torch.Tensor):
            plain_tensor(node, shape_of)
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda x: values[x])
    kwargs = {key: x for key, x in kwargs.items() if key not in NO_EFFECT}
    takes = tuple(x.meta["val"] for x in node.all_input_nodes if isinstance(x.meta.get("val"), torch.Tensor))
    code.doing = row.name
    try:
        result = row.write(Call(code, *made[0], results=made, inputs=takes), *args, **kwargs)
    except (TypeError, KeyError, IndexError) as error:  # arguments that no row knows
        raise Uncovered(f"{row.name} in a form that is not covered") from error
    often = len(node.users) > 1 or any(user in late for user in node.users)
    return [_kept(code, x, often) for x in result] if isinstance(result, list) else _kept(code, result, often)


def _kept(code: Code, value: Value, often: bool) -> Value:
    """The value, computed once if it has several readers for whom it would be computed again."""
    often = often and (value.cost > ONCE or value.product is not None)
    return code.real(value) if often else value


def _outputs(
    code: Code,
    nodes: Sequence[Any],
    values: dict[fx.Node, Any],
    taken: Collection[str] = (),
    own: bool = True,
) -> list[Output]:
    """The buffers that are outputs, and their shapes.

    They are those of the values themselves where that is `own`, no other output and not `taken`.
    """
    found: list[Output] = []
    code.doing = "output"
    for node in nodes:
        if not isinstance(node, fx.Node) or not isinstance(values[node], Value):
            raise Uncovered("an output that is no tensor")
        value = code.real(values[node])
        place = value.place
        assert place is not None
        buffer = code.buffers.get(place.buffer)
        whole = own and buffer is not None and value.flat and buffer.numel == product(value.shape)
        if not whole or place.buffer in taken or any(name == place.buffer for name, _ in found):
            target = code.new(value.shape, value.dtype)
            code.write(value, target)
            assert target.place is not None
            place = target.place
        found.append((place.buffer, value.shape))
    return found
