"""Weights, gradients and the optimizer's state divided among the processes: FSDP2 (PyTorch's `fully_shard`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType, fully_shard


class Sharded(ModelParallelStrategy):
    """Lightning's FSDP2 over all processes, with the checkpoints of one process.

    The module applies `shard` to its network in Lightning's hook `configure_model`.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Put a checkpoint's weights and optimizer's state into the shards; the rest of it is returned.

        Lightning's own does not ask the plugin that reads files in parts.
        """
        state = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)
        whole = StateDictOptions(full_state_dict=True)
        assert self.model is not None
        set_model_state_dict(self.model, state.pop("state_dict"), options=whole)
        for optimizer, of_process in zip(self.optimizers, state.pop("optimizer_states"), strict=True):
            named = FullyShardedDataParallel.rekey_optim_state_dict(
                of_process, OptimStateKeyType.PARAM_NAME, self.model, optim=optimizer
            )
            set_optimizer_state_dict(self.model, optimizer, named, options=whole)
        return state


def shard(network: nn.Module, parts: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Divide a network's parameters among the processes of `mesh`, in place.

    Parameters
    ----------
    parts : iterable of Module
        Each is gathered as a whole for its forward and its backward pass, what is left of the network in one piece.
        An adaptive solve lies inside one of them: processes that gathered in f would wait for each other.
    """
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no other layout
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)


def share_buffers(network: nn.Module) -> None:
    """Give every process the first one's buffers, as DDP does: FSDP2 leaves them to each process."""
    for buffer in network.buffers():
        distributed.broadcast(buffer, 0)
