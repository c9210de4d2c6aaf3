"""The processes of a run: one per GPU through torchrun, or a single one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """One process among the processes of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Only the main rank writes files."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether gradients have to be averaged over processes."""
        return self.world_size > 1

    def gather(self, value: object) -> list:
        """Return the values of all ranks in rank order; every rank has to call it."""
        if not self.is_distributed:
            return [value]
        gathered: list = [None] * self.world_size
        distributed.all_gather_object(gathered, value)
        return gathered

    def largest(self, value: int) -> int:
        """Return the largest value of all ranks; every rank has to call it."""
        if not self.is_distributed:
            return value
        shared = torch.tensor(value, device=self.device)
        distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return int(shared)

    def wait(self) -> None:
        """Wait until every rank has come here."""
        if self.is_distributed:
            distributed.barrier()


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cuda` or `cpu` stands for; under torchrun this rank's GPU.

    Raises:
        RuntimeError: `cuda` is asked for and there is no CUDA device, or not enough of them.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "DEVICE is cuda, but torch sees no CUDA device; install the torch build for your "
            "driver, or set DEVICE cpu"
        )
    index, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= num_gpus:
        raise RuntimeError(
            f"process {index + 1} of this machine needs a GPU of its own, torch sees {num_gpus}; "
            "start as many processes as there are GPUs"
        )
    return torch.device("cuda", index)


@contextmanager
def join_ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment; leave it at the end.

    Without torchrun there is one rank. Gloo carries CPU runs, NCCL carries CUDA runs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield Ranks(rank, world_size, device)
    finally:
        if world_size > 1:
            distributed.destroy_process_group()


def wrap_model(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model, wrapped so that backward averages gradients over the ranks if need be."""
    model = model.to(ranks.device)
    if not ranks.is_distributed:
        return model
    device_ids = [ranks.device] if ranks.device.type == "cuda" else None
    # Buffers are constants (position tables, flow statistics), so nothing is broadcast per step.
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


@contextmanager
def gradient_sync(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Let the ranks exchange gradients in this backward pass only if `enabled`."""
    if enabled or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield
