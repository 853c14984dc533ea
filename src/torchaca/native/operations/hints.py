"""What is said of an operation that is not covered: why, and how to write it so that it is."""

from __future__ import annotations

from typing import Any

DRAWS = "it draws random numbers: draw them before the solve and let f read them"
VALUES = "its shape or its way depends on values: use torch.where on the whole tensor"
SOLVES = "factorisations of matrices are not covered: compute what does not change before the solve"
COMPLEX = "complex numbers are not covered: compute with real and imaginary parts"
SPECIAL = "there is no vector function for it"
LAYERS = "convolutions and pools are left to the compiled loops, which call PyTorch's own"

REASONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("bernoulli", "rand", "normal", "native_dropout", "dropout", "multinomial", "exponential", "rrelu"),
        DRAWS,
    ),
    (("nonzero", "masked_select", "_local_scalar_dense", "unique", "item", "_assert"), VALUES),
    (
        ("sort", "topk", "kthvalue", "median"),
        "sorting is not covered: sort before the solve, or use amax and amin",
    ),
    (("linalg_", "_linalg_", "cholesky", "lu_", "triangular_solve", "svd", "qr"), SOLVES),
    (("_fft", "fft_", "view_as_complex", "view_as_real", "complex", "real", "imag"), COMPLEX),
    (("convolution", "max_pool", "avg_pool", "_adaptive_avg", "max_unpool", "adaptive_max"), LAYERS),
    (("lgamma", "digamma", "polygamma", "erfinv", "special_", "igamma", "i0", "mvlgamma"), SPECIAL),
    (("_cdist", "cdist", "_pdist"), "write (x[:, None] - y).square().sum(-1).sqrt()"),
    (("scatter_reduce", "index_reduce"), "use scatter_add or index_add, which are"),
    (
        ("_native_batch_norm", "native_batch_norm", "cudnn"),
        "it updates statistics: call eval() on it, or use LayerNorm",
    ),
    (("logcumsumexp", "cummax", "cummin"), "use cumsum or cumprod, which are"),
)
"""Beginnings of names, and what is said of them."""


def why_not(target: Any) -> str:
    """One sentence on an operation that is not covered."""
    name = str(target).removeprefix("aten.")
    plain = name.split(".")[0]
    if plain.endswith("_") and not plain.endswith("__"):
        return f"{name} changes a tensor in place that f was given: let f compute a new one"
    said = next((reason for names, reason in REASONS if plain.startswith(names)), None)
    return f"{name}: {said}" if said else f"{name}: this operation is in no row of the table of operations"
