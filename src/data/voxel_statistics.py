"""What the counts of a frame add up to, so that mean and deviation need no second reading."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from src.data.datasets.voxelizer import ticks_per_bin

UNKNOWN_TICKS = "0"


@dataclass(frozen=True)
class VoxelStatistics:
    """Sums and histograms over the voxels of a frame.

    Attributes:
        num_voxels: how many there are.
        event_count: their sum.
        sum_log1p, sum_log1p_squared: of log1p(count) and of its square.
        histograms: ticks of a bin, as text -> how often the counts 0, 1, 2, ... occur in bins of so
            many ticks; "0" where the ticks are not known. Empty where the voxels are no whole
            numbers below 65536.
    """

    num_voxels: int
    event_count: int
    sum_log1p: float
    sum_log1p_squared: float
    histograms: Mapping[str, Sequence[int]]


def statistics_of(counts: np.ndarray, num_ticks: int | None) -> VoxelStatistics:
    """Return the statistics of counts [K, H, W] of a window of so many ticks; None: not known."""
    histograms: dict[str, list[int]] = {}
    if counts.dtype in (np.uint8, np.uint16):
        histograms = _histograms(counts, num_ticks)
        frequency = np.sum(list(histograms.values()), axis=0)
        values = np.arange(len(frequency), dtype=np.float64)
    else:
        values, frequency = counts.astype(np.float64).ravel(), 1
    logs = np.log1p(values)
    return VoxelStatistics(
        num_voxels=int(counts.size),
        event_count=round(float((values * frequency).sum())),
        sum_log1p=float((logs * frequency).sum()),
        sum_log1p_squared=float((logs * logs * frequency).sum()),
        histograms=histograms,
    )


def normalization_of(
    frames: Iterable[VoxelStatistics], gain: float = 1.0, bin_normalize: bool = False
) -> tuple[float, float]:
    """Return mean and standard deviation of log1p(value) over all voxels of the frames.

    The value is count * gain, divided by the ticks of the bin if `bin_normalize`. The result does
    not depend on the order of the frames.

    Raises:
        ValueError: there is no voxel, or the statistics do not hold what other values need.
    """
    frames = list(frames)
    number = sum(frame.num_voxels for frame in frames)
    if number == 0:
        raise ValueError("no voxels to take mean and deviation from")
    sums = [_sums(frame, gain, bin_normalize) for frame in frames]
    mean = math.fsum(total for total, _ in sums) / number
    square = math.fsum(squares for _, squares in sums) / number
    return mean, math.sqrt(max(square - mean * mean, 0.0))


def _sums(frame: VoxelStatistics, gain: float, bin_normalize: bool) -> tuple[float, float]:
    """Return the sums of log1p(value) and of its square over the voxels of a frame."""
    if gain == 1.0 and not bin_normalize:
        return frame.sum_log1p, frame.sum_log1p_squared
    if not frame.histograms:
        raise ValueError(
            "voxels that are no whole numbers go with DATA.GAIN 1 and DATA.BIN_NORMALIZE False "
            "only; scale the voxels before they are stored instead"
        )
    if bin_normalize and UNKNOWN_TICKS in frame.histograms:
        raise ValueError(
            "DATA.BIN_NORMALIZE needs the ticks of every bin, which voxels without spikes do not "
            "tell; add the .dat files, or divide the voxels before they are stored"
        )
    total = squares = 0.0
    for ticks, frequency in frame.histograms.items():
        factor = gain / int(ticks) if bin_normalize else gain
        logs = np.log1p(np.arange(len(frequency)) * factor)
        total += float((logs * frequency).sum())
        squares += float((logs * logs * frequency).sum())
    return total, squares


def _histograms(counts: np.ndarray, num_ticks: int | None) -> dict[str, list[int]]:
    """Return how often each count occurs in the bins of each number of ticks."""
    ticks = np.full(len(counts), int(UNKNOWN_TICKS))
    if num_ticks is not None:
        # A bin without ticks holds no spikes, whatever it is divided by.
        ticks = np.maximum(ticks_per_bin(num_ticks, len(counts)), 1)
    table = np.zeros((ticks.max() + 1, int(counts.max()) + 1), np.int64)
    for number, plane in zip(ticks, counts, strict=True):
        table[number] += np.bincount(plane.ravel(), minlength=table.shape[1])
    return {str(number): table[number].tolist() for number in np.unique(ticks)}
