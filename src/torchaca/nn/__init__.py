"""Modules on top of `solve`."""

from .neural_ode import NeuralODE

__all__ = ["NeuralODE"]
