"""Runs the core tests on exact versions of PyTorch, each in an environment of its own, and writes a table of them.

    python tools/versions.py 2.13.0 2.15.0       (or `make versions`; without versions: the oldest and the newest)

An environment holds that PyTorch, the test tools and NumPy, and is removed afterwards. On Linux, a wheel of PyTorch may
bring CUDA with it, several GB; the tests run on the CPU. A row of the table that is not run now, or of a version that
cannot be installed here, stays as it is.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "results" / "versions.md"
ENDS = ("2.13.0", "2.15.0")
TOOLS = ("numpy", "scipy", "hypothesis", "pytest>=8", "pytest-timeout")
CORE = [
    "compiled/test_traced.py",
    "compiled/test_executors.py",
    "compiled/test_compiled.py",
    "compiled/test_graphs.py",
    "compiled/test_compilations.py",
    "test_transforms.py",
    "test_state_flags.py",
    "test_state.py",
    "test_methods.py",
    "test_stepping.py",
    "test_control.py",
    "test_dense.py",
    "gradients/test_in_place.py",
    "gradients/test_kept.py",
    "gradients/test_aca.py",
    "gradients/test_adjoint.py",
    "gradients/test_mali.py",
    "gradients/test_naive.py",
    "gradients/test_params.py",
    "gradients/test_state_of_f.py",
    "native/test_native.py",
    "native/test_operations.py",
    "native/test_changes.py",
    "native/test_rows.py",
    "batch/test_batches.py",
    "batch/test_samples_in_graphs.py",
    "events/test_rules.py",
    "events/test_event_transforms.py",
]
"""Those tests that lean on PyTorch most: its compiler, tracer, transforms, hooks and graphs; and the methods, gradients
and events."""
SECONDS_PER_TEST = 1800
NOTES = {
    "2.9.0": "2.9.0 is not promised: its compiler cannot be told to refuse an f with side effects, its tensors inside "
    "of torch.func.grad and jvp cannot be listed, and a weight that autocast has cast without recording loses its "
    "gradient."
}
"""What is known of a version that fails."""
HEADER = """# Versions of PyTorch

The core tests on exact versions, on the CPU and in one process; written by `tools/versions.py`, which lists them.

| PyTorch | passed | failed | skipped | minutes | Python, machine | date |
| --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass
class Result:
    """What the tests said of one version: `failed` counts by file, and `trouble` says why they could not be run."""

    version: str
    passed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    trouble: str = ""

    def row(self) -> str:
        """The line of the table."""
        counts = [self.passed, self.failed.total(), self.skipped, f"{self.seconds / 60:.0f}"]
        told = [f"not run: {self.trouble}", "", "", ""] if self.trouble else counts
        where = f"Python {platform.python_version()}, {machine()}"
        return (
            "| " + " | ".join(map(str, [self.version, *told, where, f"{datetime.now(UTC):%Y-%m-%d}"])) + " |"
        )


def machine() -> str:
    """The processor and how many cores of it there are."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.*)$", info.read_text() if info.exists() else "", re.MULTILINE)
    return f"{os.cpu_count()} cores of {models[0] if models else platform.processor() or platform.machine()}"


def tested(version: str, home: Path) -> Result:
    """Install a version into `home` and run the core tests there."""
    python, report, result = home / "bin" / "python", home / "report.xml", Result(version)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    installed = subprocess.run(
        [*pip, f"torch=={version}", *TOOLS], stderr=subprocess.PIPE, text=True, check=False
    )
    if installed.returncode:
        errors = [line for line in installed.stderr.splitlines() if line.startswith("ERROR")]
        result.trouble = (errors or ["pip failed"])[-1]
        return result
    options = ["-q", "-p", "no:cacheprovider", f"--timeout={SECONDS_PER_TEST}", f"--junitxml={report}"]
    settings = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [python, "-m", "pytest", *options, *(f"tests/{name}" for name in CORE)],
        cwd=ROOT,
        env={**os.environ, **settings},
        check=False,
    )
    if not report.exists():
        result.trouble = "pytest wrote no report"
        return result
    read(report, result)
    return result


def read(report: Path, result: Result) -> None:
    """Count what a report of pytest says."""
    for case in ElementTree.parse(report).iter("testcase"):
        result.seconds += float(case.get("time", 0))
        if case.find("failure") is not None or case.find("error") is not None:
            result.failed[str(case.get("classname")).split(".Test")[0]] += 1
        elif case.find("skipped") is not None:
            result.skipped += 1
        else:
            result.passed += 1


def order(version: str) -> tuple[int, ...]:
    """By which versions are sorted."""
    return tuple(map(int, re.findall(r"\d+", version)))


def write(results: Sequence[Result]) -> None:
    """Put the rows of these results into the table, in the place of older ones; below it, what failed."""
    old = TABLE.read_text() if TABLE.exists() else ""
    rows = {line[1]: line[0] for line in re.finditer(r"^\| (\d[\d.]*) \|.*$", old, re.MULTILINE)}
    failures = {line[1]: line[0] for line in re.finditer(r"^Failed on (\d[\d.]*): .*$", old, re.MULTILINE)}
    for result in results:
        if result.trouble and result.version in rows:
            continue  # what was measured where it could be installed
        rows[result.version] = result.row()
        failures.pop(result.version, None)
        if result.failed:
            names = ", ".join(f"{n} of `{name}`" for name, n in sorted(result.failed.items()))
            failures[result.version] = f"Failed on {result.version}: {names}"
    parts = [HEADER + "\n".join(rows[v] for v in sorted(rows, key=order))]
    for version in sorted(failures, key=order):
        parts += [failures[version], *([NOTES[version]] if version in NOTES else [])]
    TABLE.write_text("\n\n".join(parts) + "\n")


def main() -> int:
    """Run the tests on the versions of the command line; 1 if any of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", default=ENDS, help="exact versions of PyTorch")
    results = []
    for version in parser.parse_args().versions:
        with TemporaryDirectory(prefix=f"torch-{version}-") as home:
            print(f"==> PyTorch {version}", flush=True)
            results.append(tested(version, Path(home)))
        write(results)
    return int(any(result.failed or result.trouble for result in results))


if __name__ == "__main__":
    sys.exit(main())
