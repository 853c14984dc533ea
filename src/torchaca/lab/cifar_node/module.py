"""One row's network as Lightning trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..cifar import Kind
from ..engine import Batches, Trained, shard, share_buffers
from ..experiment import plain
from ..rows import Row
from .images import Batch, Normalised, crop_and_flip, draws
from .models import Classifier, Dynamics, Residual
from .recipe import Settings, build, schedule

ABOUT = "torchaca"
"""The entry of a checkpoint that says what network it is."""


class Training(Trained):
    """A network, its optimizer and its augmentation.

    Parameters
    ----------
    settings : Settings
    kind : Kind
    row : Row
    count : int
        The number of training images.
    """

    def __init__(self, settings: Settings, kind: Kind, row: Row, count: int) -> None:
        super().__init__()
        self.settings, self.kind, self.row, self.count = settings, kind, row, count
        self.model = build(settings, row, kind.classes)
        if settings.channels_last:
            _channels_last(self.model)
        if settings.compile:
            compile_layers(self.model)
        self.normalised = Normalised(kind)
        self.average = _average(self.model, settings.ema) if settings.ema else None
        self._drawn: tuple[int, Tensor] = (-1, torch.empty(0))
        self._last: dict[str, Tensor] = {}

    @property
    def tested(self) -> Classifier:
        """The network that is tested: the average where there is one."""
        return self.model if self.average is None else cast(Classifier, self.average.module)

    def configure_model(self) -> None:
        """Shard the network where the strategy is FSDP2: block by block, each solve within one."""
        if self.device_mesh is None:
            return
        blocks = [block for stage in self.model.stages for block in cast(nn.Sequential, stage)]
        shard(self.model, blocks, self.device_mesh["data_parallel"])
        if self.settings.compile:
            compile_layers(self.model)  # a copy of a module is not compiled

    def on_validation_start(self) -> None:
        if self.device_mesh is not None:
            share_buffers(self.model)

    def forward(self, images: Tensor) -> Tensor:
        return self.tested(self.prepared(images))

    def prepared(self, images: Tensor) -> Tensor:
        """Bytes as the network takes them."""
        found = self.normalised(images)
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return found.contiguous(memory_format=layout)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels, indices = batch
        drawn = self._draws()[indices.cpu()].to(images.device)
        scores = self.model(self.prepared(crop_and_flip(images, drawn)))
        loss = cross_entropy(scores, labels)
        wrong = (scores.detach().argmax(1) != labels).float().mean()
        self._last = {"loss": loss.detach(), "train_error": wrong}
        return loss * _share(labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels, _ = batch
        wrong = (self(images).argmax(1) != labels).float().mean()
        self.log("test_error", wrong, on_epoch=True, sync_dist=True, batch_size=len(labels))

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        # Not in `on_train_batch_end`, which comes after the checkpoint of this step.
        super().optimizer_step(*args, **options)
        self.update_average()

    def update_average(self) -> None:
        """Move the average, where there is one, towards the present weights."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        s = self.settings
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay
        )
        # Not `trainer.estimated_stepping_batches`: it opens the loader before Lightning puts it where training was.
        rates = schedule(s, optimizer, s.epochs * len(Batches(self.count, s.batch)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def measures(self) -> Mapping[str, float]:
        stats = self.model.stats()
        return {
            **{name: float(value) for name, value in self._last.items()},
            "nfe": sum(s.nfe for s in stats),
            "nfe_backward": sum(s.nfe_backward for s in stats),
            "rejected": sum(s.rejected + s.rejected_backward for s in stats),
            **{f"nfe_block{i}": s.nfe for i, s in enumerate(stats, 1)},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        row = {"model": self.row.model, "gradient": self.row.gradient, "seed": self.row.seed}
        checkpoint[ABOUT] = {"data": self.kind.name, **row, "settings": plain(self.settings)}

    def _draws(self) -> Tensor:
        epoch, drawn = self._drawn
        if epoch != self.current_epoch:
            drawn = draws(self.row.seed, self.current_epoch, self.count, self.settings.side)
            self._drawn = self.current_epoch, drawn
        return drawn


def compile_layers(model: Classifier) -> None:
    """Compile what is between the solver's steps: the layers of every f, and the residual blocks."""
    for module in model.modules():
        if isinstance(module, Residual | Dynamics):
            module.layers.compile()


def _channels_last(model: Classifier) -> None:
    for weight in model.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _average(model: Classifier, decay: float) -> AveragedModel:
    """An exponential moving average of weights and running statistics."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)


def _share(labels: Tensor) -> float:
    """What makes the mean over the devices of their losses the mean over the images of all of them.

    The last minibatch of an epoch may be of another size on each device.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1.0
    total = torch.tensor(len(labels), device=labels.device)
    distributed.all_reduce(total)
    return len(labels) * distributed.get_world_size() / int(total)
