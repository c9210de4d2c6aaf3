"""Packed spikes against an image of the same scene: it decides size, order of bits and flip."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from src.data.frames import read_image
from src.data.spikes.spike_dat import BIT_ORDERS, SpikeGeometry

MIN_CORRELATION = 0.5
WINDOW_TICKS = 32
NUM_WINDOWS = 9


@dataclass(frozen=True)
class ReferenceMatch:
    """How well spikes read in one way look like the reference.

    Attributes:
        geometry: size, order of bits and flip.
        correlation: with the image, of the best of a few windows of ticks.
        first_tick: start of that window.
    """

    geometry: SpikeGeometry
    correlation: float
    first_tick: int

    @property
    def sentence(self) -> str:
        """The match in words."""
        bits = self.geometry
        return (
            f"correlation {self.correlation:+.3f} with the reference for {bits.height}x{bits.width}"
            f", bit_order {bits.bit_order}, flip_rows {bits.flip_rows} (ticks from "
            f"{self.first_tick})"
        )


def read_reference(path: Path) -> np.ndarray:
    """Read an image as grey: float32 [H, W]."""
    return cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY).astype(np.float32)


def match_reference(
    data: np.ndarray, image: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> list[ReferenceMatch]:
    """Return all ways to read the spikes, the most similar first.

    Args:
        data: packed spikes uint8 [N].
        image: grey [H, W].
        sizes: heights and widths to try.
    """
    matches = []
    for height, width in sizes:
        tick_bytes = height * width // 8
        num_ticks = len(data) // tick_bytes if tick_bytes else 0
        if height * width % 8 or num_ticks < 1:
            continue
        target = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        window = min(WINDOW_TICKS, num_ticks)
        starts = np.unique(np.linspace(0, num_ticks - window, NUM_WINDOWS).astype(int))
        for order in BIT_ORDERS:
            rates = [_rate(data, int(s), window, (height, width), order) for s in starts]
            for flip in (True, False):
                scores = [_correlation(rate[::-1] if flip else rate, target) for rate in rates]
                best = int(np.argmax(scores))
                geometry = SpikeGeometry(height, width, order, flip)
                matches.append(ReferenceMatch(geometry, scores[best], int(starts[best])))
    return sorted(matches, key=lambda match: -match.correlation)


def _rate(
    data: np.ndarray, start: int, window: int, size: tuple[int, int], bit_order: str
) -> np.ndarray:
    tick_bytes = size[0] * size[1] // 8
    stored = data[start * tick_bytes : (start + window) * tick_bytes].reshape(window, tick_bytes)
    counts = np.zeros(size[0] * size[1], np.float32)
    for tick in stored:
        counts += np.unpackbits(tick, bitorder=bit_order)
    return counts.reshape(size) / window


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0
