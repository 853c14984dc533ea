"""The command line: what it refuses, and in which words."""

import pytest
from lab_helpers import run

import torchaca as aca
from torchaca.lab import cli


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchaca {aca.__version__}\n"


def test_no_command():
    assert cli.main([]) == 2


def test_help_names_the_experiments(capsys):
    assert cli.main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*cli.EXPERIMENTS, *aca.GRADIENTS))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["three_body"], ["unknown experiment 'three_body'", "Did you mean 'three-body'?", "There are: toy, "]),
        (["toy", "--size", "papr"], ["unknown size 'papr'", "Did you mean 'paper'?", "smoke, cpu, paper"]),
        (["toy", "--size", "demo"], ["unknown size 'demo'", "smoke, cpu, paper"]),
        (["toy", "--gradient", "acca"], ["unknown gradient 'acca'", "Did you mean 'aca'?", "adjoint"]),
        (["toy", "--gradient", "aca", "aca"], ["--gradient names 'aca' twice"]),
        (["toy", "--method", "dopri4"], ["unknown method 'dopri4'", "Did you mean 'dopri"]),
        (["toy", "--method", "rk4"], ["rk4 has no step-size control", "dopri5"]),
        (["toy", "--dtype", "float16"], ["unknown dtype 'float16'", "float32, float64"]),
        (["toy", "--seeds", "3"], ["toy has no --seeds"]),
        (["toy", "--time-limit", "3"], ["toy has no --time-limit"]),
        (["toy", "--devices", "2"], ["toy has no --devices"]),
        (["three-body", "--dtype", "float32"], ["three-body has no --dtype"]),
        (["van-der-pol", "--size", "demo"], ["unknown size 'demo'", "smoke, cpu, paper"]),
        (["van-der-pol", "--data", "x"], ["van-der-pol has no --data"]),
        (["cost", "--gradient", "addjoint"], ["unknown gradient 'addjoint'", "Did you mean 'adjoint'?"]),
        (["conv-reconstruct", "--gradient", "aca"], ["conv-reconstruct has no --gradient"]),
        (["conv-reconstruct", "--data", "nowhere"], ["--data nowhere: there is no such file"]),
        (["three-body", "--seeds", "0"], ["at least one seed"]),
        (["three-body", "--model", "lstn"], ["unknown model 'lstn'", "Did you mean 'lstm'?", "aug-input, node, ode"]),
        (["three-body", "--model", "ode", "ode"], ["--model names 'ode' twice"]),
        (["three-body", "--time-limit", "0"], ["above 0"]),
        (["toy", "--resume", "a", "--out", "b"], ["--out has no effect beside --resume"]),
        (["toy", "--resume", "nowhere"], ["nowhere holds no run"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_refusals(args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 2
    err = capsys.readouterr().err
    assert all(words in err for words in said), err
    assert not list(tmp_path.iterdir()), "nothing is written before the arguments are right"


def test_missing_packages_are_named(monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError("No module named 'rich.console'", name="rich.console")

    monkeypatch.setattr(cli, "import_module", missing)
    assert run("toy") == 2
    assert 'the experiments need rich: pip install "torchaca[lab]"' in capsys.readouterr().err


def test_other_import_errors_are_not_hidden(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'torch.nowhere'", name="torch.nowhere")

    monkeypatch.setattr(cli, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        run("toy")
