"""The command `torchaca`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torchaca as aca

from .experiment import DTYPES, Experiment, UsageError, check_name

EXPERIMENTS = {
    "toy": "torchaca.lab.toy",
    "van-der-pol": "torchaca.lab.van_der_pol",
    "conv-reconstruct": "torchaca.lab.conv_reconstruct",
    "cost": "torchaca.lab.cost",
    "three-body": "torchaca.lab.three_body",
    "hopper": "torchaca.lab.hopper",
    "cifar10": "torchaca.lab.cifar_node.cifar10",
    "cifar100": "torchaca.lab.cifar_node.cifar100",
}
"""Name on the command line -> the module whose `EXPERIMENT` it is."""

HARDWARE = ("precision", "accelerator", "devices", "strategy")
NETWORK = ("model", "width", "epochs", "schedule", "ema", "test_images")
SWITCHES = ("channels_last", "compile", "tensorboard", "download")
OPTIONS = (
    *("size", "gradient", "method", "seeds", "dtype", "data", "time_limit"),
    *HARDWARE,
    *NETWORK,
    *SWITCHES,
)
"""The options that an experiment may take, by the names of its settings."""

EXTRA = ("rich", "matplotlib", "PIL", "jinja2", "pytorch_lightning", "lightning_fabric")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments.

    Returns
    -------
    int
        The exit code: 0, 2 when the command was called wrongly, 1 when the disk was full, 130 after Ctrl-C.
    """
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what is wrong, or printed the help
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return args.carry_out(args)
    except UsageError as error:
        print(f"torchaca: error: {error}", file=sys.stderr)
        return 2


def load(name: str) -> Experiment:
    """The experiment of this name.

    Raises
    ------
    UsageError
        When there is none, or when the packages it needs are not installed.
    """
    check_name("experiment", name, EXPERIMENTS)
    return _imported(EXPERIMENTS[name], "the experiments need").EXPERIMENT


def _imported(module: str, needs: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        raise UsageError(f'{needs} {package}: pip install "torchaca[lab]"') from error


def _check(args: argparse.Namespace) -> int:
    return _imported("torchaca.lab.check", "the command check needs").check(args.target, args.gradient)


def _report(args: argparse.Namespace) -> int:
    return _imported("torchaca.lab.page", "the command report needs").report(args.runs, args.out)


def _evaluate(args: argparse.Namespace) -> int:
    module = _imported("torchaca.lab.cifar_node.evaluate", "the command evaluate needs")
    changes = {name: getattr(args, name) for name in ("data", "test_images", "accelerator", "precision")}
    values = {name: getattr(args, name) for name in ("methods", "dt", "tolerances", "out")}
    return module.evaluate(args.checkpoints, **values, **changes)


def _run(args: argparse.Namespace) -> int:
    experiment = load(args.experiment)
    from .session import carry_out  # needs the same optional packages as the experiments

    options = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    return carry_out(experiment, options, out=args.out, resumed=args.resume, docs=args.docs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchaca", description="Neural ODEs whose gradients can be trusted."
    )
    parser.add_argument("--version", action="version", version=f"torchaca {aca.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_check(commands)
    _add_report(commands)
    _add_evaluate(commands)
    _add_run(commands)
    return parser


def _command(
    commands: Any, name: str, carry_out: Callable[[argparse.Namespace], int], said: str, at_length: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=said, description=at_length)
    parser.set_defaults(carry_out=carry_out)
    return parser


def _add_check(commands: Any) -> None:
    check = _command(
        commands,
        "check",
        _check,
        "try every gradient method on a model of yours",
        "Every gradient method on your model: its error, its price, and which one to use.",
    )
    check.add_argument(
        "target",
        metavar="FILE:FUNCTION",
        help="a function without arguments that returns (f, y0, t, loss), or a dict of check_gradient's arguments",
    )
    check.add_argument(
        "--gradient", nargs="+", metavar="NAME", help=f"only these of: {', '.join(aca.GRADIENTS)}"
    )


def _add_report(commands: Any) -> None:
    report = _command(
        commands,
        "report",
        _report,
        "one HTML page about runs",
        "One HTML page, with everything in it: tables next to the paper's, plots, settings, versions.",
    )
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of its results in docs/results"
    )
    report.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page (default: report.html)",
    )


