"""torch_ACA's module path: `from torch_ACA.odesolver_mem import odesolve_adjoint`."""

from torchaca.compat.torch_aca import odesolve_adjoint, odesolve_endtime

__all__ = ["odesolve_adjoint", "odesolve_endtime"]
