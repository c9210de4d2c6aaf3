"""Which tick of a spike stream shows what a sharp frame shows.

The image of the rate in a short window (TFP) moves with the scene. The centre of the window that
fits the sharp frame best is the instant of that frame, whatever a table says about it. A scene in
which nothing moves fits everywhere alike and shows nothing; the result says so.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from src.data.simulation.simulator import BT601

# A fit better than the rounding of an 8 bit picture is not distinguished: uniform rounding error.
ROUNDING_MSE = (1 / 255) ** 2 / 12
NUM_BANDS = 8
REFINE_PART = 2  # the parabola reaches this part of the width to both sides
# The mean square of N independent errors has a relative deviation of sqrt(2 / N), in dB 6.1 /
# sqrt(N); over some hundred windows of a still scene the scores spread by about five of these.
NOISE_DB = 10 / np.log(10) * np.sqrt(2)
MIN_DEVIATIONS = 10
MIN_SPREAD_DB = 0.3
MAX_CENTRE_ERROR_TICKS = 1.0


@dataclass(frozen=True)
class TfpMatch:
    """The best centre, in ticks from the window's first, and how it was found.

    It is the top of a parabola through the scores around the highest one, or that one's centre
    where fewer than three lie close to it. Its error comes from leaving out one band of rows after
    another.
    """

    centre: float
    centre_error: float  # standard error in ticks; inf where the scores are flat
    centres: np.ndarray  # float64 [M], all that were tried, ascending
    scores: np.ndarray  # float64 [M], PSNR in dB after the best gain and offset
    num_pixels: int  # compared
    correlation: float  # of the best TFP image, 0 where it is not above 0

    @property
    def is_decisive(self) -> bool:
        """Whether the scene moves enough to tell one centre from another.

        False for a still or uniform scene: then the centre is chance.
        """
        noise_db = MIN_DEVIATIONS * NOISE_DB / np.sqrt(self.num_pixels)
        moves = np.ptp(self.scores) >= max(MIN_SPREAD_DB, noise_db)
        return bool(moves) and self.centre_error <= MAX_CENTRE_ERROR_TICKS

    @property
    def is_at_end(self) -> bool:
        """Whether the best centre is the first or last tried; the true one may lie beyond it."""
        return int(self.scores.argmax()) in (0, len(self.scores) - 1)


def best_tfp_centre(spikes: np.ndarray, sharp_grey: np.ndarray, *, width: int) -> TfpMatch:
    """Find the window of `width` ticks of spikes [S, H, W] whose TFP image fits a sharp frame best.

    The frame is grey 0..1 [H, W]. Ticks [a, a + width) have their centre at a + (width - 1) / 2.
    The score is the PSNR after a least-squares gain, not below 0, and offset, so that the threshold
    of the sensor need not be known.
    """
    sharp = np.asarray(sharp_grey, np.float64)
    if spikes.ndim != 3 or spikes.shape[1:] != sharp.shape:
        raise ValueError(
            f"spikes {spikes.shape} and sharp frame {sharp.shape}: [S, H, W] and [H, W] are needed"
        )
    if not 1 <= width <= len(spikes):
        raise ValueError(f"a window of {width} ticks does not lie in a stream of {len(spikes)}")
    bands = _band_sums(spikes, sharp, width)
    total = bands.sum(axis=0)
    centres, scores = np.arange(len(spikes) - width + 1) + (width - 1) / 2, _scores(total)
    xx, xy, yy = _centred(total[scores.argmax()])
    return TfpMatch(
        centre=_top(centres, scores, width),
        centre_error=_centre_error(bands, centres, width),
        centres=centres,
        scores=scores,
        num_pixels=sharp.size,
        correlation=float(max(xy, 0.0) / np.sqrt(xx * yy)) if min(xx, yy) > 0 else 0.0,
    )


def grey_at_spike_size(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the BT.601 grey of uint8 [H, W, 3] at the size of the spikes: float32 in 0..1."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"frame is {rgb.dtype} {rgb.shape}; uint8 [H, W, 3] is needed")
    grey = (rgb.astype(np.float32) / 255) @ np.array(BT601, np.float32)
    height, width = size
    shrinks = height <= rgb.shape[0] and width <= rgb.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(grey, (width, height), interpolation=method).clip(0, 1)


def _band_sums(spikes: np.ndarray, sharp: np.ndarray, width: int) -> np.ndarray:
    """Return pixels, sums of x, xx, xy, y, yy in bands of rows: float64 [bands, M, 6].

    x are the spikes of a pixel in the window, y its sharp grey value.
    """
    num_ticks, (height, row_px) = len(spikes), sharp.shape
    dtype = np.uint16 if num_ticks < 1 << 16 else np.int32
    total = np.zeros((num_ticks + 1, height, row_px), dtype)
    for i, tick in enumerate(spikes):  # np.cumsum over the first axis is 20x slower
        np.add(total[i], tick, out=total[i + 1], casting="unsafe")
    edges = np.linspace(0, height, min(NUM_BANDS, height) + 1).astype(int)[:-1]
    rows = np.empty((height, num_ticks - width + 1, 6))
    rows[..., 0] = row_px
    rows[..., 4] = sharp.sum(axis=1)[:, None]
    rows[..., 5] = (sharp**2).sum(axis=1)[:, None]
    for i in range(num_ticks - width + 1):
        counts = (total[i + width] - total[i]).astype(np.float64)
        rows[:, i, 1] = counts.sum(axis=1)
        rows[:, i, 2] = np.einsum("hw,hw->h", counts, counts)
        rows[:, i, 3] = np.einsum("hw,hw->h", counts, sharp)
    return np.add.reduceat(rows, edges, axis=0)


def _centred(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sums of squares xx, xy, yy around the means from sums [..., 6]."""
    n, x, xx, xy, y, yy = np.moveaxis(sums, -1, 0)
    return xx - x * x / n, xy - x * y / n, yy - y * y / n


def _scores(sums: np.ndarray) -> np.ndarray:
    """Return the PSNR in dB after the best gain and offset from sums [..., 6]."""
    xx, xy, yy = _centred(sums)
    explained = np.maximum(xy, 0) ** 2 / np.where(xx > 0, xx, 1)
    mse = np.maximum(yy - explained, 0) / sums[..., 0]
    return -10 * np.log10(np.maximum(mse, ROUNDING_MSE))


def _top(centres: np.ndarray, scores: np.ndarray, width: int) -> float:
    """Return the centre of the highest score, refined by a parabola through those beside it."""
    best = int(scores.argmax())
    near = np.abs(centres - centres[best]) <= max(width / REFINE_PART, 1)
    if near.sum() < 3:
        return float(centres[best])
    at = centres[near] - centres[best]
    curvature, slope, _ = np.polyfit(at, scores[near], 2)
    if not curvature < 0:
        return float(centres[best])
    return float(centres[best] + np.clip(-slope / (2 * curvature), at[0], at[-1]))


def _centre_error(bands: np.ndarray, centres: np.ndarray, width: int) -> float:
    """Return the jackknife standard error of the best centre over the bands of rows."""
    count = len(bands)
    scores = _scores(bands.sum(axis=0) - bands) if count > 1 else _scores(bands)
    if count == 1 or np.ptp(scores) == 0:
        return float("inf")
    tops = np.array([_top(centres, row, width) for row in scores])
    return float(np.sqrt((count - 1) * np.mean((tops - tops.mean()) ** 2)))
