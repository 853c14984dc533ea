"""What an evaluation of f leaves behind: random numbers drawn, buffers moved.

Rejected trials must not leave a trace, and a replay has to draw the same numbers and move nothing. Dropout is the
usual source of the first, BatchNorm's running statistics of the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .core import Problem
from .errors import warn
from .reach import Path, owner

NEVER_READ = (
    "running_mean",
    "running_var",
    "num_batches_tracked",
)  # normalisation layers write them in training


@dataclass(frozen=True)
class Mark:
    """A moment: the states of the random generators and the values of the buffers."""

    generators: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]


@dataclass(frozen=True)
class Effects:
    """The side effects of one f.

    `random`: it draws random numbers; `buffers`: those that it changes. `stateful`: two calls at the same (t, y) may
    differ, by random numbers or by what f reads from its buffers.
    """

    device: torch.device
    random: bool
    buffers: tuple[Tensor, ...]
    stateful: bool

    def mark(self) -> Mark:
        """The present moment, to come back to."""
        generators = generator_states(self.device) if self.random else ()
        return Mark(generators, tuple(buffer.detach().clone() for buffer in self.buffers))

    def restore(self, mark: Mark) -> None:
        """Go back to a moment."""
        if self.random:
            set_generator_states(self.device, mark.generators)
        for buffer, old in zip(self.buffers, mark.buffers, strict=True):
            # Past the version counter, as batch norm's kernel: a graph that saved the buffer stays valid.
            buffer.data.copy_(old)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Whatever f leaves behind inside is undone at the end."""
        mark = self.mark()
        try:
            yield
        finally:
            self.restore(mark)


class Watch:
    """Finds the effects of an evaluation: `watch = Watch(...)`, evaluate f, `watch.effects()`."""

    def __init__(self, device: torch.device, reached: Sequence[tuple[Path, Tensor]]) -> None:
        self.device = device
        self.generators = generator_states(device)
        self.versions = [
            (path, t, t._version) for path, t in reached if not (t.requires_grad or t.is_inference())
        ]

    def observed(self, p: Problem, f0: Tensor) -> Problem:
        """The problem with its first evaluation and the effects of it.

        Each step of a stateful f evaluates all its stages, so that it can be replayed by itself: the first evaluation
        is not used, and the random numbers it drew are drawn again.
        """
        effects = self.effects()
        if effects is None or not effects.stateful:
            return replace(p, f0=f0, effects=effects)
        if effects.random:
            set_generator_states(self.device, self.generators)
        return replace(p, effects=effects)

    def effects(self) -> Effects | None:
        """What changed since, None if nothing did."""
        now = generator_states(self.device)
        random = any(not torch.equal(a, b) for a, b in zip(self.generators, now, strict=True))
        moved = [path for path, tensor, version in self.versions if tensor._version != version]
        owners = {owner(path) for path in moved}
        # Batch norm's kernel moves its statistics without telling the version counter of each: take whole modules.
        buffers = tuple(tensor for path, tensor, _ in self.versions if owners and owner(path) in owners)
        stateful = random or any(path[-1] not in NEVER_READ for path in moved)
        return Effects(self.device, random, buffers, stateful) if random or buffers else None


def generator_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of the generators that f may draw from: the host's and the device's."""
    own = () if device.type in ("cpu", "meta") else (torch.get_device_module(device).get_rng_state(device),)
    return (torch.get_rng_state(), *own)


def set_generator_states(device: torch.device, states: tuple[Tensor, ...]) -> None:
    """Put the generators back; the inverse of `generator_states`."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], device)


def warn_of_noise() -> None:
    """For an adaptive solve of a random f."""
    warn(
        "f draws random numbers (Dropout?): step control takes the noise for error and makes tiny steps. Use fixed "
        "steps (n_steps=...), or call model.eval() first"
    )
