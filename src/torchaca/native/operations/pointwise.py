"""Operations that act on each element."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .apply import apply, kind, promoted
from .function import Uncovered
from .table import Call, Operation
from .values import Value

row = partial(Operation, kind="pointwise")


def function(name: str, argument: str = "x") -> Operation:
    """A function of mathematics that the prelude has as v_NAME."""

    def write(call: Call, x: Value) -> Value:
        return apply(call, f"v_{name}({{0}})", x, calls=[name], cost=8)

    return row(name, example=f"torch.{name}({argument})", write=write)


def unary(name: str, formula: str, argument: str = "x", **options: Any) -> Operation:
    """An operation of one tensor."""

    def write(call: Call, x: Value) -> Value:
        return apply(call, formula, x, **options)

    return row(name, example=f"torch.{name}({argument})", write=write)


def binary(name: str, formula: str, overloads: tuple[str, ...], example: str, **options: Any) -> Operation:
    """An operation of two tensors, or of a tensor and a number."""

    def write(call: Call, x: Any, y: Any) -> Value:
        return apply(call, formula, x, y, **options)

    return row(name, example=example, overloads=overloads, write=write)


def comparison(name: str, sign: str) -> Operation:
    """A comparison, in the dtype in which its operands meet."""

    def write(call: Call, x: Any, y: Any) -> Value:
        return apply(call, f"({{0}} {sign} {{1}})", x, y, compute=promoted(call.code, (x, y)))

    example = f"torch.where(torch.{name}(x, y), x, 2 * y)"
    return row(name, example=example, overloads=("Tensor", "Scalar"), write=write)


def logical(name: str, formula: str, example: str) -> Operation:
    """An operation of truth values."""

    def write(call: Call, *operands: Any) -> Value:
        return apply(call, formula, *operands, compute=torch.bool)

    return row(name, example=example, write=write)


def bitwise(name: str, sign: str) -> Operation:
    """An operation of bits; of booleans it is that of truth values."""

    def write(call: Call, x: Any, y: Any) -> Value:
        return apply(call, f"({{0}} {sign} {{1}})", x, y)

    example = f"torch.where((x > 0) {sign} (y > 0), x, y)"
    return row(name, example=example, overloads=("Tensor", "Scalar"), write=write)


def bitwise_not(call: Call, x: Value) -> Value:
    """Each bit the other way; of booleans that is not."""
    return apply(call, "{0} ^ 1" if call.dtype == torch.bool else "~{0}", x)


def sums(sign: str) -> Callable[..., Value]:
    """The writer of `x + alpha y`, or of the difference."""

    def write(call: Call, x: Any, y: Any, alpha: Any = 1) -> Value:
        if alpha == 1:
            return apply(call, f"{{0}} {sign} {{1}}", x, y)
        return apply(call, f"{{0}} {sign} {{2}} * {{1}}", x, y, alpha)

    return write


def reversed_difference(call: Call, x: Any, y: Any, alpha: Any = 1) -> Value:
    """The difference `y - alpha x`."""
    return sums("-")(call, y, x, alpha)


POWERS = {
    0.5: ("v_sqrt({0})", 4),
    -0.5: ("1 / v_sqrt({0})", 4),
    -1.0: ("1 / {0}", 2),
    -2.0: ("1 / ({0} * {0})", 2),
    -1.5: ("1 / ({0} * v_sqrt({0}))", 4),
    1.5: ("{0} * v_sqrt({0})", 4),
}
"""Powers that are no call of a function: the formula, and what it costs."""


def power(call: Call, x: Any, y: Any) -> Value:
    """A power: multiplications and roots where the exponent is a small number."""
    if isinstance(y, int | float) and not isinstance(y, bool):
        if y == int(y) and 1 <= y <= 4:
            return apply(call, " * ".join(["{0}"] * int(y)), x)
        if float(y) in POWERS:
            formula, cost = POWERS[float(y)]
            return apply(call, formula, x, cost=cost)
    if kind(call.dtype) < 2:
        raise Uncovered("pow of integers: convert them to floating-point numbers")
    return apply(call, "v_pow({0}, {1})", x, y, calls=["pow"], cost=16)


def divided(call: Call, x: Any, y: Any, rounding_mode: str | None = None) -> Value:
    """A quotient, or what it is rounded to."""
    if rounding_mode is None:
        return apply(call, "{0} / {1}", x, y, cost=2)
    whole = kind(call.dtype) < 2
    if rounding_mode == "floor":
        return apply(call, "floor_div({0}, {1})" if whole else "floor_quotient({0}, {1})", x, y, cost=8)
    return apply(call, "({1} ? {0} / {1} : 0)" if whole else "v_trunc({0} / {1})", x, y, cost=2)


def remainder(call: Call, x: Any, y: Any) -> Value:
    """The rest of a division, with the sign of the divisor."""
    return apply(
        call, "floor_mod({0}, {1})" if kind(call.dtype) < 2 else "floor_rest({0}, {1})", x, y, cost=8
    )


def where(call: Call, condition: Value, x: Any, y: Any) -> Value:
    """The one or the other, by a condition."""
    formula = "chosen({0}, {1}, {2})" if call.dtype == call.code.dtype else "({0} ? {1} : {2})"
    return apply(call, formula, condition, x, y, compute=(torch.bool, call.dtype, call.dtype))


def choice(name: str, sign: str) -> Callable[..., Value]:
    """The writer of the larger or the smaller of two; nan if one is."""

    def write(call: Call, x: Any, y: Any) -> Value:
        if call.dtype == call.code.dtype:
            return apply(call, f"{name}({{0}}, {{1}})", x, y, cost=2)
        return apply(call, f"({{0}} {sign} {{1}} || {{0}} != {{0}} ? {{0}} : {{1}})", x, y, cost=2)

    return write


larger, smaller = choice("larger", ">"), choice("smaller", "<")


def relu(call: Call, x: Value) -> Value:
    """What is positive, else 0."""
    return larger(call, x, 0)


def absolute(call: Call, x: Value) -> Value:
    """The absolute value."""
    return apply(call, "v_fabs({0})" if call.dtype == call.code.dtype else "({0} < 0 ? -{0} : {0} + 0)", x)


def clamp(call: Call, x: Value, min: Any = None, max: Any = None) -> Value:
    """What is inside of bounds, else the nearer bound; nan stays nan."""
    value = x if min is None else larger(call, x, min)
    return value if max is None else smaller(call, value, max)


def tested(name: str, formula: str) -> Operation:
    """A question to each number."""

    def write(call: Call, x: Value) -> Value:
        return apply(call, formula, x, compute=x.dtype)

    return row(name, example=f"torch.where(torch.{name}(x / (x - x.round())), y, x)", write=write)


def copy(call: Call, x: Value, *_: Any) -> Value:
    """The same numbers, perhaps in another dtype."""
    return x if x.dtype == call.dtype else apply(call, "{0}", x, cost=0)


NUMBERS = ("Tensor", "Scalar")
OPERATIONS = (
    row("add", example="x + y", overloads=NUMBERS, write=sums("+")),
    row("sub", example="x - y", overloads=NUMBERS, write=sums("-")),
    row("rsub", example="1 - x", overloads=NUMBERS, write=reversed_difference),
    binary("mul", "{0} * {1}", NUMBERS, "x * y"),
    row("div", example="x / p", overloads=("Tensor", "Scalar", "Tensor_mode", "Scalar_mode"), write=divided),
    unary("neg", "-{0}"),
    row("pow", example="p ** u", overloads=("Tensor_Scalar", "Tensor_Tensor", "Scalar"), write=power),
    *map(
        function,
        ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "exp2", "expm1", "erf", "erfc", "atan", "asinh"),
    ),
    *(function(name, "p") for name in ("log", "log2", "log10", "log1p")),
    *(function(name, "u") for name in ("asin", "acos", "atanh")),
    function("acosh", "1 + p"),
    unary("sqrt", "v_sqrt({0})", "p", cost=4),
    unary("rsqrt", "1 / v_sqrt({0})", "p", cost=4),
    unary("reciprocal", "1 / {0}", "p", cost=2),
    row("abs", example="torch.abs(x)", write=absolute),
    unary("sign", "(({0} > 0) - ({0} < 0))"),
    unary("floor", "v_floor({0})"),
    unary("ceil", "v_ceil({0})"),
    unary("trunc", "v_trunc({0})"),
    unary("round", "v_rint({0})"),
    row("relu", example="torch.relu(x)", write=relu),
    unary("sigmoid", "1 / (1 + v_exp(-{0}))", calls=["exp"], cost=10),
    binary("atan2", "v_atan2({0}, {1})", ("default",), "torch.atan2(x, y)", calls=["atan2"], cost=12),
    binary("hypot", "v_hypot({0}, {1})", ("default",), "torch.hypot(x, y)", calls=["hypot"], cost=12),
    binary("fmod", "v_fmod({0}, {1})", NUMBERS, "torch.fmod(x, p)", calls=["fmod"], cost=12),
    row("remainder", example="x % p", overloads=NUMBERS, write=remainder),
    row("maximum", example="torch.maximum(x, y)", write=larger),
    row("minimum", example="torch.minimum(x, y)", write=smaller),
    row("clamp", example="x.clamp(-0.5, 0.5)", overloads=("default", "Tensor"), write=clamp),
    *(
        comparison(*x)
        for x in (("gt", ">"), ("lt", "<"), ("ge", ">="), ("le", "<="), ("eq", "=="), ("ne", "!="))
    ),
    row(
        "where",
        example="torch.where(b, x, y)",
        overloads=("self", "ScalarOther", "ScalarSelf", "Scalar"),
        write=where,
    ),
    logical("logical_and", "({0} & {1})", "torch.where(torch.logical_and(x > 0, y > 0), x, y)"),
    logical("logical_or", "({0} | {1})", "torch.where(torch.logical_or(x > 0, y > 0), x, y)"),
    logical("logical_xor", "({0} != {1})", "torch.where(torch.logical_xor(x > 0, y > 0), x, y)"),
    logical("logical_not", "{0} ^ 1", "torch.where(torch.logical_not(x > 0), x, y)"),
    *(bitwise(*x) for x in (("bitwise_and", "&"), ("bitwise_or", "|"), ("bitwise_xor", "^"))),
    row("bitwise_not", example="torch.where(~(x > 0), x, y)", write=bitwise_not),
    row("clone", example="x.clone()", write=copy),
    row("detach", example="x.detach() * y", write=copy),
    row("alias", example="torch.ops.aten.alias(x) * 2", write=copy),
    row("lift_fresh_copy", example="torch.ops.aten.lift_fresh_copy(x.detach()) * y", write=copy),
    row("_to_copy", example="x * i.to(x.dtype)", write=copy),
    row(
        "prims.convert_element_type",
        example="x * torch.ops.prims.convert_element_type(i, x.dtype)",
        write=copy,
    ),
    tested("isnan", "({0} != {0})"),
    tested("isinf", "({0} - {0} != 0 && {0} == {0})"),
)
