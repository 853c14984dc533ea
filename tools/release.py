"""What stands between this checkout and a release, and the release itself, in dist/.

    python -m tools.release          versions, changelog and tree; the packages; README's example beside the wheel alone
    python -m tools.release --all    before that make test, make test-slow, make docs and make gallery

Nothing is published: the last lines say how.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.pages import blocks, shape

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
RELEASED = re.compile(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", re.MULTILINE)
TARGETS = ("test", "test-slow", "docs", "gallery")


def version_of(root: Path = ROOT) -> str:
    """The version in pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]


def problems(root: Path = ROOT) -> list[str]:
    """What has to be repaired first, a line each."""
    version, found = version_of(root), []
    for name, text in (
        ("src/torchaca/__init__.py", f'"{version}"'),
        ("CITATION.cff", f"version: {version}\n"),
    ):
        if text not in (root / name).read_text():
            found.append(f"{name} has another version than pyproject.toml, which has {version}")
    sections = RELEASED.findall((root / "CHANGELOG.md").read_text())
    if not sections or sections[0][0] != version:
        have = sections[0][0] if sections else "nothing"
        found.append(f"CHANGELOG.md begins with [{have}]: it has to begin with ## [{version}] - YYYY-MM-DD")
    elif not sections[0][1]:
        found.append(f"CHANGELOG.md: [{version}] has no date")
    changed = said("git", "status", "--porcelain", cwd=root).splitlines()
    if changed:
        found.append(f"files are not committed: {', '.join(line[3:] for line in changed[:5])}")
    if f"v{version}" in said("git", "tag", cwd=root).split():
        found.append(f"v{version} is released: pyproject.toml needs a new version")
    return found


def said(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints."""
    return subprocess.run([*map(str, command)], cwd=cwd, check=True, capture_output=True, text=True).stdout


def packages(root: Path, folder: Path) -> tuple[Path, Path]:
    """Build the source distribution and, from it, the wheel."""
    said(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, root)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


def beside_it_alone(wheel: Path, folder: Path) -> tuple[str, str]:
    """What README's example prints beside the wheel and what that asks for alone, and what it should print."""
    venv.create(folder / "bare", with_pip=True)
    python = folder / "bare" / "bin" / "python"
    pins = ROOT / "constraints.txt"
    torch = next(line for line in pins.read_text().splitlines() if line.startswith("torch=="))
    said(python, "-m", "pip", "install", "-qq", "--no-compile", "--constraint", pins, torch, wheel)
    example = next(block for block in blocks((ROOT / "README.md").read_text()) if block.language == "python")
    return said(python, "-c", example.code, cwd=folder), example.printed or ""


def main() -> None:
    """Check, build, try, and say what is left to do."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--all", action="store_true", help="make test, test-slow, docs and gallery first (hours)"
    )
    wanted = parser.parse_args()
    if found := problems():
        raise SystemExit("\n".join(found))
    for target in TARGETS if wanted.all else ():
        subprocess.run(["make", target], cwd=ROOT, check=True)
    shutil.rmtree(DIST, ignore_errors=True)
    source, wheel = packages(ROOT, DIST)
    with TemporaryDirectory() as folder:
        printed, right = beside_it_alone(wheel, Path(folder))
    print(printed, end="")
    if shape(printed) != shape(right):
        raise SystemExit(f"README's example should print:\n{right}")
    version = version_of()
    print(
        f"{source.name} and {wheel.name} are in dist/. To publish them:\n"
        f"  git tag -a v{version} -m 'Version {version}' && git push --tags\n"
        "  python -m pip install twine && python -m twine upload dist/*\n"
        "then give pyproject.toml, src/torchaca/__init__.py and CITATION.cff the next version, and CHANGELOG.md an\n"
        "[Unreleased]."
    )


if __name__ == "__main__":
    main()
