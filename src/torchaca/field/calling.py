"""How f is called: tensors whose flags it may set, and what to do about an f that is not f(t, y, *args)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..errors import shorten
from ..torch_internals import ORIGINAL_MODULE, plain_results, pytree

FLAG: Any = Tensor.requires_grad
NOT_A_LEAF = "you can only change requires_grad flags of leaf variables"


class FlagSettable(Tensor):
    """A tensor with a history to which f may write `requires_grad = True`, as it may to a leaf.

    Operations on it give plain tensors.
    """

    __torch_function__ = plain_results

    @staticmethod
    def of(x: Tensor) -> Tensor:
        """An alias of `x` that allows it; `x` itself if it is a leaf."""
        return x if x.is_leaf else x.as_subclass(FlagSettable)

    @property
    def requires_grad(self) -> bool:
        return FLAG.__get__(self)

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value != self.requires_grad:
            FLAG.__set__(self, value)


def call_with_flags(func: Callable[..., Any], t: Tensor, y: Any, *args: Any) -> Any:
    """Call f on tensors to which it may write `requires_grad = True`."""
    return func(FlagSettable.of(t), pytree.tree_map(FlagSettable.of, y), *args)


def not_f(f: Any) -> str:
    """What is wrong with an f that is no function."""
    if isinstance(f, type):
        return f"f is the class {f.__name__}: pass an object of it, {f.__name__}(...)"
    return f"f must be callable as f(t, y), got {shorten(f)}"


def refuse_signature(func: Callable[..., Any], n_args: int, cause: Exception) -> None:
    """Raise if f cannot be called with t, y and `n_args` further arguments.

    Raises
    ------
    TypeError
        Naming what f takes, and how to wrap it.
    """
    own = getattr(
        func, ORIGINAL_MODULE, getattr(func, "module", func)
    )  # behind torch.compile, DistributedDataParallel
    called = "f(t, y, *args)" if n_args else "f(t, y)"
    try:
        signature = inspect.signature(getattr(own, "forward", own))
    except (TypeError, ValueError):  # a builtin or a script: its own words are all there is to go by
        if "positional argument" not in str(cause) and "argument(s) but received" not in str(cause):
            return
        raise TypeError(f"f is called as {called}: {_wrapped(own, n_args)}") from cause
    if advice := takes_state_first(own):
        raise TypeError(f"f is called as {called}; {advice}") from cause
    try:
        signature.bind(*range(2 + n_args))
    except TypeError:
        advice = _instead(own, signature.parameters.values(), n_args)
        raise TypeError(f"f is called as {called}: {advice}") from cause


TIME_NAMES = {"t", "time", "s", "tau"}


def takes_state_first(func: Callable[..., Any]) -> str:
    """What to write instead of an f whose parameters are named as if it took (y, t); empty if they are not."""
    try:
        names = list(inspect.signature(getattr(func, "forward", func)).parameters)[:2]
    except (TypeError, ValueError):
        return ""
    times = [name.lower() in TIME_NAMES for name in names]
    return f"yours is f({names[0]}, {names[1]}): pass lambda t, y: f(y, t)" if times == [False, True] else ""


def _instead(func: Any, parameters: Iterable[inspect.Parameter], n_args: int) -> str:
    """How to call an f that cannot be called as f(t, y, *args)."""
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is p.empty]
    missing = [p.name for p in places[2 + n_args :] if p.default is p.empty]
    if keywords:
        return f"give it its keyword, functools.partial(f, {keywords[0]}=...)"
    if missing:
        return f"yours takes {', '.join(missing)} as well: hand over args=(...) with a value for each"
    if len(places) < 2:
        return _wrapped(func, n_args)
    return f"yours takes {len(places)} arguments, and with args= there are {2 + n_args}"


def _wrapped(func: Any, n_args: int) -> str:
    inner, rest = "net" if hasattr(func, "forward") else "f", ", *args" if n_args else ""
    module = f", or in a module whose forward(self, t, y{rest}) returns self.net(y)" if inner == "net" else ""
    return f"wrap it as lambda t, y{rest}: {inner}(y){module}"
