"""The gradient's own error control: true errors, what the library says of them, and evaluations.

    python benchmarks/gradient_control.py [--random 1000] [--first 0] [--kept runs.jsonl]
        [--write docs/results/gradient_control.md]

Problems that are in the file of `--kept` do not run again, and those that run are added to it.

Each cell of the first table: the true relative error of the gradient, the largest over inputs; then evaluations of f,
forward and backward, in brackets. `aca` is `ACA(checkpoints="all")` with `at_rest="ignore"`, *bounded* the same with
`at_rest="resolve"`, the default. Of `grad_rtol`, with `at_rest="ignore"`: the true error, the estimate, and evaluations
as they are, over those of aca, and over those of the cheapest rtol of plain aca (among powers of 10^(1/4)) that comes
to the same error, "-" where none does. True gradients: dopri8 at rtol 1e-11 with short steps.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gradient_problems import Problem, at_rest, error, moving, one_of, random_problem
from machine import command_line, described, publish, table

import torchaca as aca

PLAIN = aca.ACA(checkpoints="all")
GOALS = (1e-1, 1e-2, 1e-3)
IGNORE = {"at_rest": "ignore"}


def ladder(problem: Problem, truth: Sequence[torch.Tensor], least: float) -> list[tuple[int, float]]:
    """Evaluations and errors of plain aca, from the problem's rtol to a tenth of an error, on powers of 10^(1/4)."""
    found: list[tuple[int, float]] = []
    rtol = problem.rtol
    while rtol > 1e-11 and (not found or found[-1][1] > 0.5 * least) and problem.kind != "rest":
        atol = problem.atol * rtol / problem.rtol
        one = problem.gradient(PLAIN, rtol=rtol, atol=atol, max_steps=100_000, **IGNORE)
        found.append((one.evaluations, error(one.grads, truth)))
        rtol /= 10**0.25
    return found


def times(evaluations: int, of: Sequence[tuple[int, float]], wanted: float) -> str:
    """How many times those of the cheapest tolerance."""
    enough = [n for n, e in of if e <= wanted]
    return f"{evaluations / min(enough):.1f}" if enough else "-"


def row_of(problem: Problem) -> dict[str, object]:
    """One line of the first table."""
    truth = problem.truth()
    plain = problem.gradient(PLAIN, **IGNORE)
    row: dict[str, object] = {"problem": problem.name, "steps": plain.steps}
    others = {"aca": plain, "bounded": problem.gradient(PLAIN), "substeps=2": None}
    others["substeps=2"] = problem.gradient(aca.ACA(substeps=2), **IGNORE)
    for name, one in others.items():
        row[name] = f"{error(one.grads, truth):.1e} ({one.evaluations})"
    found = []
    for goal in GOALS:
        try:
            found.append(problem.gradient(aca.ACA(grad_rtol=goal), **IGNORE))
        except aca.SolverError as failure:
            found.append(failure)
    errors = [error(one.grads, truth) for one in found if not isinstance(one, aca.SolverError)]
    rungs = ladder(problem, truth, min(errors, default=1.0))
    for goal, one in zip(GOALS, found, strict=True):
        if isinstance(one, aca.SolverError):
            row[f"{goal:g}"] = one.kind
            continue
        off = error(one.grads, truth)
        row[f"{goal:g}"] = (
            f"{off:.1e}, {one.estimate:.1e}, {one.evaluations} ({one.evaluations / plain.evaluations:.1f}, "
            f"{times(one.evaluations, rungs, off)})"
        )
    return row


@dataclass(frozen=True)
class Run:
    """One random problem, at one tolerance: None for what was refused."""

    seed: int
    name: str
    method: str
    kind: str
    goal: float
    plain: float
    ratio: float
    steps: int
    error: float | None
    estimate: float
    refusal: str = ""


def run_of(seed: int) -> Run | None:
    """One random problem; None where nothing is known of its true gradient, or plain aca has none."""
    problem = random_problem(seed)
    goal = one_of(torch.Generator().manual_seed(seed), [1e-1, 1e-1, 1e-2, 1e-2, 1e-3])
    try:
        truth = problem.truth()
        plain = problem.gradient(PLAIN, **IGNORE)
    except aca.SolverError:
        return None
    told = seed, problem.name, problem.method, problem.kind, goal, error(plain.grads, truth)
    try:
        one = problem.gradient(aca.ACA(grad_rtol=goal), **IGNORE)
    except aca.SolverError as failure:
        return Run(*told, math.nan, plain.steps, None, math.inf, str(failure))
    ratio = one.evaluations / plain.evaluations
    return Run(*told, ratio, plain.steps, error(one.grads, truth), float(one.estimate or 0.0))


