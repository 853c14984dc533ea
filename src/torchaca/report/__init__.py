"""Reports on the user's own model: which gradient is right on it, and what each one costs."""

from .advice import Advice
from .check import GradientReport, GradientRow, check_gradient
from .reference import Reference

__all__ = ["Advice", "GradientReport", "GradientRow", "Reference", "check_gradient"]