def _add_evaluate(commands: Any) -> None:
    evaluate = _command(
        commands,
        "evaluate",
        _evaluate,
        "test trained networks with other solvers",
        "Error rates of NODE18 and ANODE18 with other solvers than that of their training.",
    )
    evaluate.add_argument(
        "checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="files in a run's folder checkpoints"
    )
    evaluate.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        default=["Euler", "RK2", "RK4", "HeunEuler", "RK23", "RK45"],
        help=f"the paper's Euler RK2 RK4 HeunEuler RK23 RK45 (default), or any of {', '.join(aca.METHODS)}",
    )
    evaluate.add_argument(
        "--dt", nargs="+", type=float, metavar="H", default=[0.5, 0.2, 0.1], help="step sizes (0.5 0.2 0.1)"
    )
    evaluate.add_argument(
        "--tolerances",
        nargs="+",
        type=float,
        metavar="TOL",
        default=[1e-1, 1e-2, 1e-3],
        help="rtol = atol of the adaptive methods (0.1 0.01 0.001)",
    )
    evaluate.add_argument("--data", metavar="PATH", help="where the images are")
    evaluate.add_argument("--test-images", type=int, metavar="N", help="only the first N")
    evaluate.add_argument(
        "--accelerator", metavar="NAME", help="cpu, gpu, mps or auto; as trained by default"
    )
    evaluate.add_argument("--precision", metavar="NAME", help="32 or bf16-mixed; as trained by default")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="also write table, numbers and plot there")


def _add_run(commands: Any) -> None:
    run = _command(
        commands,
        "run",
        _run,
        "run an experiment of the paper",
        "Run an experiment: a table next to the paper's numbers, plots, a folder with all of it.",
    )
    run.add_argument("experiment", metavar="NAME", help=f"one of: {', '.join(EXPERIMENTS)}")
    run.add_argument(
        "--size", metavar="SIZE", help="smoke (seconds), demo, cpu or paper, as the experiment has them"
    )
    run.add_argument(
        "--gradient", nargs="+", metavar="NAME", help=f"gradient methods: {', '.join(aca.GRADIENTS)}"
    )
    run.add_argument(
        "--method", metavar="NAME", help="the solver, dopri5 unless the experiment says otherwise"
    )
    run.add_argument("--seeds", type=int, metavar="N", help="the number of repetitions")
    run.add_argument("--dtype", nargs="+", metavar="DTYPE", help=f"precisions: {', '.join(DTYPES)}")
    run.add_argument("--data", metavar="PATH", help="where the experiment's data are")
    run.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="start no epoch after this time; every gradient method trains one at least",
    )
    _hardware_options(run)
    _network_options(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME-TIME)")
    run.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in this folder")
    run.add_argument(
        "--docs", type=Path, metavar="DIR", help="also copy table, plots and summary to DIR/NAME"
    )


def _hardware_options(run: argparse.ArgumentParser) -> None:
    """What the networks are trained on."""
    run.add_argument("--precision", metavar="NAME", help="32, or bf16-mixed: bfloat16 under autocast")
    run.add_argument(
        "--accelerator", metavar="NAME", help="cpu (default), gpu, mps, or auto: the fastest there is"
    )
    run.add_argument("--devices", type=int, metavar="N", help="devices that share each minibatch")
    run.add_argument(
        "--strategy", metavar="NAME", help="how they do: ddp_spawn (default), ddp_fork; with torchrun, fsdp2"
    )


def _network_options(run: argparse.ArgumentParser) -> None:
    """Those of the experiments that train networks."""
    run.add_argument(
        "--model", nargs="+", metavar="NAME", help="such as resnet18 node18 anode18, or lstm node ode"
    )
    run.add_argument("--width", type=int, metavar="N", help="channels of a network's first stage")
    run.add_argument("--test-images", type=int, metavar="N", help="test on the first N images")
    run.add_argument("--epochs", type=int, metavar="N", help="how often the training data are gone through")
    run.add_argument("--schedule", metavar="NAME", help="of the learning rate: step, cosine or one-cycle")
    run.add_argument(
        "--ema", type=float, metavar="DECAY", help="test an average of the weights with this decay"
    )
    switches = {
        "--channels-last": "keep the channels of a pixel together in memory",
        "--compile": "compile the layers between the solver's steps",
        "--tensorboard": "also log for TensorBoard, in the run folder",
        "--download": "fetch the official data into data/ where there are none",
    }
    for name, said in switches.items():
        run.add_argument(name, action="store_true", default=None, help=said)


if __name__ == "__main__":
    sys.exit(main())
