"""Blurry frames from sharp ones: the mean of encoded values, or of light."""

import cv2
import numpy as np

TICKS_PER_SOURCE_FRAME = 8
SOURCE_FRAMES_PER_SECOND = 240


def synthesize_blur(frames: np.ndarray, gamma: float | None = None) -> np.ndarray:
    """Return the mean of sharp frames uint8 [n, H, W, 3]; see `BlurAccumulator`."""
    accumulator = BlurAccumulator(frames.shape[1:3], len(frames), gamma)
    for frame in frames:
        accumulator.add(frame)
    return accumulator.mean()


class BlurAccumulator:
    """The mean of sharp frames that come one after the other, rounded once; no frame is kept.

    Without `gamma` it is the mean of encoded values (GoPro `blur`), with a camera curve such as 2.2
    that of light, ((1/n) sum S^gamma)^(1/gamma) (GoPro `blur_gamma`).
    """

    def __init__(
        self, size: tuple[int, int], total_weight: int, gamma: float | None = None
    ) -> None:
        if total_weight < 1 or (gamma is not None and not gamma > 0):
            raise ValueError(f"total_weight={total_weight}, gamma={gamma}: must be above 0")
        self.total_weight, self.gamma = total_weight, gamma
        self._missing = total_weight
        if gamma is None:
            smallest = np.min_scalar_type(255 * total_weight)
            self._sum = np.zeros((*size, 3), dtype=np.promote_types(np.uint16, smallest))
        else:
            self._sum = np.zeros((*size, 3), dtype=np.float64)
            self._light = (np.arange(256) / 255.0) ** gamma

    def add(self, frame: np.ndarray, weight: int = 1) -> None:
        """Add a frame uint8 [H, W, 3]; a weight says how many times it counts."""
        if frame.dtype != np.uint8 or frame.shape != self._sum.shape:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}; uint8 {self._sum.shape} fits")
        if not 1 <= weight <= self._missing:
            raise ValueError(f"weight {weight}, but {self._missing} of the total is missing")
        self._missing -= weight
        if self.gamma is not None:
            self._sum += cv2.LUT(frame, self._light * weight)
        elif weight == 1:
            np.add(self._sum, frame, out=self._sum)
        else:
            self._sum += np.multiply(frame, weight, dtype=self._sum.dtype)

    def mean(self) -> np.ndarray:
        """Return the mean: uint8 [H, W, 3]; a ValueError where frames are missing."""
        if self._missing:
            raise ValueError(f"{self._missing} of the weight {self.total_weight} is missing")
        if self.gamma is None:  # a table of all sums is quicker than dividing every pixel
            means = np.arange(255 * self.total_weight + 1) / self.total_weight
            return np.rint(means).astype(np.uint8)[self._sum]
        mean = 255 * (self._sum / self.total_weight) ** (1 / self.gamma)
        return np.clip(np.rint(mean), 0, 255).astype(np.uint8)
