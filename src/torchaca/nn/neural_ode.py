"""The ODE block: a module whose output is the solution of an ODE that starts at its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..compiled.traced import can_be_unrolled, outside_graphs
from ..core import Stats
from ..errors import did_you_mean
from ..solve import OPTIONS, solve
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
        Options of `torchaca.solve`: method, rtol, atol, gradient, n_steps, ...

    Attributes
    ----------
    stats : Stats
        Of the last forward pass (and, after `backward()`, of its backward pass).

    trace : Trace or None
        Of the last pass, with `debug=True`.

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
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"NeuralODE has no option {name!r}.{did_you_mean(name, OPTIONS)}")
        if options.get("on_failure") == "status":
            raise ValueError(
                "NeuralODE returns states, not a status: use on_failure='nan' or 'raise', or torchaca.solve"
            )
        self.f = f
        self.t = t
        self.options = options
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

    def _solved(self, y0: Any, times: Any, options: dict[str, Any]) -> Any:
        solution = solve(self.f, y0, times, **options)
        self.stats, self.trace = solution.stats, solution.trace
        if len(solution.ts) > 2:
            return solution.ys
        return pytree.tree_map(lambda ys: ys[-1], solution.ys)

    _apart = outside_graphs(_solved)  # what follows the solve belongs to the same graph break

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"t={self.t}" + (f", {options}" if options else "")
