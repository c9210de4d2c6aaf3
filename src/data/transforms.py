"""Crops, flips, transposition and time reversal, the same for RGB frames and spikes.

Spikes alone can also get the defects of another sensor: fewer or more of them, dead and hot pixels.

Everything is drawn from the generator of the sample; nothing is kept. Each draw takes the same
numbers from it whatever is switched on, so that one setting does not change another.
"""

from dataclasses import dataclass
from math import gcd

import cv2
import numpy as np

from src.data.voxel_counts import Crop

FLIP_CODES = {(True, False): 0, (False, True): 1, (True, True): -1}  # rows, columns -> cv2.flip
ORDER_STREAM, SAMPLE_STREAM = 0, 1  # keep the two uses of a seed apart
LEAST_KEPT, LARGEST_RATE = 0.5, 2.0  # of the spikes
MOST_DEAD, MOST_HOT = 5e-3, 1e-3  # parts of the pixels

Key = tuple[int, int]  # epoch, index
Size = tuple[int, int]  # height, width in pixels


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of one sample's random choices."""
    return np.random.default_rng([SAMPLE_STREAM, seed, epoch, index])


@dataclass(frozen=True)
class AugmentSettings:
    """Which random changes are allowed: flips in both directions, transposition, time reversal.

    `spikes` allows what `draw_defects` draws.
    """

    flip: bool = False
    transpose: bool = False
    reverse: bool = False
    spikes: bool = False


@dataclass(frozen=True)
class Orientation:
    """One drawn change. Flips come first, then the transposition."""

    flip_rows: bool = False
    flip_columns: bool = False
    transpose: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class CropGrid:
    """Where a square crop can lie so that it is whole pixels in RGB and in spikes.

    RGB and spikes show the same scene with F and S pixels along an axis. Only every F/gcd(F, S)-th
    RGB pixel begins where a spike pixel begins; origin and size of a crop are multiples of these
    steps, (rows, columns) in the pixels of each.
    """

    frame_size: Size
    spike_size: Size
    crop_px: int
    frame_step: Size
    spike_step: Size

    @property
    def spike_crop_size(self) -> Size:
        """Height and width of the crop in spike pixels."""
        return tuple(
            self.crop_px // frame * spike
            for frame, spike in zip(self.frame_step, self.spike_step, strict=True)
        )