def runs(first: int, n: int, kept: Path | None = None) -> Iterator[Run]:
    """Random problems whose true gradient is known."""

    def found(seed: int) -> dict[str, Any] | None:
        run = run_of(seed)
        return run and asdict(run)

    for row in once(range(first, first + n), found, kept):
        if row is not None:
            yield Run(**row)


def once(keys: Iterable[Any], found: Callable[[Any], Any], kept: Path | None) -> Iterator[Any]:
    """What is found for each key, but for those that are in the file `kept`, to which the others are added."""
    known: dict[Any, Any] = {}
    if kept is not None and kept.exists():
        known = dict(json.loads(line) for line in kept.read_text().splitlines())
    for key in keys:
        if key not in known:
            known[key] = found(key)
            if kept is not None:
                with kept.open("a") as lines:
                    lines.write(json.dumps([key, known[key]]) + "\n")
        yield known[key]


def summary(found: Sequence[Run]) -> list[dict[str, object]]:
    """What the random problems say."""
    accepted = [(run, run.error) for run in found if run.error is not None]
    judged = [(run, e) for run, e in accepted if e > run.goal / 100]
    met = [run for run, _ in accepted if run.plain <= run.goal and run.kind != "rest"]
    many = sorted(run.ratio for run in met if run.steps >= 8 and run.kind == "")
    few = sorted(run.ratio for run in met if run.steps < 8 or run.kind != "")
    lines: dict[str, object] = {
        "problems": len(found),
        "refused (SolverError)": len(found) - len(accepted),
        "wrong without it (by more than grad_rtol)": sum(run.plain > run.goal for run in found),
        "accepted, true error above grad_rtol": sum(e > run.goal for run, e in accepted),
        "above 5 grad_rtol": sum(e > 5 * run.goal for run, e in accepted),
        "estimates of errors above grad_rtol / 100": len(judged),
        "of those below a third of the true error": sum(run.estimate < e / 3 for run, e in judged),
        "below a sixth": sum(run.estimate < e / 6 for run, e in judged),
        "evaluations over plain aca where that was right, 8 steps and more: median, 90 %, largest": spread(
            many
        ),
        "fewer steps, or stiff": spread(few),
    }
    return [{"of random problems": name, "": value} for name, value in lines.items()]


def short(found: Sequence[Run]) -> list[dict[str, object]]:
    """Those that fall short: refused, worse than grad_rtol, or estimated as less than a sixth of what they are."""
    return [
        {
            "seed and problem": run.name,
            "method": run.method,
            "grad_rtol": f"{run.goal:g}",
            "error of plain aca": f"{run.plain:.1e}",
            "error": "refused" if run.error is None else f"{run.error:.1e}",
            "estimate": "-" if run.error is None else f"{run.estimate:.1e}",
        }
        for run in found
        if run.error is None
        or run.error > run.goal
        or (run.error > run.goal / 100 and run.estimate < run.error / 6)
    ]


def spread(ratios: Sequence[float]) -> str:
    """The median of sorted numbers, nine tenths of the way, and the largest."""
    if not ratios:
        return "-"
    return ", ".join(f"{ratios[min(len(ratios) - 1, int(x * len(ratios)))]:.2f}" for x in (0.5, 0.9, 1.0))


def main() -> None:
    parser = command_line(__doc__, random=1000, first=0)
    parser.add_argument("--kept", type=Path, help="file of the problems that have run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    problems = {problem.name: problem for problem in (*at_rest(), *moving())}
    rows = [*once(problems, lambda name: row_of(problems[name]), options.kept)]
    text = [
        "# The gradient's own error control",
        "",
        *(line.strip() for line in (__doc__ or "").strip().splitlines()[7:]),
        "",
        table(rows),
    ]
    if options.random:
        found = [*runs(options.first, options.random, options.kept)]
        text += [
            "",
            "Random problems: nets, linear and stiff systems, oscillators and prey at rest, beside it and far from it,",
            "doses, growth, van der Pol and Lorenz, by five methods, one `grad_rtol` of 1e-1, 1e-2, 1e-3 each, the",
            "error over all inputs, y0 among them.",
            "",
            table(summary(found)),
        ]
        if fell := short(found):
            text += [
                "",
                "Refused, worse than `grad_rtol`, or estimated as less than a sixth:",
                "",
                table(fell),
            ]
    command = f"python benchmarks/gradient_control.py --random {options.random} --first {options.first}"
    publish("\n".join([*text, "", described(command, {"torch": torch.__version__})]), options.write)


if __name__ == "__main__":
    main()
