"""What a release is made of, and the wheel in an environment that holds nothing else."""

import subprocess

import pytest

from tools.pages import shape
from tools.release import ROOT, beside_it_alone, packages, problems, version_of

FILES = {
    "pyproject.toml": '[project]\nversion = "1.2.3"\n',
    "src/torchaca/__init__.py": '__version__ = "1.2.3"\n',
    "CITATION.cff": "version: 1.2.3\n",
    "CHANGELOG.md": "# Changelog\n\n## [1.2.3] - 2030-01-02\n",
}


@pytest.fixture
def checkout(tmp_path):
    """A repository that is ready."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    commit(tmp_path)
    return tmp_path


def commit(folder):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    subprocess.run(["git", *who, "commit", "-qm", "All", "--allow-empty"], cwd=folder, check=True)


def test_nothing_stands_in_the_way_of_a_checkout_that_is_ready(checkout):
    assert problems(checkout) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("CITATION.cff", "version: 1.2.2\n", "CITATION.cff has another version"),
        ("src/torchaca/__init__.py", '__version__ = "1.2.4"\n', "__init__.py has another version"),
        ("CHANGELOG.md", "## [Unreleased]\n\n## [1.2.3] - 2030-01-02\n", "begins with [Unreleased]"),
        ("CHANGELOG.md", "## [1.2.3]\n", "[1.2.3] has no date"),
        ("CHANGELOG.md", "# Changelog\n", "begins with [nothing]"),
    ],
)
def test_what_is_missing_is_named(checkout, name, text, found):
    (checkout / name).write_text(text)
    assert problems(checkout)[-1] == f"files are not committed: {name}"
    commit(checkout)
    (line,) = problems(checkout)
    assert found in line


def test_a_version_is_released_once(checkout):
    subprocess.run(["git", "tag", "v1.2.3"], cwd=checkout, check=True)
    assert problems(checkout) == ["v1.2.3 is released: pyproject.toml needs a new version"]


@pytest.mark.slow
def test_the_wheel_alone_runs_the_example_of_the_readme(tmp_path):
    source, wheel = packages(ROOT, tmp_path)
    assert {path.name.split("-")[1].removesuffix(".tar.gz") for path in (source, wheel)} == {version_of()}
    printed, right = beside_it_alone(wheel, tmp_path)
    assert shape(printed) == shape(right)
    losses = [float(line.split()[-1]) for line in printed.splitlines()]
    assert losses == sorted(losses, reverse=True)
