"""What `torchaca report` takes from a run's folder: its own files, when they hold what a run writes."""

import json
import os
import re
from pathlib import Path

import pytest
from page_cases import EXPERIMENT, report

from torchaca.lab import run as runs

SECRET = b"\x89PNG the secret"


def rewrite(path, change):
    """JSON with one change."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def leads_out(tmp_path):
    """Names of plots that lead to a picture outside of the folder."""
    return {
        "path": "../../secret.png",
        "path through a folder": "sub/../../../secret.png",
        "absolute": str(tmp_path / "secret.png"),
        "file URL": f"file://{tmp_path}/secret.png",
        "data URL": "data:image/png;base64,iVBORw0KGgo=.png",
        "web": "https://example.org/a.png",
        "link": "link.png",
        "link through a folder": "linked/secret.png",
        "parent": "..",
        "nothing": "",
        "end of a string": "fall.png\0.png",
    }


@pytest.mark.parametrize("way", leads_out(Path()))
def test_pictures_from_elsewhere_are_refused(way, finished, tmp_path, capsys):
    (tmp_path / "secret.png").write_bytes(SECRET)
    (finished / "sub").mkdir()
    (finished / "link.png").symlink_to(tmp_path / "secret.png")
    (finished / "linked").symlink_to(tmp_path)
    name = leads_out(tmp_path)[way]
    rewrite(finished / "summary.json", lambda summary: summary["plots"].update({name: "A picture."}))
    assert report(finished) == 2
    err = capsys.readouterr().err
    assert re.fullmatch("torchaca: error: .*(lies outside|a plot is one of).*\n", err)
    assert str(finished) in err
    assert not Path("report.html").exists()


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl", "fall.png"])
def test_files_from_elsewhere_are_refused(name, finished, tmp_path, capsys):
    runs.resume(EXPERIMENT, {}, finished)  # so that the page says how far it has come
    (finished / name).rename(tmp_path / name)
    (finished / name).symlink_to(tmp_path / name)
    assert report(finished) == 2
    assert f"'{name}', which lies outside of it" in capsys.readouterr().err


def test_links_within_the_folder_and_to_it_are_fine(finished, tmp_path):
    (finished / "fall.png").rename(finished / "other.png")
    (finished / "fall.png").symlink_to("other.png")
    (tmp_path / "linked").symlink_to(finished)
    assert report(tmp_path / "linked") == 0


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_pictures_that_are_no_files_are_refused(kind, finished, capsys):
    (finished / "fall.png").unlink()
    (finished / "fall.png").mkdir() if kind == "folder" else os.mkfifo(finished / "fall.png")
    assert report(finished) == 2
    assert "cannot read the plot" in capsys.readouterr().err


def without(name):
    return lambda content: content.pop(name)


CHANGES = {
    "config.json": {
        **{f"no {name}": without(name) for name in ("experiment", "options", "settings", "sessions")},
        "sessions": lambda config: config.update(sessions=[]),
        "session": lambda config: config.update(sessions=[3]),
        "versions": lambda config: config["sessions"][0].pop("versions"),
        "options": lambda config: config.update(options=[]),
        "experiment": lambda config: config.update(experiment=None),
    },
    "summary.json": {
        **{f"no {name}": without(name) for name in ("finished", "seconds", "sessions", "plots")},
        "seconds": lambda summary: summary.update(seconds=float("nan")),
        "tables": lambda summary: summary.update(tables={}),
        "table": lambda summary: summary["tables"].append([]),
        "columns": lambda summary: summary["tables"][0]["columns"].append("more"),
        "row": lambda summary: summary["tables"][0]["rows"].append("aca"),
        "cell": lambda summary: summary["tables"][0]["rows"][0].__setitem__(0, None),
        "notes": lambda summary: summary["tables"][0].pop("notes"),
        "plots": lambda summary: summary.update(plots=["fall.png"]),
    },
}


@pytest.mark.parametrize(
    ("name", "change"), [(name, change) for name, kinds in CHANGES.items() for change in kinds]
)
def test_files_that_hold_something_else_are_refused(name, change, finished, capsys):
    rewrite(finished / name, CHANGES[name][change])
    assert report(finished) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(f"torchaca: error: .*{name}.*\n", err)
    assert "put back a copy" in err if name == "config.json" else "--resume 'runs/my stone'" in err


def test_text_that_is_no_unicode_is_shown_as_such(finished):
    rewrite(finished / "config.json", lambda config: config.update(about="half a \ud800"))
    assert report(finished) == 0
    assert "half a ?" in Path("report.html").read_text()
