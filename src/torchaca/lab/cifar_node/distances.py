"""How far apart the gradient methods are in a NODE18, before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from ..distances import REFERENCE, WHEN, When, compared, flat_gradient, relative_distances
from ..table import Table, number
from .evaluation import half_precision, place_of
from .images import Samples
from .module import Training
from .recipe import Settings, row_of


def gradient_distances(trained: Training, train: Samples) -> dict[str, float]:
    """How far each method's gradient is from that of `direct` on the first minibatch; see `lab.distances`.

    Parameters
    ----------
    trained : Training
        A NODE18.
    train : Samples
        Its training images; those of the minibatch are not augmented.
    """
    settings, place = replace(trained.settings, compile=False), place_of(trained.settings)
    images, labels, _ = train[range(min(settings.batch, len(train)))]

    def gradient(name: str, when: When) -> Tensor:
        row = row_of(trained.row.model, name, trained.row.seed)
        module = Training(settings, trained.kind, row, trained.count)
        if when == "trained":
            module.load_state_dict(trained.state_dict())
        module.to(place).train()
        with half_precision(module):
            loss = cross_entropy(module.model(module.prepared(images.to(place))), labels.to(place))
        loss.backward()
        return flat_gradient(module.model)

    return relative_distances(settings.gradient, gradient)


def distance_table(distances: Mapping[str, Any], settings: Settings, trained: str) -> Table:
    """`trained` names the row whose weights are the trained ones."""
    return Table(
        title=f"Distance of each gradient from that of `{REFERENCE}`",
        columns=["gradient", *WHEN],
        rows=[
            [name, *(number(distances.get(f"{name} {when}")) for when in WHEN)]
            for name in compared(settings.gradient)
        ],
        notes=[
            f"|g - g_{REFERENCE}| / |g_{REFERENCE}| over all parameters, first minibatch, batch normalisation in "
            f"training mode, at the initial weights and at those of {trained}.",
        ],
    )
