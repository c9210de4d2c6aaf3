"""Baselines that learn nothing: the best image that spikes give by themselves, and a bound.

A spike image knows light, not colour: it replaces or corrects the luma of the blurry frame, whose
chroma stays. Its window, smoothing and gain are chosen on training frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import cv2
import numpy as np

from src.data.recordings import Recording
from src.data.simulation.simulator import BT601
from src.data.spikes.reconstruct import tfi
from src.data.spikes.spike_dat import SpikeFile

FIT_FRAMES = 24
WINDOWS = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the median exposure
SIGMAS = (0.0, 0.7, 1.0, 1.5)


@dataclass(frozen=True)
class SpikeImage:
    """How a frame is made from its spikes: luma = gain * image, or blurry + gain * difference."""

    kind: str  # "TFP", "TFI" or "difference"
    width: float  # ticks of the window; bins where their ticks are not known
    sigma: float  # of the Gaussian, in spike pixels
    gain: float = 1.0  # intensity, full scale 1, per spike rate
    psnr_db: float = 0.0  # on the training frames it was chosen on

    def describe(self) -> str:
        """Return in words what it is."""
        window = "" if self.kind == "TFI" else f" of {self.width:g} ticks"
        kind = "blurry + difference" if self.kind == "difference" else self.kind
        return f"{kind}{window}, Gaussian {self.sigma:g} px, gain {self.gain:.3f}"

    def restore(self, recording: Recording) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number and the uint8 RGB [H, W, 3] of every frame."""
        for i, instant in enumerate(recording.sharp_instants):
            base, image = self.parts(recording, i, instant)
            yield i, to_bytes(base + self.gain * image[..., None])

    def parts(self, recording: Recording, i: int, instant: float) -> tuple[np.ndarray, np.ndarray]:
        """Return what the spikes do not change, [H, W, 3], and what the gain multiplies, [H, W].

        `instant` is the part of the exposure that has passed at the sharp frame.
        """
        blurry = recording.read_blurry(i) / np.float32(255)
        bin_ticks = recording.bin_ticks(i)
        num_ticks = _num_ticks(bin_ticks)
        centre = instant * num_ticks
        if self.kind == "TFI":
            source = recording.frames[i].spikes
            spikes = SpikeFile(source.path, source.geometry).read(source.start, source.stop)
            image, _ = tfi(spikes, min(int(round(centre, 6)), num_ticks - 1), 1.0)
            image = gaussian_blur(image, self.sigma)
        else:
            window = (recording.read_counts(i), bin_ticks, centre, self.width)
            image = (
                difference_image(*window, self.sigma)
                if self.kind == "difference"
                else gaussian_blur(window_rate(*window), self.sigma)
            )
        kept = 0 if self.kind == "difference" else luma(blurry)[..., None]
        return blurry - kept, resized(image, blurry.shape[:2])


