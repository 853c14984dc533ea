"""torch_ACA's module path: `from torch_ACA.odesolver import odesolve`."""

from torchaca.compat.torch_aca import odesolve

__all__ = ["odesolve"]
