"""The same frame in labelled columns, with the region that differs most enlarged."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from src.metrics.report import number_text
from src.pictures.panels import BACKGROUND, draw_label

ZOOM = 3  # how many enlarged regions fit into a side of a frame
NARROWEST_COLUMN_PX = 320
GAP_PX = 4
FRAME_COLOUR = (255, 200, 0)


@dataclass(frozen=True)
class Column:
    """One column of a strip; PSNR and SSIM of its scores are added to the caption."""

    caption: str
    image: np.ndarray  # uint8 RGB [H, W, 3]
    scores: dict[str, float | None] | None = None

    @property
    def label(self) -> str:
        """The caption with the scores."""
        if self.scores is None:
            return self.caption
        psnr, ssim = self.scores["psnr_rgb"], self.scores["ssim_rgb"]
        return f"{self.caption}  {psnr:.2f} dB  {number_text(ssim, 3)}"


def make_strip(columns: list[Column], per_row: int | None = None) -> np.ndarray:
    """Return columns side by side: label, whole frame, and one region of it enlarged.

    With `per_row` they take several rows. The region is the one where the first and the last
    column differ most, and is outlined in the whole frames. Small frames are enlarged by a whole
    factor without smoothing.

    Raises:
        ValueError: without columns, or with images of different sizes.
    """
    if len({column.image.shape for column in columns}) != 1:
        named = ", ".join(f"{c.caption} {list(c.image.shape)}" for c in columns)
        raise ValueError(f"a strip needs columns of one size, got {named or 'none'}")
    region = busiest_region(columns[0].image, columns[-1].image)
    parts = [_draw_column(column, region) for column in columns]
    per_row = min(per_row or len(parts), len(parts))
    parts += [np.full_like(parts[0], BACKGROUND)] * (-len(parts) % per_row)
    rows = [_joined(parts[i : i + per_row], axis=1) for i in range(0, len(parts), per_row)]
    return _joined(rows, axis=0)


def busiest_region(first: np.ndarray, last: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of the region, a `ZOOM`-th of the frame, that differs most.

    `first` and `last` are uint8 RGB [H, W, 3]: two versions of a frame, or two frames of a scene.
    """
    return densest_region(np.abs(first.astype(np.int16) - last).mean(axis=2), ZOOM)


def densest_region(weights: np.ndarray, zoom: int) -> tuple[slice, slice]:
    """Return rows and columns of the region, a `zoom`-th of [H, W], with the largest sum."""
    height, width = (max(1, side // zoom) for side in weights.shape)
    table = cv2.integral(weights.astype(np.float64))
    sums = table[height:, width:] - table[:-height, width:]
    sums += table[:-height, :-width] - table[height:, :-width]
    top, left = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + height), slice(left, left + width)


def outlined(image: np.ndarray, region: tuple[slice, slice], factor: int = 1) -> np.ndarray:
    """Return the image enlarged by a whole factor, with the region of it framed."""
    rows, columns = region
    corner = (columns.start * factor, rows.start * factor)
    opposite = (columns.stop * factor - 1, rows.stop * factor - 1)
    frame = enlarge(image, factor)
    return cv2.rectangle(frame, corner, opposite, FRAME_COLOUR, max(1, frame.shape[1] // 320))


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the image with every pixel repeated, as a new array."""
    return np.ascontiguousarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def _joined(parts: list[np.ndarray], axis: int) -> np.ndarray:
    """Return images beside or below each other with a gap between them."""
    size = list(parts[0].shape)
    size[axis] = GAP_PX
    gap = np.full(size, BACKGROUND, np.uint8)
    return np.concatenate([x for part in parts for x in (part, gap)][:-1], axis=axis)


def _draw_column(column: Column, region: tuple[slice, slice]) -> np.ndarray:
    """Return label, frame and enlarged region below each other, [h, w, 3]."""
    factor = math.ceil(NARROWEST_COLUMN_PX / column.image.shape[1])
    frame = outlined(column.image, region, factor)
    width = frame.shape[1]
    detail = enlarge(column.image[region], factor * ZOOM)
    # A frame that is no multiple of ZOOM leaves a pixel or two at the edge of the detail.
    detail = np.pad(
        detail, ((0, 0), (0, width - detail.shape[1]), (0, 0)), constant_values=BACKGROUND
    )
    gap = np.full((GAP_PX, width, 3), BACKGROUND, np.uint8)
    return np.concatenate([draw_label(column.label, width, round(width / 16)), frame, gap, detail])
