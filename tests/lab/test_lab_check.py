"""`torchaca check FILE:FUNCTION`: the table it prints, and one sentence for every way to call it wrongly."""

import sys

import pytest

import torchaca as aca
from torchaca.lab import cli

MODEL = """
import torch
from neighbour import rate

k = torch.tensor(rate, dtype=torch.float64, requires_grad=True)


def f(t, y):
    return -k * y


def loss(ys):
    return ys[-1].sum()


def build():
    return f, torch.ones(2, dtype=torch.float64), [0.0, 1.0], loss


def with_options():
    names = ("f", "y0", "t", "loss")
    return {**dict(zip(names, build())), "method": "rk4", "n_steps": 4, "repeats": 1}


def swapped():
    return torch.ones(2), f, [0.0, 1.0], loss


def misspelt():
    return {**with_options(), "n_step": 4}


def wrong():
    return f


def short():
    return f, torch.ones(2), [0.0, 1.0]


def incomplete():
    return {"f": f, "loss": loss}


def broken():
    return 1 / 0
"""


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("neighbour", "model_checked"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "neighbour.py").write_text("rate = 1.5")
    (tmp_path / "bad.py").write_text("x = 1\ny = nowhere\n")
    (tmp_path / "worse.py").write_text("def (:\n")
    (tmp_path / "notes.txt").write_text("")


@pytest.mark.parametrize("function", ["build", "with_options"])
def test_the_table(function, capsys):
    assert cli.main(["check", f"model.py:{function}"]) == 0
    out = capsys.readouterr().out
    words = (*aca.GRADIENTS, f"gradients of model.py:{function}", "error: ODE", "y0, k", "use ", "because")
    assert all(word in " ".join(out.split()) for word in words), out
    assert max(map(len, out.splitlines())) <= 110


def test_only_some_gradients(capsys):
    assert cli.main(["check", "model.py:build", "--gradient", "aca"]) == 0
    assert "adjoint" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("model.py", "'model.py' is not FILE:FUNCTION, such as model.py:build"),
        ("modle.py:build", "there is no file modle.py"),
        ("model.py:biuld", "model.py has no biuld. Did you mean 'build'?"),
        ("model.py:k", "k in model.py is a Tensor: it has to be a function"),
        ("model.py:wrong", "model.py:wrong returned a function: return (f, y0, t, loss), or a dict"),
        ("model.py:short", "model.py:short returned 3 values: return (f, y0, t, loss), or a dict"),
        ("model.py:incomplete", "model.py:incomplete returned a dict without 'y0', 't'"),
        ("model.py:broken", "model.py:broken failed: ZeroDivisionError: division by zero (line 46)"),
        (
            "model.py:swapped",
            "the model of model.py:swapped cannot be checked: y0 is a function, not a tensor",
        ),
        ("model.py:misspelt", "solve() has no option 'n_step'. Did you mean 'n_steps'?"),
        ("bad.py:build", "bad.py cannot be loaded: NameError: name 'nowhere' is not defined (line 2)"),
        ("worse.py:build", "worse.py cannot be loaded: SyntaxError: "),
        ("notes.txt:build", "notes.txt is no Python file"),
    ],
)
def test_refusals(target, said, capsys):
    assert cli.main(["check", target]) == 2
    err = capsys.readouterr().err
    assert err.startswith("torchaca: error: ")
    assert said in err
    assert err.count("\n") == 1


def test_an_unknown_gradient(capsys):
    assert cli.main(["check", "model.py:build", "--gradient", "acca"]) == 2
    assert "unknown gradient 'acca'. Did you mean 'aca'?" in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError("No module named 'rich.console'", name="rich.console")

    monkeypatch.setattr(cli, "import_module", missing)
    assert cli.main(["check", "model.py:build"]) == 2
    assert 'the command check needs rich: pip install "torchaca[lab]"' in capsys.readouterr().err
