"""The same frame in labelled columns, with the region that differs most enlarged."""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from src.data.frames import write_png
from src.pictures.panels import BACKGROUND, draw_label

ZOOM = 3  # how many enlarged regions fit into a side of a frame
NARROWEST_COLUMN_PX = 320
GAP_PX = 4
FRAME_COLOUR = (255, 200, 0)


@dataclass(frozen=True)
class Column:
    """One column of a strip.

    Attributes:
        caption: What it shows.
        image: uint8 RGB [H, W, 3].
        scores: Its scores, of which PSNR and SSIM are added to the caption.
    """

    caption: str
    image: np.ndarray
    scores: dict[str, float | None] | None = None

    @property
    def label(self) -> str:
        """The caption with the scores."""
        if self.scores is None:
            return self.caption
        psnr, ssim = self.scores["psnr_rgb"], self.scores["ssim_rgb"]
        return f"{self.caption}  {psnr:.2f} dB  {ssim:.3f}"


def write_strip(path: Path, columns: list[Column]) -> np.ndarray:
    """Write `make_strip(columns)` as PNG, whole or not at all, and return it."""
    strip = make_strip(columns)
    write_png(path, strip)
    return strip


def make_strip(columns: list[Column]) -> np.ndarray:
    """Return columns side by side: label, whole frame, and one region of it enlarged.

    The region is the one where the first and the last column differ most, and is outlined in the
    whole frames. Small frames are enlarged by a whole factor without smoothing.

    Raises:
        ValueError: without columns, or with images of different sizes.
    """
    sizes = {column.image.shape for column in columns}
    if len(sizes) != 1:
        named = ", ".join(f"{c.caption} {list(c.image.shape)}" for c in columns)
        raise ValueError(f"a strip needs columns of one size, got {named or 'none'}")
    region = busiest_region(columns[0].image, columns[-1].image)
    factor = math.ceil(NARROWEST_COLUMN_PX / columns[0].image.shape[1])
    gap = None
    parts = []
    for column in columns:
        part = _draw_column(column, region, factor)
        if gap is not None:
            parts.append(gap)
        gap = np.full((part.shape[0], GAP_PX, 3), BACKGROUND, np.uint8)
        parts.append(part)
    return np.concatenate(parts, axis=1)


def busiest_region(first: np.ndarray, last: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of the region, a `ZOOM`-th of the frame, that differs most.

    Args:
        first: uint8 RGB [H, W, 3].
        last: the same frame in another version, or another frame of the scene.
    """
    return densest_region(np.abs(first.astype(np.int16) - last).mean(axis=2), ZOOM)


def densest_region(weights: np.ndarray, zoom: int) -> tuple[slice, slice]:
    """Return rows and columns of the region, a `zoom`-th of the frame, with the largest sum.

    Args:
        weights: [H, W], not negative.
        zoom: how many regions fit into a side.
    """
    height, width = (max(1, side // zoom) for side in weights.shape)
    table = cv2.integral(weights.astype(np.float64))
    sums = (
        table[height:, width:]
        - table[:-height, width:]
        - table[height:, :-width]
        + table[:-height, :-width]
    )
    top, left = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + height), slice(left, left + width)


def enlarge_to(image: np.ndarray, width: int) -> np.ndarray:
    """Return the image enlarged by the smallest whole factor that makes it `width` wide."""
    return _enlarge(image, math.ceil(width / image.shape[1]))


def _draw_column(column: Column, region: tuple[slice, slice], factor: int) -> np.ndarray:
    """Return label, frame and enlarged region below each other, [h, w, 3]."""
    rows, cols = region
    frame = _enlarge(column.image, factor)
    height, width = frame.shape[:2]
    detail = _enlarge(column.image[rows, cols], factor * ZOOM)
    # A frame that is no multiple of ZOOM leaves a pixel or two at the edge of the detail.
    detail = cv2.copyMakeBorder(
        *(detail, 0, 0, 0, width - detail.shape[1], cv2.BORDER_CONSTANT),
        value=(BACKGROUND,) * 3,
    )
    line = max(1, width // 320)
    corner = (cols.start * factor, rows.start * factor)
    opposite = (cols.stop * factor - 1, rows.stop * factor - 1)
    frame = cv2.rectangle(frame, corner, opposite, FRAME_COLOUR, line)
    gap = np.full((GAP_PX, width, 3), BACKGROUND, np.uint8)
    label = draw_label(column.label, width, round(width / 16))
    return np.concatenate([label, frame, gap, detail])


def _enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the image with every pixel repeated, as a new array."""
    return np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))
