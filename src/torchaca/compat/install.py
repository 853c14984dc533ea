"""torchaca under the name `torchdiffeq`, for programs whose libraries import that name deep inside."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..methods import ALIASES, METHODS, RK4_38
from . import torchdiffeq as door

NAME = "torchdiffeq"
VERSION = "0.2.5"
"""Of torchdiffeq, whose arguments and meaning `torchaca.compat.torchdiffeq` has."""


def install_as_torchdiffeq() -> None:
    """Let `import torchdiffeq` import `torchaca.compat.torchdiffeq`, everywhere in this process.

    Call it once, at the top of the program, before anything imports torchdiffeq. `odeint`, `odeint_adjoint` and
    `odeint_event` are torchaca's then, also under `torchdiffeq._impl`, `torchdiffeq._impl.odeint` (with the names of
    the methods in `SOLVERS`) and `torchdiffeq._impl.adjoint`. A second call changes nothing. Processes that are
    started anew (workers by "spawn") need the call as well. `uninstall_as_torchdiffeq` takes the name away again.

    Raises
    ------
    RuntimeError
        If torchdiffeq itself is imported already: those who hold its functions would keep them.

    Examples
    --------
    >>> import torchaca as aca
    >>> aca.install_as_torchdiffeq()
    >>> import torchdiffeq
    >>> torchdiffeq.odeint is aca.odeint
    True
    >>> aca.uninstall_as_torchdiffeq()
    """
    if sys.modules.get(NAME) is door:
        return
    if NAME in sys.modules:
        raise RuntimeError(
            f"{NAME} is imported already{_holders(sys.modules[NAME])}, and whoever did keeps its functions: call "
            "torchaca.install_as_torchdiffeq() first, at the top of the program"
        )
    modules = _modules()
    for name, value in {"__version__": VERSION, "_impl": modules[f"{NAME}._impl"]}.items():
        setattr(door, name, value)
    sys.modules.update(modules)
    sys.meta_path.insert(0, _Refusal())


def uninstall_as_torchdiffeq() -> None:
    """Undo `install_as_torchdiffeq`: from now on `import torchdiffeq` finds the library of that name.

    Modules that have imported the name keep what they got. Without an install before, nothing happens.
    """
    if sys.modules.get(NAME) is not door:
        return
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[name]
    for name in ("__version__", "_impl"):
        delattr(door, name)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Refusal)]


def _modules() -> dict[str, ModuleType]:
    """The modules that programs import, by name."""
    odeint, adjoint = ModuleType(f"{NAME}._impl.odeint"), ModuleType(f"{NAME}._impl.adjoint")
    impl = ModuleType(f"{NAME}._impl")
    solvers = {**METHODS, **ALIASES, "rk4": RK4_38}
    found = {
        odeint: {"odeint": door.odeint, "odeint_event": door.odeint_event, "SOLVERS": solvers},
        adjoint: {"odeint_adjoint": door.odeint_adjoint},
    }
    found[impl] = {**found[odeint], **found[adjoint], "__path__": []}  # its odeint is the function, as there
    for module, names in found.items():
        for name, value in names.items():
            setattr(module, name, value)
    return {NAME: door, **{module.__name__: module for module in (impl, odeint, adjoint)}}


class _Refusal:
    """A finder that says why the rest of torchdiffeq is not there."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith(f"{NAME}."):
            return None
        raise ModuleNotFoundError(
            f"no module {name!r}: {NAME} is torchaca's here (install_as_torchdiffeq), which has odeint, "
            "odeint_adjoint and odeint_event but none of torchdiffeq's solver classes and helpers. Take what you need "
            "from torchaca (torchaca.METHODS, torchaca.RungeKutta), or leave out the install",
            name=name,
        )


def _holders(module: ModuleType) -> str:
    """Which modules have imported it, in words."""
    functions = [x for name in ("odeint", "odeint_adjoint") if (x := getattr(module, name, None)) is not None]
    held = [id(x) for x in (module, *functions)]
    names = [
        name
        for name, other in list(sys.modules.items())
        if name.split(".")[0] != NAME
        and any(id(x) in held for x in list(getattr(other, "__dict__", {}).values()))
    ]
    return f", by {', '.join(sorted(names)[:5])}" if names else ""
