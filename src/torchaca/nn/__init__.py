"""Modules on top of `solve`."""

from .latent_ode import LatentLoss, LatentODE
from .neural_ode import NeuralODE

__all__ = ["LatentLoss", "LatentODE", "NeuralODE"]
