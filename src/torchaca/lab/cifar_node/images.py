"""Images as tensors: what is in memory, and how a minibatch is made of it on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad
from torch.utils.data import Dataset

from ..cifar import Data, Kind
from .recipe import Settings

PAD = 4  # pixels of 32

Batch = tuple[Tensor, Tensor, Tensor]


class Samples(Dataset[Batch]):
    """`samples[indices]` are images `(N, 3, side, side)` in bytes, classes `(N,)` and the indices `(N,)`."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, side: int) -> None:
        self.images = _averaged(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), side)
        self.labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen], chosen


def samples(data: Data, settings: Settings) -> tuple[Samples, Samples]:
    """The training and the test images that the settings ask for."""
    train, test = slice(settings.train_images), slice(settings.test_images)
    return (
        Samples(data.train[train], data.train_labels[train], settings.side),
        Samples(data.test[test], data.test_labels[test], settings.side),
    )


def _averaged(images: Tensor, side: int) -> Tensor:
    """The images in bytes, with the means of square tiles as their pixels."""
    if images.shape[-1] == side:
        return images
    parts = [
        avg_pool2d(part.float(), images.shape[-1] // side).round().to(torch.uint8)
        for part in images.split(1000)
    ]
    return torch.cat(parts)


class Normalised(nn.Module):
    """Bytes to numbers of mean 0 and standard deviation 1 in each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        for name, values in (("mean", kind.mean), ("std", kind.std)):
            self.register_buffer(name, 255 * torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def draws(seed: int, epoch: int, count: int, side: int) -> Tensor:
    """`(count, 3)`: offsets of the crop of every training image, down and right, and whether it is mirrored.

    A function of seed and epoch, so that a resumed run, or one on another number of devices, draws the same.
    """
    ends = [2 * padding(side) + 1] * 2 + [2]
    return torch.from_numpy(np.random.default_rng((seed, epoch, 1)).integers(ends, size=(count, 3)))


def padding(side: int) -> int:
    """Black pixels around an image before it is cropped."""
    return PAD * side // 32


def crop_and_flip(images: Tensor, drawn: Tensor) -> Tensor:
    """Each image `(N, C, H, W)` in a black frame, cropped to its size at its own offset, and mirrored or not.

    Parameters
    ----------
    images : Tensor
    drawn : Tensor
        `(N, 3)`, rows of `draws`.
    """
    count, _, height, width = images.shape
    frame = padding(width)
    down, right, mirrored = drawn.unbind(1)
    device = images.device
    rows = down[:, None] + torch.arange(height, device=device)
    across = torch.arange(width, device=device)
    columns = right[:, None] + torch.where(mirrored[:, None] > 0, across.flip(0), across)
    image = torch.arange(count, device=device)[:, None, None]
    framed = pad(images, (frame,) * 4).permute(0, 2, 3, 1)
    return framed[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