def crop_grid(frame_size: Size, spike_size: Size, crop_px: int) -> CropGrid:
    """Return the possible crops of a recording; a ValueError names crop sizes that are possible."""
    common = [gcd(*sizes) for sizes in zip(frame_size, spike_size, strict=True)]
    frame_step = tuple(size // g for size, g in zip(frame_size, common, strict=True))
    spike_step = tuple(size // g for size, g in zip(spike_size, common, strict=True))
    step = frame_step[0] * frame_step[1] // gcd(*frame_step)
    if crop_px % step:
        below = crop_px // step * step
        fitting = [size for size in (below, below + step) if 0 < size <= min(frame_size)]
        raise ValueError(
            f"a crop of {crop_px} RGB pixels is no whole number of spike pixels for frames of "
            f"{frame_size[0]}x{frame_size[1]} and spikes of {spike_size[0]}x{spike_size[1]}; "
            + (f"sizes that fit: {fitting}" if fitting else "resize the frames or the spikes")
        )
    return CropGrid(frame_size, spike_size, crop_px, frame_step, spike_step)


def draw_crop(rng: np.random.Generator, grid: CropGrid) -> tuple[Crop, Crop]:
    """Draw a crop: (y, x, height, width) of the same scene region in RGB and in spike pixels."""
    if min(grid.frame_size) < grid.crop_px:
        raise ValueError(
            f"frames of {grid.frame_size[0]}x{grid.frame_size[1]} are smaller than the crop of "
            f"{grid.crop_px}"
        )
    counts = [
        (size - grid.crop_px) // step + 1
        for size, step in zip(grid.frame_size, grid.frame_step, strict=True)
    ]
    drawn = [int(rng.integers(count)) for count in counts]
    frame_origin, spike_origin = (
        tuple(number * step for number, step in zip(drawn, steps, strict=True))
        for steps in (grid.frame_step, grid.spike_step)
    )
    return (*frame_origin, grid.crop_px, grid.crop_px), (*spike_origin, *grid.spike_crop_size)


def draw_orientation(rng: np.random.Generator, settings: AugmentSettings) -> Orientation:
    """Draw flips, transposition and reversal, each with probability one half where allowed."""
    rows, columns, transpose, reverse = (bool(value) for value in rng.integers(2, size=4))
    return Orientation(
        flip_rows=rows and settings.flip,
        flip_columns=columns and settings.flip,
        transpose=transpose and settings.transpose,
        reverse=reverse and settings.reverse,
    )


def orient_frames(frames: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Return frames [T, C, H, W] of a dtype of OpenCV in the drawn orientation, C order."""
    return _orient_plane(frames[::-1] if orientation.reverse else frames, orientation)


def orient_voxels(voxels: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Return voxels [T, K, H, W] in the drawn orientation; reversal is of frames and of bins.

    Where K does not divide the ticks, the unequal bins come in the opposite order.
    """
    return _orient_plane(voxels[::-1, ::-1] if orientation.reverse else voxels, orientation)


def _orient_plane(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Return [..., H, W] in the drawn orientation, C order; three times as fast as NumPy."""
    flips = (orientation.flip_rows, orientation.flip_columns)
    if not any(flips) and not orientation.transpose:
        return np.ascontiguousarray(array)
    planes = np.ascontiguousarray(array).reshape(-1, *array.shape[-2:])
    shape = array.shape[:-2] + (array.shape[:-3:-1] if orientation.transpose else array.shape[-2:])
    result = np.empty(shape, array.dtype)
    for plane, target in zip(planes, result.reshape(-1, *shape[-2:]), strict=True):
        if orientation.transpose:
            turned = cv2.flip(plane, FLIP_CODES[flips]) if any(flips) else plane
            cv2.transpose(turned, target)
        else:
            cv2.flip(plane, FLIP_CODES[flips], target)
    return result


@dataclass(frozen=True)
class SpikeDefects:
    """What another sensor would have recorded, drawn for one clip."""

    kept: float = 1.0  # probability of each spike to stay
    rate: float = 1.0  # factor on the counts, as of a lower threshold
    dead: float = 0.0  # part of the pixels that never fire
    hot: float = 0.0  # part of them that fire at every tick


def draw_defects(rng: np.random.Generator) -> SpikeDefects:
    """Draw defects; each of thinning, rate and damaged pixels with probability one half."""
    has_thinning, has_rate, has_damage = (bool(value) for value in rng.integers(2, size=3))
    kept, exponent, dead, hot = rng.uniform([LEAST_KEPT, -1, 0, 0], [1, 1, MOST_DEAD, MOST_HOT])
    return SpikeDefects(
        kept=kept if has_thinning else 1.0,
        rate=LARGEST_RATE**exponent if has_rate else 1.0,
        dead=dead if has_damage else 0.0,
        hot=hot if has_damage else 0.0,
    )


def damage_counts(
    rng: np.random.Generator, counts: np.ndarray, bin_ticks: np.ndarray, defects: SpikeDefects
) -> np.ndarray:
    """Return counts [T, K, H, W] with defects, of the same dtype; pixels keep theirs over a clip.

    No bin gets more spikes than it has ticks, `bin_ticks` [T, K]; all 0 where they are not known.
    Whole numbers stay whole: a factor on them is rounded up or down at random, right in the mean.
    """
    is_whole, is_known = counts.dtype.kind != "f", bin_ticks.any()
    largest = np.iinfo(counts.dtype).max if is_whole else np.inf
    ticks = np.minimum(bin_ticks[..., None, None] if is_known else counts.max(initial=0), largest)
    ticks = np.broadcast_to(ticks, counts.shape)
    has_spikes = counts > 0
    values = counts[has_spikes]
    if not is_whole:
        values = values * (defects.kept * defects.rate)
    elif defects.kept < 1:
        values = rng.binomial(values, defects.kept)
    if is_whole and defects.rate != 1:
        values = np.floor(values * defects.rate + rng.random(values.shape))
    damaged = counts.copy()
    damaged[has_spikes] = np.minimum(values, ticks[has_spikes] if is_known else largest)
    position = rng.random(counts.shape[-2:])
    damaged[..., position < defects.dead] = 0
    is_hot = position > 1 - defects.hot
    damaged[..., is_hot] = ticks[..., is_hot]
    return damaged
