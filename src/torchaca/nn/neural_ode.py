"""The ODE block: a module whose output is the solution of an ODE that starts at its input."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ..compiled.traced import can_be_unrolled, outside_graphs
from ..core import Stats
from ..errors import shorten, warn
from ..field.places import label
from ..field.reach import reach
from ..options import OPTIONS, Options, check_options
from ..solve import solve
from ..times import times_of
from ..torch_internals import pytree
from ..trace import Trace


class NeuralODE(torch.nn.Module):
    """y(t1) as a function of y(t0) = x, for dy/dt = f(t, y) (Chen et al., NeurIPS 2018).

    Parameters
    ----------
    f : Module or callable
        `f(t, y, *args)`, as in `torchaca.solve`.
    t : times
        Default times, `(0.0, 1.0)`.
    **options
        Options of `torchaca.solve`: method, rtol, atol, gradient, n_steps, ... They are checked here, as far as that
        needs no y0. `block.rtol` reads one (the default of `solve` if it was not given), `block.rtol = 1e-5` checks it
        and sets it from the next call on, and `block.rtol = None` or `del block.rtol` goes back to the default.
        `block.compile()` stays the method of every module: `block.options["compile"]` reads that option.

    Attributes
    ----------
    options : dict
        The options that were given. What is changed in it directly is checked by the next call.
    stats : Stats
        Of the last forward pass (and, after `backward()`, of its backward pass).
    trace : Trace or None
        Of the last pass, with `debug=True`.

    Raises
    ------
    TypeError, ValueError
        For options that cannot work, or would have no effect.

    Warns
    -----
    UserWarning
        If f is no module and reaches parameters, which this module does not register then.

    Examples
    --------
    >>> class F(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = torch.nn.Linear(4, 4)
    ...     def forward(self, t, y):
    ...         return torch.tanh(self.linear(y))
    >>> block = NeuralODE(F(), method="heun_euler", rtol=1e-2, atol=1e-2)
    >>> block(torch.randn(8, 4)).shape
    torch.Size([8, 4])
    """

    def __init__(
        self, f: Callable[..., Any], t: Sequence[float] | Tensor = (0.0, 1.0), **options: Any
    ) -> None:
        super().__init__()
        if isinstance(f, type) or not callable(f):
            raise TypeError(f"f must be a module or a function, called as f(t, y), got {shorten(f)}")
        if not (isinstance(t, Tensor) and t.is_meta):
            times_of(t, "t")
        self.f = f
        self.t = t
        self.options = self._checked(options)
        if not isinstance(f, torch.nn.Module):
            _warn_of_unregistered(f, self)
        self.stats = Stats()
        self.trace: Trace | None = None

    def forward(self, y0: Any, t: Any = None, args: tuple[Any, ...] = ()) -> Any:
        """y(t1), or `(len(t), ...)` where there are more than two times.

        Parameters
        ----------
        y0 : Tensor or nested tensors
        t : times, optional
            Instead of the module's own.
        args : tuple
            Further arguments of f.
        """
        times = self.t if t is None else t
        options = {**self.options, **({"args": args} if args else {})}
        if torch.compiler.is_compiling() and can_be_unrolled((self.f, y0, times), options):
            return self._solved(y0, times, options)
        return self._apart(y0, times, options)

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options, if a solve of f can have them."""
        check_options(options, "NeuralODE", self.f)
        if options.get("on_failure") == "status":
            raise ValueError(
                "NeuralODE returns states, not a status: use on_failure='nan' or 'raise', or torchaca.solve"
            )
        if options.get("dense"):
            raise ValueError("NeuralODE returns states: dense=True has no effect, use torchaca.solve")
        return options

    def _solved(self, y0: Any, times: Any, options: dict[str, Any]) -> Any:
        solution = solve(self.f, y0, times, **options)
        self.stats, self.trace = solution.stats, solution.trace
        if len(solution.ts) > 2:
            return solution.ys
        return pytree.tree_map(lambda ys: ys[-1], solution.ys)

    _apart = outside_graphs(_solved)  # what follows the solve belongs to the same graph break

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OPTIONS:  # Module would register a module or a parameter of this name: a norm, say
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"t={self.t}" + (f", {options}" if options else "")


def _option(name: str) -> property:
    """An option of a block as its attribute."""

    def read(block: NeuralODE) -> Any:
        if name == "compile":
            return functools.partial(torch.nn.Module.compile, block)
        return block.options.get(name, getattr(Options, name))

    def write(block: NeuralODE, value: Any) -> None:
        others = {key: other for key, other in block.options.items() if key != name}
        block.options = block._checked(others if value is None else {**others, name: value})

    def delete(block: NeuralODE) -> None:
        write(block, None)

    return property(read, write, delete)


for _name in OPTIONS:
    setattr(NeuralODE, _name, _option(_name))


def _warn_of_unregistered(f: Callable[..., Any], block: NeuralODE) -> None:
    """Warn if f reaches parameters that belong to no module which is being made around the block."""
    known = {id(p) for module in (block, *_being_made()) for p in module.parameters()}
    found = [(path, x) for path, x in reach(f).tensors if isinstance(x, torch.nn.Parameter)]
    names = sorted(label(path) for path, x in found if id(x) not in known)
    if not names:
        return
    first = names[0].split(".")[0]
    owners = [name.split(".")[:-1] for name in names if name.split(".")[0] == first]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))
    module = ".".join(parts[0] for parts in same)
    inner = f"of {module}" if module else f"{first!r}"
    warn(
        f"NeuralODE: f is a function that uses the parameters {inner}, which the block does not register: "
        "block.parameters(), .to() and state_dict() know nothing of them. Give it a module whose forward(t, y) calls "
        f"{module or first}, or register it, e.g. block.net = {module or first}"
    )


def _being_made() -> Iterator[torch.nn.Module]:
    """The modules whose `__init__` is running: they may register what f uses themselves."""
    frame = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_argcount:
            made = frame.f_locals.get(code.co_varnames[0])
            if isinstance(made, torch.nn.Module) and "_modules" in vars(made):
                yield made
        frame = frame.f_back
