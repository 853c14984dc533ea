"""Every Python block of the readme and of the pages in docs/ runs, in order, one namespace a page; every link leads."""

import re
import tomllib
from pathlib import Path

import pytest
import torch

from benchmarks.peers.stored import PAGE, README, milliseconds, three_numbers, with_numbers
from tools.draw_layers import PICTURE, drawn
from tools.pages import agree, counts, run, shape
from torchaca.native.rows.plan import MOST_BYTES, WIDTH

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted(DOCS.glob("api/*.md")),
]
LINKING = [*PAGES, *sorted(DOCS.glob("gallery/*.md"))]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(text: str) -> set[str]:
    """The names that links may use for the headings of a page."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@by_page
@pytest.mark.filterwarnings("error:compile=True")  # a page that says compiled is compiled
def test_python_blocks_run(page, tmp_path, monkeypatch):
    torch.manual_seed(0)
    (tmp_path / "gallery").mkdir(exist_ok=True)  # pictures that a page draws
    monkeypatch.chdir(tmp_path)
    for block, printed in run(page):
        if block.printed is not None:
            again = f"line {block.line}: write it by tools/pages.py"
            assert shape(printed) == shape(block.printed), again
            pairs = zip(counts(printed), counts(block.printed), strict=True)
            assert all(abs(now - then) <= max(4, now // 10) for now, then in pairs), again


@by_page
def test_blocks_are_marked(page):
    """A block of code without a language would not run; one in `py` is another library's (test_migrating.py)."""
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "py", "text", "sh"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def test_the_index_lists_every_page():
    linked = set(re.findall(r"\]\(([^)#]+)\)", (DOCS / "index.md").read_text()))
    assert linked >= {page.name for page in DOCS.glob("*.md")} - {"index.md"}
    assert "api/index.md" in linked
    listed = set(re.findall(r"\]\(([^)#]+)\)", (DOCS / "api" / "index.md").read_text()))
    assert listed >= {page.name for page in DOCS.glob("api/*.md")} - {"index.md"}


def test_the_tree_is_the_tree_of_the_sources():
    """docs/architecture.md names each module and package of torchaca, and no other."""
    text = (DOCS / "architecture.md").read_text()
    tree = re.search(r"^ {4}src/torchaca/\n((?: {6}.*\n)+)", text, re.MULTILINE)
    assert tree is not None
    named = {
        re.match(r" *(\S+)", line)[1].rstrip("/") for line in re.findall(r"^ {6}\S.*$", tree[1], re.MULTILINE)
    }
    source = ROOT / "src" / "torchaca"
    modules = {path.name for path in source.glob("*.py") if path.name != "__init__.py"}
    packages = {path.parent.name for path in source.glob("*/__init__.py")}
    assert named == modules | packages


def test_the_picture_of_the_layers_is_that_of_the_imports():
    assert PICTURE.read_text() == drawn(), "PYTHONPATH=src python tools/draw_layers.py draws it anew"


def test_each_of_the_ten_mistakes_is_answered_by_one_line():
    text = (DOCS / "faq.md").read_text()
    assert re.findall(r"^### (\d+)\. ", text, re.MULTILINE) == [str(i + 1) for i in range(10)]
    last = text[: text.index("## More questions")].count("\n")
    ten = [(block.code, printed.splitlines()) for block, printed in run(DOCS / "faq.md") if block.line < last]
    asking = [(code, lines) for code, lines in ten if "said(lambda" in code]
    assert len(asking) == 9  # and a forgotten batch dimension, where f's own error comes with a note
    for code, lines in asking:
        answers = [line for line in lines if re.match(r"(\w+Error|UserWarning): ", line)]
        assert len(answers) == code.count("said(lambda"), code
        assert len(lines) - len(answers) == code.count("print("), code


def test_the_pages_have_the_numbers_of_native_lanes():
    words = {4: "four", 8: "eight", 16: "sixteen"}[WIDTH]
    said = {page: " ".join((DOCS / f"{page}.md").read_text().split()) for page in ("batches", "compile")}
    assert f"A thread has {words} lanes" in said["batches"]
    assert f"f is compiled for {words} samples, once for all sizes" in said["batches"]
    assert f"whose steps take more than {MOST_BYTES // WIDTH // 2**10} KiB has" in said["batches"]
    assert f"f is compiled for {words} samples" in said["compile"]


def test_an_error_names_the_line_of_the_page(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\n\nText\n\n```python\ny = x\nassert y == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        test_python_blocks_run(page, tmp_path, monkeypatch)
    assert caught.traceback[-1].lineno + 1 == 11
    assert str(caught.traceback[-1].path) == str(page)


def test_an_output_that_is_no_longer_true_is_seen(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint('step 1: loss 0.5')\n```\n\n```text\nstep 7:\n  loss 1e-3\n```\n")
    test_python_blocks_run(page, tmp_path, monkeypatch)
    page.write_text(page.read_text().replace("  loss", "  gain"))
    with pytest.raises(AssertionError, match="tools/pages"):
        test_python_blocks_run(page, tmp_path, monkeypatch)
    page.write_text("```python\nprint('20 + 18 backward')\n```\n\n```text\n21 + 17 backward\n```\n")
    test_python_blocks_run(page, tmp_path, monkeypatch)
    page.write_text(page.read_text().replace("+ 17", "+ 0"))
    with pytest.raises(AssertionError, match="tools/pages"):
        test_python_blocks_run(page, tmp_path, monkeypatch)


def test_outputs_agree_up_to_a_tolerance():
    assert agree("loss 0.100 at 7", "loss 0.101  at 7", 0.02)
    assert not agree("loss 0.100 at 7", "loss 0.2 at 7", 0.02)
    assert not agree("loss 0.1", "gain 0.1", 0.02)


def test_the_readme_has_the_numbers_of_the_results():
    assert README.read_text() == with_numbers(README.read_text(), PAGE.read_text()), (
        "python -m benchmarks.peers.stored writes them"
    )
    assert three_numbers(PAGE.read_text()).count(", torchdiffeq ") == 4


def test_the_readme_says_what_the_package_asks_for():
    """The versions in it are those of pyproject.toml, constraints.txt and the page of versions."""
    said = " ".join(README.read_text().split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = project["requires-python"].removeprefix(">=")
    (least,) = (name.removeprefix("torch>=") for name in project["dependencies"] if name.startswith("torch"))
    pinned = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert (
        f"It needs Python {python}, [PyTorch {least} or newer](docs/results/versions.md), and NumPy, nothing"
        in said
    )
    found = re.search(
        r"Version (\S+), young.* Developed with PyTorch (\S+) on CPUs; the core tests passed on (\S+) as",
        said,
    )
    assert found is not None
    assert (found[1], found[2]) == (".".join(project["version"].split(".")[:2]), pinned[1])
    tested = re.findall(
        r"^\| (\S+) \| \d+ \| (\d+) \|", (DOCS / "results" / "versions.md").read_text(), re.MULTILINE
    )
    assert {version for version, failed in tested if failed == "0"} >= {found[2], found[3]}


def test_the_results_are_read_as_they_stand():
    page = "## A: b\n\n|  | steps | forward + backward, ms |\n| --- | --- | --- |\n| x | 1 / 2 | 3.5 |\n| y | - | - |\n"
    assert milliseconds(page + "\n## Targets\n\n| workload |\n| --- |\n| A |\n") == {"A: b": {"x": 3.5}}
