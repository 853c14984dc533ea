"""Runs the core tests on exact versions of PyTorch, each in an environment of its own, and writes a table of them.

    python tools/versions.py 2.9.0 2.15.0        (or `make versions`; without versions: the oldest and the newest)

An environment holds that PyTorch, the test tools and NumPy, and is removed afterwards. On Linux, a wheel of PyTorch may
bring CUDA with it, several GB; the tests run on the CPU. A row of the table that is not run now stays as it is. Core
tests are the quick ones except those of `NOT_CORE`.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "results" / "versions.md"
ENDS = ("2.9.0", "2.15.0")
TOOLS = ("numpy", "scipy", "torchdiffeq", "hypothesis", "pytest>=8", "pytest-timeout")
NOT_CORE = {
    "lab": "experiments, with dependencies of their own",
    "test_peers.py": "environments of other libraries",
    "test_distributed.py": "several processes",
    "test_docs.py": "files of this repository",
    "test_package.py": "files of this repository",
    "test_limits.py": "files of this repository",
}
SECONDS_PER_TEST = 900
HEADER = """# Versions of PyTorch

The core tests ({selection}) on exact versions, written by `tools/versions.py`. They run on the CPU, in one process.

| PyTorch | passed | failed | skipped | minutes | Python, machine | date |
| --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass
class Result:
    """What the tests said of one version; `trouble` says why they could not be run."""

    version: str
    passed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)
    trouble: str = ""

    def row(self) -> str:
        """The line of the table."""
        counts = [self.passed, len(self.failed), self.skipped, f"{self.seconds / 60:.0f}"]
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
    left_out = [f"--ignore={ROOT / 'tests' / name}" for name in NOT_CORE]
    options = ["-q", "-p", "no:cacheprovider", f"--timeout={SECONDS_PER_TEST}", f"--junitxml={report}"]
    settings = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [python, "-m", "pytest", *options, *left_out],
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
            result.failed.append(f"{case.get('classname')}.{case.get('name')}")
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
        rows[result.version] = result.row()
        failures.pop(result.version, None)
        if result.failed:
            names = ", ".join(f"`{name}`" for name in result.failed)
            failures[result.version] = f"Failed on {result.version}: {names}"
    selection = "the quick ones, without " + ", ".join(f"`{name}`: {why}" for name, why in NOT_CORE.items())
    parts = [HEADER.format(selection=selection) + "\n".join(rows[v] for v in sorted(rows, key=order))]
    parts += [failures[v] for v in sorted(failures, key=order)]
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
