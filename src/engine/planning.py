"""Memory and time of a training before it is started, and settings that fit a given memory.

Activations follow a straight line in the pixels of a micro-batch: two small crops give it. What
does not follow from the model is an assumption and named as one: see `RESERVE` and `GPU_TFLOPS`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from yacs.config import CfgNode

from src.data.build import build_train_dataset
from src.engine.progress import count_steps
from src.engine.step_cost import MicroBatchSize
from src.paths import resolve

GB = 1e9
FLOAT_BYTES = 4  # weights, gradients and moments are float32 in every precision
ADAM_MOMENTS = 2
# Share of the memory that is left alone: the context of CUDA, fragmentation, work spaces of cuDNN.
RESERVE = 0.15
# The same for counted instead of measured memory: work spaces of kernels are not counted. On a CPU
# a process grew by 1.6 times the count (the small VRT, 2 frames of 128 x 128, recomputing).
RESERVE_ESTIMATED = 0.3
MEMORIES_GB = (12, 24, 48, 80)
CROPS_PX = (256, 224, 192, 160, 128, 96, 64)
SMALL_CROPS_PX = (64, 128)
# Sustained rates that are assumed, in TFLOP/s; none was measured here. The A100's is what the
# published training of VRT comes to: up to 10 days for 300000 steps of one clip of 6 x 192 x 192
# per GPU, 5.3 TFLOP forward. It is far below the data sheet, since the many small operations wait
# for memory, so the other rates are in proportion to the memory bandwidth of the data sheets.
GPU_TFLOPS = {"RTX 3060": 1.1, "RTX 4090": 3.2, "A100": 6.5, "H100": 10.7}
# Passes of forward work: one forward, two for the gradients, one for what is computed again.
PASSES, PASSES_RECOMPUTING = 3, 4


@dataclass(frozen=True)
class MemoryLaw:
    """Bytes of activations: `fixed + per_pixel * pixels`."""

    fixed: float
    per_pixel: float

    def __call__(self, size: MicroBatchSize) -> float:
        """Return the bytes for a micro-batch."""
        return self.fixed + self.per_pixel * size.pixels


def fit_law(measured: dict[MicroBatchSize, float]) -> MemoryLaw:
    """Return the line through two measurements; it never falls and never starts below zero.

    Raises:
        ValueError: not two sizes of different numbers of pixels.
    """
    points = sorted((size.pixels, value) for size, value in measured.items())
    if len(points) != 2 or points[0][0] == points[1][0]:
        raise ValueError(f"a line needs two different sizes, got {points}")
    (small, low), (large, high) = points
    slope = (high - low) / (large - small)
    if slope <= 0 or low - slope * small < 0:
        return MemoryLaw(0.0, max(high / large, low / small))
    return MemoryLaw(low - slope * small, slope)


@dataclass(frozen=True)
class StateBytes:
    """What a training holds whatever the size of its batches, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    average: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average


def state_bytes(model: nn.Module, cfg: CfgNode) -> StateBytes:
    """Return the bytes of weights with buffers, gradients, AdamW's moments and averaged weights."""
    weights = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    gradients = trained * FLOAT_BYTES
    average = weights if cfg.TRAIN.EMA_DECAY else 0
    return StateBytes(weights, gradients, ADAM_MOMENTS * gradients, average)


def with_recomputation(cfg: CfgNode, *, enabled: bool) -> CfgNode:
    """Return the configuration with or without recomputation of intermediates."""
    changed = cfg.clone()
    changed.defrost()
    changed.MODEL.USE_CHECKPOINT_ATTN = changed.MODEL.USE_CHECKPOINT_FFN = enabled
    return changed


@dataclass(frozen=True)
class Settings:
    """Settings that fit; `gb` is what they need without the reserve."""

    clips: int
    accumulation: int
    recomputes: bool
    crop_px: int
    gb: float

    def overrides(self) -> str:
        """Return the settings as they are given to a command."""
        recomputes = str(self.recomputes).lower()
        return (
            f"TRAIN.BATCH_SIZE {self.clips} "
            f"TRAIN.GRADIENT_ACCUMULATION_STEPS {self.accumulation} "
            f"DATA.CROP_SIZE {self.crop_px} "
            f"MODEL.USE_CHECKPOINT_ATTN {recomputes} MODEL.USE_CHECKPOINT_FFN {recomputes}"
        )


@dataclass(frozen=True)
class Search:
    """What `settings_for` looks through.

    Attributes:
        laws: By whether intermediates are computed again.
        state: Bytes that are always there.
        frames: DATA.CLIP_LEN.
        crop_px: The crop that is wanted; smaller ones are tried when it does not fit.
        clips_per_rank: Clips of one rank in one optimiser step.
        reserve: Share of the memory that stays free.
    """

    laws: dict[bool, Callable[[MicroBatchSize], float]]
    state: int
    frames: int
    crop_px: int
    clips_per_rank: int
    reserve: float = RESERVE


def candidates(search: Search) -> Iterator[Settings]:
    """Yield settings of the same effective batch: large crops first, then fast ones.

    The crop decides what can be learnt, so it is given up last. At one crop, keeping intermediates
    is faster than computing them again, and larger micro-batches are faster than small ones.
    """
    crops = [search.crop_px, *(c for c in CROPS_PX if c < search.crop_px)]
    divisors = [n for n in range(search.clips_per_rank, 0, -1) if search.clips_per_rank % n == 0]
    for crop in crops:
        for recomputes in (False, True):
            for clips in divisors:
                size = MicroBatchSize(clips, search.frames, crop)
                needed = search.state + search.laws[recomputes](size)
                accumulation = search.clips_per_rank // clips
                yield Settings(clips, accumulation, recomputes, crop, needed / GB)


def settings_for(memory_gb: float, search: Search) -> Settings | None:
    """Return the first candidate that fits into `memory_gb`, or None."""
    usable = memory_gb * (1 - search.reserve)
    return next((found for found in candidates(search) if found.gb <= usable), None)


def step_flops(forward: float, *, recomputes: bool, micro_batches: int) -> float:
    """Return the work of one optimiser step from that of one forward pass."""
    return forward * (PASSES_RECOMPUTING if recomputes else PASSES) * micro_batches


def days(steps: int, seconds_per_step: float) -> float:
    """Return the days that `steps` take."""
    return steps * seconds_per_step / 86400


def steps_of(cfg: CfgNode) -> int | None:
    """Return the steps of the whole run; None where EPOCHS decides and the data are not there.

    Raises:
        DataSetError: The data are there and cannot be used.
    """
    train = cfg.TRAIN
    if train.MAX_STEPS:
        return train.MAX_STEPS
    if not resolve(cfg.DATA.ROOT).is_dir():
        return None
    clips_per_step = train.BATCH_SIZE * train.GRADIENT_ACCUMULATION_STEPS
    return count_steps(0, train.EPOCHS, len(build_train_dataset(cfg)), clips_per_step)
