"""Rivals that learn nothing: the best image that spikes give by themselves, and a bound.

A spike image knows light, not colour: it replaces or corrects the luma of the blurry frame, whose
chroma stays. Its window, smoothing and gain are chosen on training frames.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import cv2
import numpy as np
import torch
from einops import einsum
from torch.nn import functional

from src.data.recordings import Recording
from src.data.simulation.simulator import BT601
from src.data.spikes.reconstruct import tfi
from src.data.spikes.spike_dat import SpikeFile

FIT_FRAMES = 24
WINDOWS = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the median exposure
SIGMAS = (0.0, 0.7, 1.0, 1.5)


@dataclass(frozen=True)
class Exposed:
    """One blurry frame, [H, W, 3] in 0..1, with the spikes of its exposure."""

    blurry: np.ndarray
    counts: torch.Tensor  # [K, h, w]
    bin_ticks: torch.Tensor  # [K]
    spikes: np.ndarray | None  # [S, h, w]; None where there are voxels only
    instant: float  # part of the exposure that has passed at the sharp frame


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
            base, image = self.parts(read_exposed(recording, i, instant))
            yield i, to_bytes(base + self.gain * image[..., None])

    def parts(self, frame: Exposed) -> tuple[np.ndarray, np.ndarray]:
        """Return what the spikes do not change, [H, W, 3], and what the gain multiplies, [H, W]."""
        num_ticks = _num_ticks(frame.bin_ticks)
        centre = frame.instant * num_ticks
        window = (frame.counts, frame.bin_ticks, torch.tensor(centre), self.width)
        if self.kind == "difference":
            image = difference_image(*window, self.sigma)
        elif self.kind == "TFP":
            image = gaussian_blur(window_rate(*window), self.sigma)
        else:
            tick = min(int(round(centre, 6)), num_ticks - 1)
            rate, _ = tfi(frame.spikes, tick, 1.0)
            image = gaussian_blur(torch.from_numpy(rate), self.sigma)
        kept = 0 if self.kind == "difference" else luma(frame.blurry)[..., None]
        return frame.blurry - kept, resized(image.numpy(), frame.blurry.shape[:2])


def choose_spike_image(
    training: Sequence[Recording], tested: Sequence[Recording] = ()
) -> list[SpikeImage]:
    """Return the best image of each kind, the best of all first, by squared error in training.

    The gain of each is the one of least squares. TFI needs spikes, not only voxels, in all
    sequences, those to be tested among them.
    """
    places = [(r, i, at) for r in training for i, at in enumerate(r.sharp_instants)]
    places = places[:: max(1, len(places) // FIT_FRAMES)][:FIT_FRAMES]
    exposures = [_num_ticks(recording.bin_ticks(i)) for recording, i, _ in places]
    candidates = _candidates(float(np.median(exposures)), (*training, *tested))
    sums, num_values = np.zeros((len(candidates), 3)), 0
    for recording, i, instant in places:
        frame = read_exposed(recording, i, instant)
        sharp = recording.read_sharp(i) / np.float32(255)
        num_values += sharp.size
        for number, candidate in enumerate(candidates):
            base, image = candidate.parts(frame)
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


def _num_ticks(bin_ticks: np.ndarray | torch.Tensor) -> int:
    """Return the ticks of an exposure, its bins where they are not known."""
    return int(bin_ticks.sum()) or len(bin_ticks)


def _candidates(exposure: float, recordings: Sequence[Recording]) -> list[SpikeImage]:
    widths = sorted({max(1, round(part * exposure)) for part in WINDOWS})
    kinds = product(("difference", "TFP"), widths, SIGMAS)
    found = [SpikeImage(kind, width, sigma) for kind, width, sigma in kinds]
    if all(frame.spikes.geometry is not None for r in recordings for frame in r.frames):
        found += [SpikeImage("TFI", 0, sigma) for sigma in SIGMAS]
    return found


def read_exposed(recording: Recording, i: int, instant: float) -> Exposed:
    """Read a frame whose sharp frame shows an instant, a part of the exposure."""
    source = recording.frames[i].spikes
    spikes = None
    if source.geometry is not None:
        spikes = SpikeFile(source.path, source.geometry).read(source.start, source.stop)
    return Exposed(
        recording.read_blurry(i) / np.float32(255),
        torch.from_numpy(recording.read_counts(i).astype(np.float32)),
        torch.from_numpy(recording.bin_ticks(i)),
        spikes,
        instant,
    )


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
    counts: torch.Tensor, bin_ticks: torch.Tensor, centre: torch.Tensor, width: float
) -> torch.Tensor:
    """Return the spikes per tick in a window of the exposure: TFP from bins, with gain 1.

    The window is [centre - width / 2, centre + width / 2) in ticks from the start of the exposure,
    cut at its ends. A bin that an edge cuts counts by the part of its ticks inside.

    Args:
        counts: spikes per bin, [..., K, h, w].
        bin_ticks: ticks of each bin, [..., K]; where all are 0 they are unknown and count as 1.
        centre: instant in ticks, [...], inside the exposure.
        width: ticks in the window, above 0.

    Returns:
        float32 [..., h, w], in spikes per tick.
    """
    ticks = _known_ticks(bin_ticks)
    stop = ticks.cumsum(-1)
    first = (centre - width / 2)[..., None]
    inside = torch.minimum(stop, first + width) - torch.maximum(stop - ticks, first)
    inside = inside.clamp(min=0)
    shares = inside / ticks.clamp(min=1) / inside.sum(-1, keepdim=True)
    return einsum(counts.float(), shares, "... k h w, ... k -> ... h w")


def difference_image(
    counts: torch.Tensor,
    bin_ticks: torch.Tensor,
    centre: torch.Tensor,
    width: float,
    sigma: float = 1.0,
) -> torch.Tensor:
    """Return by how much an instant of the exposure is brighter than the whole of it.

    A blurry frame is the mean of the exposure, so blurry + gain * this, enlarged to the frame's
    size and added to all three channels, is an estimate of the sharp frame without any learning.
    The gain is the threshold, in intensity per spike rate.

    Args:
        counts, bin_ticks, centre, width: see `window_rate`.
        sigma: of the Gaussian over the difference, in spike pixels; 0 for none.

    Returns:
        float32 [..., h, w], in spikes per tick, of either sign.
    """
    whole = counts.float().sum(-3) / _known_ticks(bin_ticks).sum(-1)[..., None, None]
    return gaussian_blur(window_rate(counts, bin_ticks, centre, width) - whole, sigma)


def gaussian_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return images [..., h, w] under a Gaussian of `sigma` pixels; edge pixels repeat outside."""
    if sigma == 0:
        return images
    reach = math.ceil(3 * sigma)
    kernel = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (kernel / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = functional.pad(images.reshape(-1, 1, *images.shape[-2:]), (reach,) * 4, "replicate")
    planes = functional.conv2d(planes, kernel.reshape(1, 1, -1, 1))
    return functional.conv2d(planes, kernel.reshape(1, 1, 1, -1)).reshape(images.shape)


def _known_ticks(bin_ticks: torch.Tensor) -> torch.Tensor:
    is_known = bin_ticks.sum(-1, keepdim=True) > 0
    return torch.where(is_known, bin_ticks, 1).float()
