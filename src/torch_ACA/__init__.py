"""torch_ACA's import name: `from torch_ACA import odesolve` runs on torchaca."""

from torchaca.compat.torch_aca import odesolve, odesolve_adjoint, odesolve_endtime

__all__ = ["odesolve", "odesolve_adjoint", "odesolve_endtime"]
