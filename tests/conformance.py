"""Measures docs/conformance.md: features x gradients and methods x gradients, each cell right, refused, or an error.

    python tests/conformance.py     writes the page anew

The test in test_conformance.py runs the same and compares the page.
"""

from __future__ import annotations

import math
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conformance_cases import FEATURES, Case, Options
from gradient_cases import CONTINUOUS, DOUBLE, THROUGH_SEARCH, Everything, differences, loss_of
from torch import Tensor

import torchaca
from torchaca import ACA, GRADIENTS, METHODS, Adjoint, SolverError, solve
from torchaca.core import Gradient

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conformance.md"
PACKAGE = Path(torchaca.__file__).resolve().parent

EXACT = 1e-9
"""Distance from `direct`, for a gradient that is exact for the computed solution."""
NEAR = 1e-5
"""The same for the others, on steps that are small enough."""
DIFFERENCES = 1e-5
"""Distance of `direct` from finite differences."""
STEPS = {"n_steps": 12}
VARIANTS: dict[str, Gradient] = {
    'ACA(checkpoints="sqrt")': ACA(checkpoints="sqrt"),
    "ACA(stagewise=True)": ACA(stagewise=True),
    'Adjoint(state="interpolated", quadrature="gauss")': Adjoint(state="interpolated", quadrature="gauss"),
}
"""Settings with code of their own, beside the rows of GRADIENTS."""
INSTEAD = re.compile(r"\b(use|give|pass|hand|drop|put|set|call|keep|try)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    """`verdict` is "right", "refused", or what is wrong; `words` is what a refusal says."""

    verdict: str
    words: str = ""


@dataclass
class Matrix:
    """Rows x gradients, with the refusals as numbered notes."""

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    @property
    def wrong(self) -> dict[tuple[str, str], str]:
        return {place: c.verdict for place, c in self.cells.items() if c.verdict not in ("right", "refused")}

    def table(self, title: str, notes: list[str]) -> str:
        rows = list(dict.fromkeys(row for row, _ in self.cells))
        columns = list(dict.fromkeys(column for _, column in self.cells))
        lines = [[title, *(f"`{column}`" for column in columns)], ["---"] * (1 + len(columns))]
        for row in rows:
            lines.append([row, *(self._shown(self.cells[row, column], notes) for column in columns)])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    @staticmethod
    def _shown(cell: Cell, notes: list[str]) -> str:
        if cell.verdict != "refused":
            return cell.verdict
        if cell.words not in notes:
            notes.append(cell.words)
        return f"refused [{notes.index(cell.words) + 1}]"


def gradients() -> dict[str, Gradient]:
    """All columns: the registry, and the variants."""
    return {**{name: make() for name, make in GRADIENTS.items()}, **VARIANTS}


def method_of(gradient: Gradient) -> str:
    """The method that a gradient is measured with: dopri5, or the first one that it takes."""
    for name in ["dopri5", *METHODS]:
        y0 = torch.ones(1, dtype=DOUBLE, requires_grad=True)
        try:
            solve(lambda t, y: -y, y0, [0.0, 1.0], method=name, n_steps=1, gradient=gradient)
        except ValueError:
            continue
        return name
    raise AssertionError(f"no method for {gradient}")


def features() -> Matrix:
    """Every feature under every gradient."""
    matrix, found = Matrix(), gradients()
    methods = {name: method_of(gradient) for name, gradient in found.items()}
    for row, build in FEATURES.items():
        case = build()
        truths = Truths(case)
        for name, gradient in found.items():
            options = {"method": methods[name], **(STEPS if case.options is None else case.options)}
            if "rtol" in options and METHODS[methods[name]].order < 4:
                options |= {"rtol": 1e-3, "atol": 1e-4}
            matrix.cells[row, name] = measured(case, gradient, options, truths)
    return matrix


class Truths:
    """What `direct` says, and whether finite differences agree; asked for once per method."""

    def __init__(self, case: Case) -> None:
        self.case, self.known = case, {}

    def direct(self, options: Options) -> dict[str, Any]:
        key = str(options)
        if key not in self.known:
            try:
                self.known[key] = derivative(self.case, torchaca.Direct(), options)
            except (ValueError, NotImplementedError):  # it may refuse what another gradient can
                self.known[key] = derivative(replace(self.case, derivative=None), torchaca.Direct(), options)
        return self.known[key]

    def independent(self, options: Options) -> dict[str, Tensor]:
        if self.case.truth is not None:
            return self.case.truth()
        return finite_differences(self.case, options)


def measured(case: Case, gradient: Gradient, options: Options, truths: Truths) -> Cell:
    """One cell of the features' matrix."""

    def compare() -> float:
        found = derivative(case, gradient, options)
        if isinstance(gradient, torchaca.Direct):
            right = truths.independent(options)
            return worst({name: found[name] for name in right}, right) / (case.tolerance or DIFFERENCES)
        tolerance = NEAR if gradient.name in CONTINUOUS | THROUGH_SEARCH else EXACT
        return worst(found, truths.direct(options)) / (case.tolerance or tolerance)

    return judged(compare)


def judged(compare: Callable[[], float]) -> Cell:
    """The verdict on a comparison that returns an error in units of what is tolerated, or refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, in forward mode
            error = compare()
    except (ValueError, TypeError, NotImplementedError, SolverError) as refusal:
        words = " ".join(str(refusal).split())
        if not said_by_torchaca(refusal):
            return Cell(f"{type(refusal).__name__}, not of torchaca: {words}")
        return (
            Cell("refused", words) if INSTEAD.search(words) else Cell(f"refused without a way out: {words}")
        )
    except Exception as error:
        return Cell(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return Cell("right") if error <= 1 else Cell(f"WRONG, by {error:.1e} times what is tolerated")


def said_by_torchaca(error: BaseException) -> bool:
    """Whether an error was raised in the library itself."""
    return PACKAGE in Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve().parents


def derivative(case: Case, gradient: Gradient, options: Options) -> dict[str, Any]:
    if case.derivative is not None:
        return case.derivative(gradient, options)
    total = case.program(gradient, options).sum()
    grads = torch.autograd.grad(total, list(case.inputs.values()), allow_unused=True)
    return dict(zip(case.inputs, grads, strict=True))


def worst(found: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """The largest relative difference of all tensors; nan counts as infinite."""
    wide = [
        {name: None if x is None else x.double() for name, x in grads.items()} for grads in (found, right)
    ]
    off = max(differences(*wide).values())
    return float("inf") if math.isnan(off) else off


def finite_differences(case: Case, options: Options, eps: float = 1e-5) -> dict[str, Tensor]:
    """d sum(program) / d inputs without autograd (the program itself may use it)."""
    found = {}
    for name, x in case.inputs.items():
        flat, slopes = x.data.reshape(-1), []
        for i in range(x.numel()):
            ends = []
            for sign in (1, -1):
                before = flat[i].item()
                flat[i] = before + sign * eps
                ends.append(case.program(torchaca.Direct(), options).sum().item())
                flat[i] = before
            slopes.append((ends[0] - ends[1]) / (2 * eps))
        found[name] = torch.tensor(slopes, dtype=DOUBLE).reshape(x.shape)
    return found


TIMES = [0.0, 0.1, 0.7, 0.8, 1.5]
FEW, MANY = 6, 24  # steps


def methods() -> Matrix:
    """Every method under every gradient, on one problem with all kinds of inputs."""
    matrix, case = Matrix(), Everything(TIMES)
    truth = case.gradients("direct", method="dopri8", n_steps=20)
    for row, method in METHODS.items():
        direct = case.gradients("direct", method=row, n_steps=FEW)
        slope = _slope(case, row)
        for name in GRADIENTS:
            gradient = GRADIENTS[name]()
            if gradient.name == "direct":
                compare = partial(_slope_distance, direct, slope)
            elif gradient.name in CONTINUOUS:
                compare = partial(_convergence, case, truth, gradient, row)
            else:
                compare = partial(_distance, case, direct, gradient, row)
            cell = judged(compare)  # and a refusal that names the method is one note for all of them
            cell = replace(cell, words=cell.words.replace(repr(row), "this one"))
            matrix.cells[f"{row}, order {method.order}", name] = cell
    return matrix


def _slope(case: Everything, method: str, eps: float = 1e-5) -> float:
    """The derivative of the loss as all inputs move by one, by a difference."""

    def moved(by: float) -> float:
        with torch.no_grad():
            for x in case.inputs.values():
                x += by
        return loss_of(case.solve("direct", method=method, n_steps=FEW).ys).item()

    high, low = moved(eps), moved(-2 * eps)
    moved(eps)
    return (high - low) / (2 * eps)


def _slope_distance(direct: dict[str, Any], slope: float) -> float:
    total = sum(grad.sum().item() for grad in direct.values() if grad is not None)
    return abs(total / slope - 1) / DIFFERENCES


def _distance(case: Everything, direct: dict[str, Any], gradient: Gradient, method: str) -> float:
    """From `direct` on the same steps."""
    return worst(case.gradients(gradient, method=method, n_steps=FEW), direct) / EXACT


def _convergence(case: Everything, truth: dict[str, Any], gradient: Gradient, method: str) -> float:
    """The error with many steps, in units of two thirds of that with few."""
    few, many = (worst(case.gradients(gradient, method=method, n_steps=n), truth) for n in (FEW, MANY))
    return many / (few * 2 / 3 + EXACT)


ABOUT = f"""# What works with which gradient

Written by `python tests/conformance.py`, and measured again by every run of the tests, which fail where this page is
not what they find, or where a cell is anything but right or refused.

- **right**: the derivative equals that of `direct` to {EXACT:g} of its size (float64), for gradients that are not
  exact on the computed solution to {NEAR:g}. `direct` itself equals finite differences to {DIFFERENCES:g}. In
  bfloat16, all equal float64 to 5 %.
- **refused [n]**: an error at once or in the backward pass, whose words are below and name what to do instead.

Nothing else happens: no gradient is None, zero or wrong without a word.
"""


def page(matrices: Mapping[str, Matrix]) -> str:
    """The page, from the matrices by the title of their first column."""
    notes: list[str] = []
    tables = [matrix.table(title, notes) for title, matrix in matrices.items()]
    used = {name: method_of(gradient) for name, gradient in gradients().items()}
    other = [f"`{name}` with {method}" for name, method in used.items() if method != "dopri5"]
    how = f"The gradients are measured with dopri5{', '.join(['', *other])}."
    first, second = tables
    listed = "\n".join(f"{i}. {note}" for i, note in enumerate(notes, 1))
    return (
        f"{ABOUT}\n## Features\n\n{how}\n\n{first}\n\n## Methods\n\nOne problem with a nested state, parameters, "
        "arguments, captured tensors and output times, all of them differentiated, on a few steps. `adjoint` is right "
        f"where its error falls as it should with more steps, the others as above.\n\n{second}\n\n## Refusals\n\n"
        f"{listed}\n"
    )


def run() -> dict[str, Matrix]:
    """Both matrices."""
    torch.manual_seed(0)
    return {"feature": features(), "method": methods()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    matrices = run()
    PAGE.write_text(page(matrices))
    for matrix in matrices.values():
        for place, verdict in matrix.wrong.items():
            print(*place, verdict, sep=": ", file=sys.stderr)
    sys.exit(any(matrix.wrong for matrix in matrices.values()))
