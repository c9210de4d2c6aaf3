"""How alike values are at a distance, for all distances at once."""

from collections.abc import Sequence

import numpy as np

MIN_ROWS = 6


def row_advantage(image: np.ndarray, width: int, others: Sequence[int]) -> tuple[float, float]:
    """Return how much more alike the values of a flat picture are at one distance than at others.

    Every value is compared with those at all the distances, so that noise, which is the same for
    all, cancels.

    Args:
        image: one or several flat pictures, float [N, H*W].
        width: the distance in question.
        others: distances it is compared with, on average.

    Returns:
        The difference of correlations, and the same in deviations of its error, which is taken from
        how it varies from row to row; (0, 0) where there are too few rows.
    """
    number = image.shape[1] - max(width, *others)
    rows = number // max(1, width)
    if rows < MIN_ROWS:
        return 0.0, 0.0
    image = np.asarray(image, np.float64)
    first = image[:, :number]
    near = (first - image[:, width : width + number]) ** 2
    far = sum((first - image[:, other : other + number]) ** 2 for other in others) / len(others)
    gain = (far - near)[:, : rows * width].reshape(-1, width).mean(axis=1)
    error = float(gain.std(ddof=1)) / len(gain) ** 0.5
    scale = 2 * max(float(image.var()), 1e-12)
    return float(gain.mean()) / scale, float(gain.mean()) / max(error, 1e-12)


def mean_autocorrelation(chunks: list[np.ndarray], mean: float) -> np.ndarray:
    """Return the autocorrelation of all chunks, up to half their length; 0 without variation."""
    if not chunks:
        return np.zeros(1)
    length = len(chunks[0])
    padded = _quick_length(length + length // 2)  # room for all lags up to half the length
    total = np.zeros(length // 2 + 1)
    for chunk in chunks:
        spectrum = np.fft.rfft(chunk - np.float32(mean), padded)
        power = spectrum.real**2 + spectrum.imag**2
        total += np.fft.irfft(power, padded)[: len(total)]
    total /= length - np.arange(len(total))
    return total / total[0] if total[0] > 1e-9 * length else np.zeros(len(total))


def _quick_length(at_least: int) -> int:
    """Return a length whose Fourier transform is quick: 2, 3 or 5 times a power of two."""
    power = 1 << (at_least - 1).bit_length()
    return min(n for n in (power, power // 8 * 5, power // 4 * 3) if n >= at_least)


def deviation(values: np.ndarray) -> float:
    """Return the standard deviation of the bulk of values, which a few large ones do not change."""
    return max(1.4826 * float(np.median(np.abs(values - np.median(values)))), 1e-9)
