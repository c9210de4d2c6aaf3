"""What is asked about a spike file, and what was found."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

PUBLISHED = {
    (250, 400): "first spike camera, REDS sets",
    (250, 416): "first spike camera with 16 header columns at the right, which are not pixels",
    (360, 640): "Spk-GoPro",
    (384, 384): "Spk-X4K",
    (180, 320): "S-SDM GoPro",
    (250, 250): "UHSR",
    (96, 128): "the demo data",
    (1000, 1000): "SPS100",
    (1000, 1024): "SPS100 with its synchronization columns",
    (720, 1280): "full GoPro frames",
}
BLOCK_TICKS = 400
BLOCK_VALUES = 1 << 25


@dataclass(frozen=True)
class Question:
    """A file, and what the user says about it; None where nothing was said.

    Attributes:
        path: the file.
        height, width: size of the sensor.
        bit_order: "little" or "big", of packed spikes.
        flip_rows: whether the file stores the bottom row first.
        axes: order of the axes of an array ("THW", "HWT") or of the columns of a list ("tyx").
        key: name of the array in an archive.
        reference: an image of the same scene.
    """

    path: Path
    height: int | None = None
    width: int | None = None
    bit_order: str | None = None
    flip_rows: bool | None = None
    axes: str | None = None
    key: str | None = None
    reference: Path | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where both were given."""
        return None if self.height is None or self.width is None else (self.height, self.width)


@dataclass(frozen=True)
class Block:
    """Consecutive ticks from the middle of a file, for pictures and rates.

    Attributes:
        spikes: upright as far as known, uint8 [S, H, W] of 0 and 1.
        first_tick: number of the first of them.
        num_ticks: ticks in the file.
    """

    spikes: np.ndarray
    first_tick: int
    num_ticks: int


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        verdict: the answer in a sentence or two.
        is_right: False where what the user said cannot be right, or where the file is unfit.
        measured: the numbers behind it.
        warnings: what the user should look into.
        block: what to draw; None where nothing can be drawn.
    """

    verdict: str
    is_right: bool
    measured: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    block: Block | None = None


def middle_ticks(num_ticks: int, pixels: int) -> tuple[int, int]:
    """Return the ticks [start, stop) of the middle that a block holds."""
    count = min(num_ticks, BLOCK_TICKS, max(2, BLOCK_VALUES // max(1, pixels)))
    start = (num_ticks - count) // 2
    return start, start + count


def size_name(height: int, width: int) -> str:
    """Return a size as text, with who uses it."""
    known = PUBLISHED.get((height, width))
    return f"{height}x{width}" + (f" ({known})" if known else "")


def published_sizes(pixels: int) -> list[str]:
    """Return the published sizes with so many pixels."""
    return [size_name(h, w) for h, w in PUBLISHED if h * w == pixels]


def fitting_sizes(num_bytes: int) -> str:
    """Return the published sizes of which a file of packed spikes holds whole ticks."""
    sizes = [
        f"{size_name(h, w)} {num_bytes * 8 // (h * w)} ticks"
        for h, w in PUBLISHED
        if h * w % 8 == 0 and num_bytes * 8 % (h * w) == 0
    ]
    return "; ".join(sizes) or "none"


def describe_rate(spikes: np.ndarray) -> tuple[list[str], list[str]]:
    """Return facts about the rate of spikes [S, H, W], and warnings."""
    pixels = spikes.mean(axis=0, dtype=np.float64)
    ticks = spikes.mean(axis=(1, 2), dtype=np.float64)
    silent, always = float((pixels == 0).mean()), float((pixels == 1).mean())
    lines = [
        f"rate {pixels.mean():.4f} spikes per pixel and tick over {len(spikes)} ticks; per tick "
        f"{ticks.min():.4f} to {ticks.max():.4f}; {silent:.1%} of the pixels silent, "
        f"{always:.1%} firing in every tick"
    ]
    warnings = []
    if always > 0.05:
        warnings.append(
            f"{always:.0%} of the pixels fire in every tick: overexposed, or not spikes"
        )
    if silent > 0.5:
        warnings.append(
            f"{silent:.0%} of the pixels never fire in these {len(spikes)} ticks: very dark"
        )
    return lines, warnings