def choose_spike_image(
    training: Sequence[Recording], tested: Sequence[Recording] = ()
) -> list[SpikeImage]:
    """Return the best image of each kind, the best of all first, by squared error in training.

    The gain of each is the one of least squares. TFI needs spikes, not only voxels, in all
    sequences, those to be tested among them.
    """
    frames = [(r, i, at) for r in training for i, at in enumerate(r.sharp_instants)]
    frames = frames[:: max(1, len(frames) // FIT_FRAMES)][:FIT_FRAMES]
    exposures = [_num_ticks(recording.bin_ticks(i)) for recording, i, _ in frames]
    candidates = _candidates(float(np.median(exposures)), (*training, *tested))
    sums, num_values = np.zeros((len(candidates), 3)), 0
    for recording, i, instant in frames:
        sharp = recording.read_sharp(i) / np.float32(255)
        num_values += sharp.size
        for number, candidate in enumerate(candidates):
            base, image = candidate.parts(recording, i, instant)
            missing = sharp - base
            products = 3 * image**2, image * missing.sum(axis=2), missing**2
            sums[number] += [part.sum(dtype=np.float64) for part in products]
    squares, product, missing = sums.T
    gains = product / np.maximum(squares, 1e-12)
    errors = np.maximum(missing - gains * product, 1e-12) / num_values
    fitted = [
        replace(candidate, gain=float(gain), psnr_db=float(-10 * np.log10(error)))
        for candidate, gain, error in zip(candidates, gains, errors, strict=True)
    ]
    fitted.sort(key=lambda found: found.psnr_db)
    kinds = {found.kind: found for found in fitted}  # the last one of each kind is its best
    return sorted(kinds.values(), key=lambda found: -found.psnr_db)


def _num_ticks(bin_ticks: np.ndarray) -> int:
    """Return the ticks of an exposure, its bins where they are not known."""
    return int(bin_ticks.sum()) or len(bin_ticks)


def _candidates(exposure: float, recordings: Sequence[Recording]) -> list[SpikeImage]:
    widths = sorted({max(1, round(part * exposure)) for part in WINDOWS})
    kinds = product(("difference", "TFP"), widths, SIGMAS)
    found = [SpikeImage(kind, width, sigma) for kind, width, sigma in kinds]
    if all(frame.spikes.geometry is not None for r in recordings for frame in r.frames):
        found += [SpikeImage("TFI", 0, sigma) for sigma in SIGMAS]
    return found


def bound_at_spike_resolution(recording: Recording) -> Iterator[tuple[int, np.ndarray]]:
    """Yield what perfect luma of the spikes' resolution gives: all there is without finer detail.

    The true luma is averaged down to the size of the spikes and enlarged, the chroma is blurry.
    """
    for i in range(len(recording)):
        blurry, sharp = (
            read(i) / np.float32(255) for read in (recording.read_blurry, recording.read_sharp)
        )
        rows, columns = recording.read_counts(i).shape[-2:]
        small = cv2.resize(luma(sharp), (columns, rows), interpolation=cv2.INTER_AREA)
        change = resized(small, blurry.shape[:2]) - luma(blurry)
        yield i, to_bytes(blurry + change[..., None])


def luma(image: np.ndarray) -> np.ndarray:
    """Return the BT.601 luma [H, W] of RGB [H, W, 3], both full range."""
    return image @ np.array(BT601, image.dtype)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image [h, w] enlarged to a size (H, W), bicubic."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Return values in 0..1 as uint8, clamped and rounded."""
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


# ---------------------------------------------------------------- images of counted bins


def window_rate(
    counts: np.ndarray, bin_ticks: np.ndarray, centre: float, width: float
) -> np.ndarray:
    """Return the spikes per tick in a window of the exposure, float32 [h, w]: TFP with gain 1.

    The window is [centre - width / 2, centre + width / 2) in ticks from the start of the exposure,
    cut at its ends. A bin that an edge cuts counts by the part of its ticks inside. `counts` are
    [K, h, w], `bin_ticks` [K]; where all ticks are 0 they are unknown and count as 1.
    """
    ticks = _known_ticks(bin_ticks)
    stop, first = ticks.cumsum(), centre - width / 2
    inside = (np.minimum(stop, first + width) - np.maximum(stop - ticks, first)).clip(min=0)
    shares = inside / ticks.clip(min=1) / inside.sum()
    return np.tensordot(shares.astype(np.float32), counts.astype(np.float32), 1)


def difference_image(
    counts: np.ndarray, bin_ticks: np.ndarray, centre: float, width: float, sigma: float = 1.0
) -> np.ndarray:
    """Return by how much an instant of the exposure is brighter than the whole of it, [h, w].

    A blurry frame is the mean of the exposure, so blurry + gain * this, enlarged to the frame's
    size and added to all three channels, is an estimate of the sharp frame without any learning.
    The gain is the threshold, in intensity per spike rate. `sigma` is that of a Gaussian over the
    difference, in spike pixels; the others are those of `window_rate`.
    """
    whole = counts.sum(axis=0, dtype=np.float32) / _known_ticks(bin_ticks).sum()
    return gaussian_blur(window_rate(counts, bin_ticks, centre, width) - whole, sigma)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return an image [h, w] under a Gaussian of `sigma` pixels; edge pixels repeat outside."""
    if sigma == 0:
        return image
    side = 2 * int(np.ceil(3 * sigma)) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)


def _known_ticks(bin_ticks: np.ndarray) -> np.ndarray:
    return (bin_ticks if bin_ticks.any() else np.ones_like(bin_ticks)).astype(np.float32)
