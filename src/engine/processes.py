"""The processes of a run: one per GPU through torchrun, or a single one; device and precision."""

import inspect
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import distributed, nn
from torch.distributed import Store
from torch.nn.parallel import DistributedDataParallel

from src.engine.signals import StoppedError, StopSignals
from src.engine.stall import StallWatch

# A rank may wait for hours while another one validates; the stall watch judges whether ranks move.
WITH_WATCH, NEVER = timedelta(hours=12), timedelta(days=7)
STARTED_AGAIN = "TORCHELASTIC_RESTART_COUNT"  # set by torchrun
POLL_SECONDS = 0.1
JOIN_SECONDS = 30.0  # between the slowest and the fastest rank's imports, after a signal
SHARE_SECONDS = 300.0  # in which the others leave a validation, after a signal


@dataclass(frozen=True)
class Ranks:
    """One process among the processes of the run; rank 0, the main one, writes files."""

    rank: int
    world_size: int
    device: torch.device
    watch: StallWatch | None = None  # none for a single rank, as the store
    store: Store | None = None
    stop: StopSignals = field(default_factory=StopSignals)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether gradients have to be averaged over processes."""
        return self.world_size > 1

    def at(self, stage: str, step: int) -> None:
        """Record where this rank is, one of `stall.STAGES`, after `step` optimiser steps."""
        if self.watch is not None:
            self.watch.at(stage, step)

    def part_done(self) -> None:
        """Record that a part of a long stage is done, such as a tile of a validation."""
        if self.watch is not None:
            self.watch.part_done()

    def meet(self, name: str, patience_s: float) -> None:
        """Wait in Python, where signal handlers run, until every rank has called this with `name`.

        Raises:
            StoppedError: This rank was asked to stop more than `patience_s` ago and not all came.
        """
        if self.store is None:
            return
        self.store.set(f"{name}/{self.rank}", "here")
        keys = [f"{name}/{rank}" for rank in range(self.world_size)]
        while not self.store.check(keys):
            if self.stop.seconds_since() > patience_s:
                raise StoppedError(f"not all ranks have come to: {name}")
            time.sleep(POLL_SECONDS)

    def gather(self, value: object = None) -> list:
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


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cuda` or `cpu` means; under torchrun this rank's GPU."""
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


@dataclass(frozen=True)
class Precision:
    """The format in which the model's blocks compute; parameters stay float32."""

    name: str
    device_type: str

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The autocast format, or None for float32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[self.name]


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that TRAIN.AMP means on `device`; ValueError if it lacks that format."""
    if device.type == "cpu":
        if name in ("fp16", "bf16"):
            # bf16: torch's 3D convolutions on CPUs then give gradients of small maps that hold
            # whatever was in memory before (seen with torch 2.15; the first ones are infinite).
            raise ValueError(f"TRAIN.AMP {name} needs a GPU; on a CPU use auto or fp32")
        return Precision("fp32", "cpu")
    has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "bf16" and not has_bf16:
        raise ValueError(
            f"TRAIN.AMP bf16 is not supported by {torch.cuda.get_device_name(device)}; "
            "use auto or fp16"
        )
    if name == "auto":
        name = "bf16" if has_bf16 else "fp16"
    return Precision(name, "cuda")


def set_determinism(enabled: bool) -> None:
    """Let torch choose operations that give equal results in equal runs; it warns of the others."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for matrix products on CUDA
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = not enabled, enabled
    torch.set_deterministic_debug_mode("warn" if enabled else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time, helps debugging only


@contextmanager
def reporting_nondeterminism(report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` once with each operation that torch warns of as not deterministic."""
    show, seen = warnings.showwarning, set()

    def catch(message: Warning | str, *details: object) -> None:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(message))
        if found is None:
            show(message, *details)
        elif found[1] not in seen:
            seen.add(found[1])
            report(found[1])

    warnings.showwarning = catch
    try:
        yield
    finally:
        warnings.showwarning = show


@contextmanager
def join_ranks(device: torch.device, stall_minutes: float, stop: StopSignals) -> Iterator[Ranks]:
    """Join the process group that torchrun describes in the environment; leave it at the end.

    Without torchrun there is one rank. After an error the group is not left in order, as the other
    ranks would have to take part. `stall_minutes` 0: a hanging run waits forever.

    Raises:
        StoppedError: A signal came before the other ranks did.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if rank >= world_size or (world_size > 1 and "RANK" not in os.environ):
        raise RuntimeError(
            f"RANK is {os.environ.get('RANK', 'not set')} and WORLD_SIZE {world_size} in the "
            "environment: unset both, or start all processes with scripts/launch_train.sh or "
            "torchrun"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(rank, world_size, device, stop=stop)
        return
    store, watch = _open_store(), None
    if stall_minutes:  # before the group, which would wait silently for a missing rank
        watch = StallWatch(_open_store(), rank, world_size, 60 * stall_minutes, stop)
        watch.start()
    ranks = Ranks(rank, world_size, device, watch, store, stop)
    ranks.meet("start", JOIN_SECONDS)
    # The watch names who is late; the timeout applies if it fails.
    timeout = WITH_WATCH if stall_minutes else NEVER
    has_nccl = device.type == "cuda" and distributed.is_nccl_available()  # Windows has none
    distributed.init_process_group("nccl" if has_nccl else "gloo", timeout=timeout)
    yield ranks
    if watch is not None:
        watch.stop()
    distributed.destroy_process_group()


def _open_store() -> Store:
    """Connect to torchrun's store once more; a connection serves one thread at a time."""
    store, _, _ = next(distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
    return distributed.PrefixStore(f"vrt_spike/{os.environ.get(STARTED_AGAIN, '0')}", store)


def wrap_model(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the model on the device, wrapped to average gradients if there are several ranks."""
    model = model.to(ranks.device)
    if not ranks.is_distributed:
        return model
    device_ids = [ranks.device] if ranks.device.type == "cuda" else None
    # Buffers are constants (position tables, flow statistics), so nothing is broadcast per step.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers"  # its name since torch 2.15
    option = option if option in known else "broadcast_buffers"
    return DistributedDataParallel(model, device_ids=device_ids, **{option: False})
