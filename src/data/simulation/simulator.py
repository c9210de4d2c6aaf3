"""Integrate-and-fire model of a spike camera, seeded, in chunks of any length.

Per pixel and tick, with intensity I in [0, 1], membrane u and threshold theta:

    u <- u + I;   s = 1 if u >= theta else 0;   u <- u - theta * s

so that the mean of the bits is I / theta; resetting u to zero would lose the remainder.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import cv2
import numpy as np

TRANSFERS = ("encoded", "linear")
BT601 = (0.299, 0.587, 0.114)
CAMERA_GAMMA = 2.2
_BT601_ROW = np.array([BT601], dtype=np.float32)

# Every random quantity has its own stream, so that switching one off does not change another.
_START, _GAIN, _DARK, _THRESHOLD, _SHOT, _TEMPORAL = range(6)


@dataclass(frozen=True)
class SpikeNoise:
    """Noise of the sensor; every part is off at its default.

    u <- u + a(y,x) * Poisson(I * photons) / photons + d(y,x) + temporal_sigma * eps
    theta(y,x) = theta * (1 + threshold_sigma * eps)
    """

    photons: float | None = None  # per tick at full scale, for shot noise
    gain_sigma: float = 0.0  # relative deviation of the gain a(y,x) from pixel to pixel
    dark_mean: float = 0.0  # of the dark current d(y,x), in full-scale intensity per tick
    dark_sigma: float = 0.0  # its deviation; negative currents become 0
    temporal_sigma: float = 0.0
    threshold_sigma: float = 0.0
    sensor_seed: int = 0  # draws the fixed patterns; keep it for several clips of one sensor

    def __post_init__(self) -> None:
        if self.photons is not None and not self.photons > 0:
            raise ValueError(f"photons is {self.photons}; a number above 0 or None is needed")
        for name in ("gain_sigma", "dark_mean", "dark_sigma", "temporal_sigma", "threshold_sigma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")


class SpikeSimulator:
    """A sensor that is shown intensities chunk by chunk and keeps its membrane in between.

    `seed` draws the start of the membrane and the temporal noise; `threshold` is theta, in full-
    scale intensity times ticks.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        seed: int,
        threshold: float = 2.0,
        noise: SpikeNoise = SpikeNoise(),
    ) -> None:
        if not (min(height, width) > 0 and threshold > 0):
            raise ValueError(
                f"height={height}, width={width}, threshold={threshold}: all must be above 0"
            )
        self.threshold, self.noise = threshold, noise
        size = (height, width)
        # float64: sums of binary fractions stay exact, so rates have no drift.
        self._membrane = _stream(seed, _START).uniform(0, threshold, size)
        self._shot, self._temporal = _stream(seed, _SHOT), _stream(seed, _TEMPORAL)
        self._is_noiseless = self.noise == SpikeNoise()  # one number is as good as a map, and quick
        maps = (1.0, 0.0, threshold) if self._is_noiseless else self._fixed_patterns(size)
        self._gain_map, self._dark_map, self._threshold_map = maps
        self._scratch = np.empty(size)

    @property
    def membrane(self) -> np.ndarray:
        """A copy of the charge of each pixel: float64 [H, W]."""
        return self._membrane.copy()

    def expose(self, intensity: np.ndarray) -> np.ndarray:
        """Show intensities [S, H, W] in [0, 1], one per tick; return the bits uint8 [S, H, W].

        Raises:
            ValueError: a wrong shape, or a value outside [0, 1] or above the threshold.
        """
        self._check(intensity)
        fired = np.empty(intensity.shape, dtype=np.bool_)
        membrane, scratch = self._membrane, self._scratch
        for tick, image in enumerate(intensity):
            charge = image if self._is_noiseless else self._charge(image)
            np.add(membrane, charge, out=membrane)
            np.greater_equal(membrane, self._threshold_map, out=fired[tick])
            np.multiply(fired[tick], self._threshold_map, out=scratch)
            np.subtract(membrane, scratch, out=membrane)
        return fired.view(np.uint8)

    def _charge(self, image: np.ndarray) -> np.ndarray:
        """Return what one tick adds to the membrane: [H, W]."""
        noise = self.noise
        light = image
        if noise.photons is not None:
            light = self._shot.poisson(image * noise.photons) / noise.photons
        charge = self._gain_map * light + self._dark_map
        if noise.temporal_sigma:
            charge = charge + self._temporal.normal(0, noise.temporal_sigma, charge.shape)
        # At most one spike per tick: a surplus could never leave the membrane again.
        return np.minimum(charge, self._threshold_map)

    def _check(self, intensity: np.ndarray) -> None:
        height, width = self._membrane.shape
        if intensity.ndim != 3 or intensity.shape[1:] != (height, width):
            raise ValueError(
                f"intensity has shape {intensity.shape}; [S, {height}, {width}] is needed"
            )
        if not intensity.size:
            return
        low, high = float(intensity.min()), float(intensity.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"intensity runs from {low} to {high}; [0, 1] is needed (divide uint8 by 255)"
            )
        if high > self.threshold:
            raise ValueError(
                f"intensity {high} exceeds the threshold {self.threshold}: the sensor fires at "
                "most once per tick; raise the threshold"
            )

    def _fixed_patterns(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw gain, dark current and threshold of each pixel: three times float64 [H, W]."""
        noise = self.noise
        gain = _stream(noise.sensor_seed, _GAIN).normal(1, noise.gain_sigma, size)
        dark = _stream(noise.sensor_seed, _DARK).normal(noise.dark_mean, noise.dark_sigma, size)
        relative = _stream(noise.sensor_seed, _THRESHOLD).normal(1, noise.threshold_sigma, size)
        if relative.min() <= 0:
            raise ValueError(
                f"threshold_sigma {noise.threshold_sigma} gives a threshold below 0; lower it"
            )
        return np.maximum(gain, 0), np.maximum(dark, 0), self.threshold * relative


def simulate_spikes(
    intensity: np.ndarray | Iterable[np.ndarray],
    threshold: float = 2.0,
    *,
    seed: int,
    noise: SpikeNoise = SpikeNoise(),
) -> np.ndarray:
    """Return the spikes of a sensor that sees one intensity per tick: uint8 [S, H, W].

    Intensities are [S, H, W] in [0, 1], or anything that yields [H, W] images; the others are
    arguments of `SpikeSimulator`.
    """
    images = iter(intensity)
    first = next(images, None)
    if first is None or first.ndim != 2:
        raise ValueError("at least one intensity [H, W] is needed")
    sensor = SpikeSimulator(*first.shape, seed=seed, threshold=threshold, noise=noise)
    return np.concatenate([sensor.expose(image[None]) for image in chain([first], images)])


def rgb_to_intensity(rgb: np.ndarray, transfer: str = "encoded", downscale: int = 1) -> np.ndarray:
    """Return what a spike sensor of lower resolution sees of RGB uint8 [..., H, W, 3], in [0, 1].

    BT.601 weights, mean over blocks of `downscale` x `downscale` pixels: float32 [..., h, w].
    "encoded" takes grey values as they are, as all published simulated sets do; "linear" undoes the
    camera curve (power 2.2) first, as a real sensor would see it.
    """
    rgb = np.asarray(rgb)
    if rgb.dtype != np.uint8 or rgb.ndim < 3 or rgb.shape[-1] != 3:
        raise ValueError(f"image is {rgb.dtype} {rgb.shape}; uint8 [..., H, W, 3] is needed")
    if transfer not in TRANSFERS:
        raise ValueError(f"transfer is {transfer!r}; write one of {TRANSFERS}")
    *lead, height, width, _ = rgb.shape
    if downscale < 1 or height % downscale or width % downscale:
        raise ValueError(f"downscale {downscale} does not divide an image of {height}x{width}")
    levels = np.arange(256, dtype=np.float32) / 255
    if transfer == "linear":
        levels = levels**CAMERA_GAMMA
    grey = np.empty((*lead, height // downscale, width // downscale), dtype=np.float32)
    size = (width // downscale, height // downscale)
    for index in np.ndindex(*lead):
        image = cv2.transform(cv2.LUT(np.ascontiguousarray(rgb[index]), levels), _BT601_ROW)
        if downscale > 1:  # whole blocks: INTER_AREA is their mean
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        grey[index] = image
    return np.minimum(grey, 1, out=grey)


def _stream(seed: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([stream, seed])
