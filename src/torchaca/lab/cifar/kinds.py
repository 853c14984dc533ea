"""CIFAR-10 and CIFAR-100: where they are, and how their files are known to be whole.

Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The checksums are those of the official
archives (python version) at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Kind:
    """One of the two data sets.

    Attributes
    ----------
    folder : str
        Of the official archive, whose file is `archive`; `train` and `test` are its files with their MD5 sums.
    labels : bytes
        The key of the labels in those files.
    places : tuple of str
        Where the images are looked for, in this order.
    mean, std : tuple of float
        Of the training images in [0, 1], per channel; the values in use everywhere.
    """

    name: str
    classes: int
    folder: str
    archive: str
    md5: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    labels: bytes
    places: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def url(self) -> str:
        """Where the official archive can be downloaded."""
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"

    @property
    def title(self) -> str:
        """The name as it is written."""
        return f"CIFAR-{self.classes}"


CIFAR10 = Kind(
    name="cifar10",
    classes=10,
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    labels=b"labels",
    places=(
        "data/cifar-10-batches-py",
        "data/cifar-10-python.tar.gz",
        "data/cifar10.zip",
        "data/cifar10_small.zip",
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
)
CIFAR100 = Kind(
    name="cifar100",
    classes=100,
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    labels=b"fine_labels",
    places=(
        "data/cifar-100-python",
        "data/cifar-100-python.tar.gz",
        "data/cifar100.zip",
        "data/cifar100_jpeg.zip",
    ),
    mean=(0.5071, 0.4866, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
