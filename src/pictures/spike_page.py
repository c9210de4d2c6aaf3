"""One page about spikes: what they show (TFP and TFI), how many there are, and what was found."""

from collections.abc import Sequence

import cv2
import numpy as np

from src.data.spikes.reconstruct import tfi, tfp
from src.pictures.panels import Panel, make_page, to_grey

PANEL_PX = 460
PLOT_SIZE = (PANEL_PX, round(PANEL_PX * 0.42))
TFP_TICKS = 32
TFP_SPIKES = 10  # dark recordings get a window with about so many spikes per pixel
WHITE_QUANTILE = 0.995
CURVE_COLOUR = (0, 90, 180)


def draw_spike_page(
    spikes: np.ndarray,
    first_tick: int,
    num_ticks: int,
    threshold: float | None,
    lines: Sequence[str],
) -> np.ndarray:
    """Return a page about consecutive ticks of a recording: uint8 RGB [h, w, 3].

    `spikes` are upright 0 and 1, uint8 [S, H, W], from `first_tick` on, of `num_ticks` in the
    recording. Without a threshold each image has its own white. Lines with "!" are warnings.
    """
    middle = len(spikes) // 2
    rate = spikes.mean(axis=0, dtype=np.float32)
    wanted = max(TFP_TICKS, round(TFP_SPIKES / max(float(rate.mean()), 1e-6)))
    width = min(wanted, len(spikes))
    gain = 1.0 if threshold is None else threshold
    counted = tfp(spikes, middle, width, gain)
    interval, has_interval = tfi(spikes, middle, gain)
    white = 1.0 if threshold is not None else float(np.quantile(counted, WHITE_QUANTILE))
    scale = "white = brightest" if threshold is None else f"threshold {threshold:g}"
    tick = first_tick + middle
    ticks = f"TFP of ticks {tick - width // 2} to {tick - width // 2 + width - 1}, {scale}"
    shown = f"TFI at tick {tick}, {has_interval.mean():.1%} of pixels with interval"
    panels = [Panel(ticks, to_grey(counted, white)), Panel(shown, to_grey(interval, white))]
    per_tick = spikes.mean(axis=(1, 2), dtype=np.float32)
    last = first_tick + len(spikes) - 1
    caption = f"rate per tick, {first_tick} to {last} of {num_ticks}; 0 to {per_tick.max():.3f}"
    plots = [
        Panel(caption, draw_curve(per_tick, PLOT_SIZE)),
        Panel("rates of pixels, 0 to 1", draw_histogram(rate)),
    ]
    return make_page([panels, plots], PANEL_PX, lines)


def draw_curve(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return values [S], none negative, as a curve above 0 of width and height `size`."""
    width, height = size
    image = np.full((height, width, 3), 245, np.uint8)
    x = np.linspace(4, width - 5, len(values)) if len(values) > 1 else np.array([width / 2])
    y = height - 5 - values / max(float(values.max()), 1e-12) * (height - 10)
    points = np.rint(np.stack([x, y], axis=1)).astype(np.int32)
    cv2.line(image, (4, height - 5), (width - 5, height - 5), (150, 150, 150), 1)
    cv2.polylines(image, [points], isClosed=False, color=CURVE_COLOUR, lineType=cv2.LINE_AA)
    return image


def draw_histogram(rates: np.ndarray) -> np.ndarray:
    """Return how many pixels have which rate, as bars from rate 0 at the left to 1 at the right."""
    number, _ = np.histogram(rates, bins=50, range=(0, 1))
    width, height = PLOT_SIZE
    image = np.full((height, width, 3), 245, np.uint8)
    step = width / len(number)
    for i in np.flatnonzero(number):
        top = height - 5 - max(1, round(number[i] / number.max() * (height - 10)))
        left, right = round(i * step), round((i + 1) * step) - 2
        image[top : height - 5, left:right] = CURVE_COLOUR
    return image
