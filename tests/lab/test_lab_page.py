"""`torchaca report`: what the page says, what it refuses, and how a browser shows it."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from page_cases import EXPERIMENT, report
from PIL import Image

from torchaca.lab import run as runs
from torchaca.lab.experiment import UsageError
from torchaca.lab.record import duration, read

RESULTS = Path(__file__).parents[2] / "docs" / "results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=2000",
)


class Reader(HTMLParser):
    """What a page is made of."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.links, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def self_contained(page):
    """Whether the page refers to nothing outside of itself."""
    reader = Reader(page)
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    return (
        all(link.startswith(("#", "data:image/")) for link in reader.links)
        and not re.search(r"@import|url\(", styles)
        and not reader.all("script")
        and not reader.all("link")
    )


def test_the_page_says_what_the_folder_holds(finished, capsys):
    assert report(finished) == 0
    assert capsys.readouterr().out.startswith("report.html: 1 run, ")
    page = Path("report.html").read_text()
    words = " ".join("".join(Reader(page).words).split())
    for said in (
        "falling, cpu size",
        "A stone falls: how <far> is measured with aca.",
        "Error of <x> & y",
        "0.0007",
        "Height over t.",
        "torchaca run falling --size cpu --gradient aca direct",
        "torchaca run falling --resume 'runs/my stone'",
        "torch 2",
        "in 1 session",
    ):
        assert said in words, said
    assert '<th scope="row">pairs</th><td>(0.001, 1e-06)</td>' in page
    assert '<th scope="row">limit</th><td>none</td>' in page
    assert self_contained(page)


def test_the_page_is_accessible(finished):
    assert report(finished) == 0
    reader = Reader(Path("report.html").read_text())
    assert reader.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attrs["alt"] for attrs in reader.all("img"))
    assert {attrs["scope"] for attrs in reader.all("th")} == {"row", "col"}
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = {attrs["aria-labelledby"] for _, attrs in reader.tags if "aria-labelledby" in attrs}
    assert {link[1:] for link in reader.links if link.startswith("#")} | named <= set(ids)


def test_the_papers_columns_are_marked(finished):
    assert report(finished) == 0
    page = Path("report.html").read_text()
    assert '<th scope="col" class="theirs">paper</th>' in page
    assert '<td class="theirs">0.0007</td>' in page
    assert "<td>1.0e-05</td>" in page


def test_a_copy_of_results_says_how_to_run_it_but_not_to_go_on(finished):
    assert report("docs/falling", "--out", "page.html") == 0
    page = Path("page.html").read_text()
    assert "torchaca run falling --size cpu" in page
    assert "--resume" not in page
    with pytest.raises(UsageError, match="a copy of a run's results"):
        runs.resume(EXPERIMENT, {}, Path("docs/falling"))


