"""What an evaluation of f leaves behind: random numbers drawn, buffers moved.

Rejected trials must not leave a trace, and a replay has to draw the same numbers and move nothing. Dropout is the
usual source of the first, BatchNorm's running statistics of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core import Step
from ..errors import warn
from ..numbers import has_lanes
from ..torch_internals import Normalization
from .reach import Reach

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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

    @contextmanager
    def back_at(self, mark: Mark) -> Iterator[None]:
        """Inside, it is the moment of the mark; whatever f leaves behind there is undone at the end."""
        with self.undone():
            self.restore(mark)
            yield


class Moments:
    """The moments at which the steps of a solve were made, so that a replay finds f's side effects as they were."""

    def __init__(self, effects: Effects | None) -> None:
        self.effects = effects
        self.marks: list[Mark] = []

    def watch(self, accepted: Iterable[Step]) -> Iterator[Step]:
        """Pass the steps on, and note for each the moment before it was made."""
        steps, effects = iter(accepted), self.effects
        while True:
            mark = effects.mark() if effects else None
            step = next(steps, None)
            if step is None:
                return
            if mark is not None:
                self.marks.append(mark)
            yield step

    def restore(self, n: int) -> None:
        """Go back to the moment of step n."""
        if self.effects:
            self.effects.restore(self.marks[n])


class Watch:
    """Finds the effects of an evaluation: `watch = Watch(...)`, evaluate f, `watch.effects(...)`."""

    def __init__(self, device: torch.device, reached: Reach) -> None:
        self.device = device
        self.reached = reached
        self.generators = generator_states(device)
        tensors = [tensor for _, tensor in reached.tensors]
        self.versions = [(t, t._version) for t in tensors if not (t.requires_grad or t.is_inference())]

    def effects(self, f0: Tensor, again: Callable[[], Tensor]) -> tuple[Tensor | None, Effects | None]:
        """The first evaluation as far as a solve may use it, and its effects, None if there are none.

        Each step of a stateful f evaluates all its stages, so that it can be replayed by itself: the first evaluation
        is not used, and the random numbers it drew are drawn again. `again` evaluates f once more, at the same place;
        it is called where that has to be found out.
        """
        effects = self._found(f0, again)
        if effects is None or not effects.stateful:
            return f0, effects
        if effects.random:
            set_generator_states(self.device, self.generators)
        return None, effects

    def changes(self) -> tuple[bool, list[Tensor]]:
        """Whether random numbers were drawn since, and the tensors that were moved."""
        now = generator_states(self.device)
        drew = any(not torch.equal(a, b) for a, b in zip(self.generators, now, strict=True))
        return drew, [tensor for tensor, version in self.versions if tensor._version != version]

    def _found(self, f0: Tensor, again: Callable[[], Tensor]) -> Effects | None:
        """What f leaves behind, None if nothing.

        An f that drew random numbers, or moved a tensor, is a function all the same if a second evaluation draws none
        and finds the same value: noise that is drawn once and kept, weights that the first call initialises, a counter.
        """
        drew, moved = self.changes()
        if not drew and not moved:
            return None
        owners = self._owners(moved)
        buffers = _with_siblings(moved, owners)
        first = Effects(self.device, drew, buffers, drew or not self._statistics(moved, owners))
        if not first.stateful or has_lanes(f0):
            return first
        watch, mark = Watch(self.device, self.reached), replace(first, random=False).mark()
        with torch.no_grad():
            value = again()
        drew_again, moved_again = watch.changes()
        # A value of zero says nothing of what it was multiplied with (a last layer that starts at zero).
        mute = any(x.is_floating_point() for x in moved_again) and not bool(value.any())
        if drew_again or mute or not torch.equal(value, f0.detach()):
            seen = replace(first, random=drew or drew_again)
            seen.restore(Mark(watch.generators, mark.buffers))
            return seen
        counters = {
            id(x) for x in moved_again if x.numel() == 1 and not self._statistics([x], self._owners([x]))
        }
        rest = [x for x in moved_again if id(x) not in counters]
        left = tuple(x for x in _with_siblings(rest, self._owners(rest)) if id(x) not in counters)
        return Effects(self.device, False, left, False) if left else None

    def _owners(self, tensors: Sequence[Tensor]) -> list[nn.Module]:
        """The modules that hold one of these among their buffers, under whatever name."""
        wanted = {id(x) for x in tensors}
        return [m for m in self.reached.modules if any(id(b) in wanted for b in m.buffers(recurse=False))]

    def _statistics(self, moved: Sequence[Tensor], owners: Sequence[nn.Module]) -> bool:
        """Whether all of them are statistics of normalisation layers, which nobody reads in training."""
        if not self.reached.names.isdisjoint(STATISTICS):  # f's own code may
            return False
        known = {
            id(b)
            for m in owners
            if isinstance(m, Normalization) and m.training
            for b in m.buffers(recurse=False)
        }
        return all(id(x) in known for x in moved)


def _with_siblings(moved: Sequence[Tensor], owners: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """The tensors, and all buffers of the modules that own one: batch norm's kernel moves some without a trace."""
    siblings = [b for m in owners for b in m.buffers(recurse=False)]
    return tuple({id(x): x for x in (*moved, *siblings)}.values())


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
