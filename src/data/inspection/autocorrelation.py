"""How alike values are at a distance, for all distances at once."""

import numpy as np


def row_peaks(image: np.ndarray) -> np.ndarray:
    """Return how far the autocorrelation of a flat picture rises above its surroundings, per lag.

    Args:
        image: float [H*W].

    Returns:
        float [lags], 0 where there are no surroundings; a slope counts as 0, a peak as positive.
    """
    r = mean_autocorrelation([image], float(image.mean()))
    peaks = np.zeros(len(r))
    inner = np.arange(16, len(r) - 8)
    if len(inner):
        beside = sum(r[inner + d] for d in (-8, -4, 4, 8)) / 4
        peaks[inner] = r[inner] - beside
    return peaks


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