def test_an_unfinished_run_is_marked(finished, tmp_path):
    run, _ = runs.start(EXPERIMENT, {}, tmp_path / "other")
    run.log({"row": "aca"})
    with (run.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"torn')
    assert report(finished, run.folder) == 0
    page = Path("report.html").read_text()
    assert page.count("Unfinished.") == 1
    assert "has not come to its end: so far 1 lines of metrics, 0 s." in page
    assert f"--resume {run.folder}" in page
    assert (run.folder / "metrics.jsonl").read_bytes().endswith(b'{"torn'), "a run may be going on"


def test_tables_older_than_the_last_session_are_marked(finished):
    runs.resume(EXPERIMENT, {}, finished)
    assert report(finished) == 0
    assert "was resumed after this and has not come to its end again" in Path("report.html").read_text()


def test_other_packages_between_sessions_are_named(finished):
    config = json.loads((finished / "config.json").read_text())
    old = json.loads(json.dumps(config["sessions"][0]))
    old["versions"]["torch"] = "1.0"
    config["sessions"].insert(0, old)
    (finished / "config.json").write_text(json.dumps(config))
    assert read(finished).remarks[0].startswith("started with torch 1.0, now 2")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "RUN"),
        (["nowhere"], "nowhere holds no run: there is no nowhere/config.json"),
        (["RUN", "RUN/../my stone"], "is named twice"),
        (["RUN", "--out", "RUN"], "cannot write the report to runs/my stone: Is a directory"),
        (["RUN", "--out", "RUN/config.json/page.html"], "cannot write the report to .*: Not a directory"),
        (["RUN", "--out", "/proc/page.html"], "cannot write the report to /proc/page.html: "),
    ],
    ids=["nothing", "nowhere", "twice", "folder", "file in the way", "unwritable"],
)
def test_refusals(args, said, finished, capsys):
    assert report(*(arg.replace("RUN", str(finished)) for arg in args)) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not Path("report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json does not read as JSON"),
        ("config.json", "[]", "config.json is not what `torchaca run` writes: it has no experiment"),
        ("summary.json", '{"finished": "", "seconds": 1}', r"older version.*run it again \(torchaca run falling"),
        ("fall.png", None, "cannot read the plot .*fall.png: No such file"),
    ],
    ids=["torn", "other", "old", "plot"],
)  # fmt: skip
def test_damaged_folders_are_refused(name, content, said, finished, capsys):
    if content is None:
        (finished / name).unlink()
    else:
        (finished / name).write_text(content)
    assert report(finished) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(("seconds", "said"), [(58.4, "58 s"), (125, "2 min 5 s"), (12034, "3 h 20 min")])
def test_durations(seconds, said):
    assert duration(seconds) == said


COMMITTED = sorted(path.parent for path in RESULTS.glob("*/config.json"))

LOOK = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  const wide = [...document.querySelectorAll(".wide")];
  document.body.dataset.seen = JSON.stringify({
    images: images.length,
    loaded: images.filter((image) => image.complete && image.naturalWidth > 0).length,
    requests: performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 30)),
    rows: [...document.querySelectorAll("table.numbers")].map((table) => table.tBodies[0].rows.length),
    overflows: document.documentElement.scrollWidth > innerWidth,
    collapsed: [...document.querySelectorAll("details")].every((details) => !details.open),
  });
});
</script></body>"""
"""Written into a copy of the page: what a browser makes of it."""


@pytest.fixture
def browser(tmp_path):
    """Calls a headless browser with a profile of its own."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")

    def call(page, *args):
        command = [found, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *args, page.as_uri()]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    return call


def test_a_browser_shows_it(finished, browser, tmp_path):
    assert report(finished, *COMMITTED) == 0
    page = Path("report.html").read_text()
    assert self_contained(page)
    copy = tmp_path / "seen.html"
    allowed = page.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy.write_text(allowed.replace("</body>", LOOK))
    for width in (1280, 500):
        dom = browser(copy, f"--window-size={width},900", "--dump-dom")
        (body,) = Reader(dom).all("body")
        seen = json.loads(body["data-seen"])
        assert seen["images"] == seen["loaded"] == page.count("<img ") > 2 * len(COMMITTED)
        assert all(name.startswith("data:") for name in seen["requests"])
        assert seen["rows"][:2] == [2, 1]
        assert len(seen["rows"]) == page.count('<table class="numbers"') > len(COMMITTED)
        assert not seen["overflows"], f"the page is wider than {width}"
        assert seen["collapsed"]
    browser(tmp_path / "report.html", "--window-size=1280,900", f"--screenshot={tmp_path / 'shot.png'}")
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == (1280, 900)
        assert len(shot.convert("L").getcolors()) > 50, "an empty page has one colour"


def test_committed_results_can_be_shown():
    assert {path.name for path in COMMITTED} >= {
        "toy",
        "van-der-pol",
        "conv-reconstruct",
        "cost",
        "three-body",
    }
    for folder in COMMITTED:
        record = read(folder)
        assert record.tables
        assert record.plots
