"""Processes of one group on this machine."""

import datetime
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2
needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)


def found_by_ranks(find, folder, start_method):
    """What `find(rank)` returns in each of the processes; the folder is for their files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_work, (find, port, str(folder)), nprocs=RANKS, start_method=start_method)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _work(rank, find, port, folder):
    """Gloo gives up where the other rank does not come."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=RANKS, timeout=datetime.timedelta(seconds=30))
    torch.save(find(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
