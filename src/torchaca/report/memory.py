"""How much a forward pass keeps for its backward pass."""

from ..field.saved import SavedTensors

__all__ = ["SavedTensors"]
