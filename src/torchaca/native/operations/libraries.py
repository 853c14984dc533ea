"""What generated C stands on: types, matrix products and functions of vectors; and where those come from.

Products are BLAS's `sgemm_` and `dgemm_`, functions of vectors Sleef's; PyTorch's own library exports both. What it
does not export on a machine is computed by loops, and by the C library one number at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from .function import Uncovered

TWO = ("pow", "atan2", "hypot", "fmod")
"""Functions of two numbers; the others are of one."""

SLEEF = {
    **dict.fromkeys(
        ("sin", "cos", "tan", "tanh", "sinh", "cosh", "asin", "acos", "atan", "atan2", "log", "exp2"), "u35"
    ),
    **dict.fromkeys(
        ("asinh", "acosh", "atanh", "exp", "expm1", "log2", "log10", "log1p", "erf", "pow"), "u10"
    ),
    "hypot": "u35",
    "erfc": "u15",
}
"""Sleef's functions: at most 3.5, 1.0 or 1.5 units in the last place off. Others are the C library's."""

LANES = (("e", "__AVX512F__", 64), ("d", "__AVX2__", 32))
"""Instruction sets, as vector functions are named after them, and the bytes of their vectors."""

GEMM = Path(__file__).with_name("gemm.c")
PRELUDE = Path(__file__).with_name("prelude.c")


def prelude(dtype: torch.dtype, libraries: Iterable[str]) -> str:
    """The C that goes, once, in front of functions of that dtype: all that `libraries` of theirs need.

    It has `void native_load(void *const *addresses)`, to be called once, with what `addresses` gives.
    """
    if dtype not in (torch.float32, torch.float64):
        raise Uncovered(f"{str(dtype).removeprefix('torch.')} states: use float32 or float64")
    known = set(libraries)
    ctype, suffix = ("float", "f") if dtype == torch.float32 else ("double", "")
    parts = [
        f"#define T_IS_{ctype.upper()}\n",
        PRELUDE.read_text().replace("SUFFIX", suffix).replace("CTYPE", ctype),
    ]
    sets = [
        f"#if {condition}\n    *(void **)&{name} = addresses[{i}];\n#endif"
        for i, (name, _, condition) in enumerate(_imports(dtype, known))
    ]
    if "gemm" in known:
        parts.append(GEMM.read_text())
    parts += [_function(dtype, x) for x in sorted(known - {"gemm"})]
    parts.append(
        "\n".join(
            [
                "#ifndef __CUDACC__",
                "void native_load(void *const *addresses) {",
                "    (void)addresses;",
                *sets,
                "}",
                "#endif\n",
            ]
        )
    )
    return "\n".join(parts)


def addresses(dtype: torch.dtype, libraries: Iterable[str]) -> ctypes.Array[ctypes.c_void_p]:
    """What `native_load` takes: where PyTorch has what `libraries` are made from; NULL for what it has not."""
    symbols = [symbol for _, symbol, _ in _imports(dtype, set(libraries))]
    return (ctypes.c_void_p * max(len(symbols), 1))(*map(_address, symbols))


def _imports(dtype: torch.dtype, known: set[str]) -> list[tuple[str, str, str]]:
    """The pointers in C, the symbols that they point to, and the condition of the preprocessor that C has them."""
    letter, kind = ("s", "f") if dtype == torch.float32 else ("d", "d")
    found = [("gemm_", f"{letter}gemm_", "1")] if "gemm" in known else []
    for name in sorted(known & SLEEF.keys()):
        for _, macro, size in LANES:
            n = size // dtype.itemsize
            symbol = f"Sleef_{name}{kind}{n}_{SLEEF[name]}"
            found.append((f"sleef_{name}{n}", symbol, f"defined(VECTORS) && defined({macro})"))
    return found


@cache
def _library() -> ctypes.CDLL | None:
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            return ctypes.CDLL(str(path))
    return None


@cache
def _address(symbol: str) -> int | None:
    try:
        return ctypes.cast(getattr(_library(), symbol), ctypes.c_void_p).value
    except AttributeError:
        return None


def _function(dtype: torch.dtype, name: str) -> str:
    """v_NAME: a function that loops can be vectorised with, where the compiler and the processor can."""
    names = ("x", "y") if name in TWO else ("x",)
    libm = name + ("f" if dtype == torch.float32 else "")
    one = ", ".join(f"T {x}" for x in names)
    lines = ["#ifndef __CUDACC__", f"extern T {libm}({one});", "#endif"]
    if name not in SLEEF:
        return "\n".join([*lines, f"#define v_{name} {libm}\n"])
    lines += [
        "#ifdef VECTORS",
        f'__attribute__((simd("notinbranch"), const)) extern T v_{name}({one}) __asm__("native_{name}");',
        f'__attribute__((visibility("hidden"))) T v_{name}_one({one}) __asm__("native_{name}");',
        f"T v_{name}_one({one}) {{ return {libm}({', '.join(names)}); }}",
    ]
    for letter, macro, size in (*LANES, ("b", "__SSE2__", 16)):
        n = size // dtype.itemsize
        args = ", ".join(f"T{n} {x}" for x in names)
        label = f"_ZGV{letter}N{n}{'v' * len(names)}_native_{name}"
        head = f'__attribute__((visibility("hidden"))) T{n} lanes{n}_{name}({args}) __asm__("{label}");'
        each = f"T{n} r; for (int i = 0; i < {n}; i++) r[i] = {libm}({', '.join(f'{x}[i]' for x in names)}); return r;"
        lines.append(f"#ifdef {macro}")
        if letter != "b":
            lines.append(f"static T{n} (*sleef_{name}{n})({', '.join(f'T{n}' for _ in names)});")
            each = f"if (sleef_{name}{n}) return sleef_{name}{n}({', '.join(names)}); {each}"
        lines += [head, f"T{n} lanes{n}_{name}({args}) {{ {each} }}", "#endif"]
    return "\n".join([*lines, "#else", f"#define v_{name} {libm}", "#endif\n"])
