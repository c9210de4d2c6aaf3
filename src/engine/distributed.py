"""The processes of a run: one per GPU through torchrun, or a single one."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from src.engine.heartbeat import Heartbeat
from src.engine.signals import StopSignals

# A rank may wait for hours while another one validates; whether the run moves the heartbeat judges.
WITH_HEARTBEAT, NEVER = timedelta(hours=12), timedelta(days=7)
STARTED_AGAIN = "TORCHELASTIC_RESTART_COUNT"  # set by torchrun


@dataclass(frozen=True)
class Ranks:
    """One process among the processes of the run.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        device: Where it computes.
        heartbeat: Tells the other ranks where this one is; None for a single rank.
    """

    rank: int
    world_size: int
    device: torch.device
    heartbeat: Heartbeat | None = None

    @property
    def is_main(self) -> bool:
        """Only the main rank writes files."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether gradients have to be averaged over processes."""
        return self.world_size > 1

    def at(self, stage: str, step: int) -> None:
        """Note where this rank is, one of `heartbeat.STAGES`, after `step` optimiser steps."""
        if self.heartbeat is not None:
            self.heartbeat.at(stage, step)

    def part_done(self) -> None:
        """Note that a part of a long stage is done, such as a frame of a validation."""
        if self.heartbeat is not None:
            self.heartbeat.part_done()

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
def join_ranks(
    device: torch.device, stall_minutes: float = 0.0, stop: StopSignals | None = None
) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment; leave it at the end.

    Without torchrun there is one rank. Gloo carries CPU runs, NCCL carries CUDA runs. After an
    error the group is not left in order: the other ranks would have to take part in that, and wait
    for this one. torchrun ends them when this process has ended.

    Args:
        device: Of this rank.
        stall_minutes: After so long without any movement the ranks that are late are named and the
            run ends, see `heartbeat.py`; 0: it may wait for ever.
        stop: What this rank has been asked, for the other ranks to hear.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(rank, world_size, device)
        return
    heartbeat = None
    with (StopSignals() if stop is None else stop).impatient():
        if stall_minutes:  # before the group, which would wait for a missing rank without a word
            heartbeat = Heartbeat(_open_store(), rank, world_size, 60 * stall_minutes, stop)
            heartbeat.start()
        # The heartbeat can say who is late; the timeout is what is left if it fails.
        timeout = WITH_HEARTBEAT if stall_minutes else NEVER
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    yield Ranks(rank, world_size, device, heartbeat)
    if heartbeat is not None:
        heartbeat.stop()
    distributed.destroy_process_group()


def _open_store() -> distributed.Store:
    """Connect to torchrun's store once more, so that nothing else waits on the connection."""
    store, _, _ = next(distributed.rendezvous("env://", timeout=timedelta(minutes=1)))
    attempt = os.environ.get(STARTED_AGAIN, "0")
    return distributed.PrefixStore(f"heartbeat/{attempt}", store)


def wrap_model(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model, wrapped so that backward averages gradients over the ranks if need be."""
    model = model.to(ranks.device)
    if not ranks.is_distributed:
        return model
    device_ids = [ranks.device] if ranks.device.type == "cuda" else None
    # Buffers are constants (position tables, flow statistics), so nothing is broadcast per step.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers"  # its name since torch 2.15
    option = option if option in known else "broadcast_buffers"
    return DistributedDataParallel(model, device_ids=device_ids, **{option: False})


@contextmanager
def gradient_sync(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Let the ranks exchange gradients in this backward pass only if `enabled`."""
    if enabled or not isinstance(model, DistributedDataParallel):
        yield
    else:
        with model.no_sync():
            yield
