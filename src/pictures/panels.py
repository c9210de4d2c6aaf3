"""Labelled panels on a page, the parts of every picture that a command draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.metrics.psnr_ssim import score_text
from src.paths import atomic_write

BACKGROUND = 255
TEXT_COLOUR = (20, 20, 20)
ALARM_COLOUR = (200, 0, 0)
FRAME_COLOUR = (255, 200, 0)
GAP_PX = 6
LINE_SPACING = 1.35
JPEG_QUALITY = 88
ZOOM = 3  # how many enlarged regions fit into a side of a frame
NARROWEST_COLUMN_PX = 320


@dataclass(frozen=True)
class Panel:
    """A picture, uint8 RGB [H, W, 3], with a caption, red where it is an alarm."""

    caption: str
    image: np.ndarray
    is_alarm: bool = False


def scored(caption: str, image: np.ndarray, scores: dict[str, float | None]) -> Panel:
    """Return a panel with PSNR and SSIM in its caption."""
    ssim = score_text(scores["ssim_rgb"], 3)
    return Panel(f"{caption}  {scores['psnr_rgb']:.2f} dB  {ssim}", image)


def make_page(
    rows: Sequence[Sequence[Panel]], panel_width: int, lines: Sequence[str] = ()
) -> np.ndarray:
    """Return panels in rows, each below its caption, under lines of text: uint8 RGB [h, w, 3].

    Rows may differ in length; every panel is scaled to `panel_width` and keeps its proportions. A
    line that starts with "!" is a warning.
    """
    if not rows or not all(rows):
        raise ValueError("a page needs at least one panel in each row")
    longest = max(map(len, rows))
    width = longest * panel_width + (longest + 1) * GAP_PX
    gap = np.full((GAP_PX, width, 3), BACKGROUND, np.uint8)
    parts = [gap]
    if lines:
        parts.append(draw_lines(lines, width, size=max(11, panel_width // 26)))
    for row in rows:
        drawn = [_draw_panel(panel, panel_width) for panel in row]
        band = np.full((max(map(len, drawn)), width, 3), BACKGROUND, np.uint8)
        for i, part in enumerate(drawn):
            left = GAP_PX + i * (panel_width + GAP_PX)
            band[: len(part), left : left + panel_width] = part
        parts += [band, gap]
    return np.concatenate(parts)


def make_strip(columns: Sequence[Panel], per_row: int | None = None) -> np.ndarray:
    """Return versions of a frame side by side, each with one region of it enlarged below.

    The region is the one where the first and the last version differ most, and is outlined in the
    whole frames. With `per_row` they take several rows.
    """
    if len({column.image.shape for column in columns}) != 1:
        named = ", ".join(f"{c.caption} {list(c.image.shape)}" for c in columns)
        raise ValueError(f"a strip needs columns of one size, got {named or 'none'}")
    region, width = busiest_region(columns[0].image, columns[-1].image), columns[0].image.shape[1]
    step, rows = per_row or len(columns), []
    for part in (columns[i : i + step] for i in range(0, len(columns), step)):
        rows.append([Panel(c.caption, outlined(c.image, region)) for c in part])
        rows.append([Panel("", np.ascontiguousarray(c.image[region])) for c in part])
    return make_page(rows, width * math.ceil(NARROWEST_COLUMN_PX / width))


def busiest_region(first: np.ndarray, last: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of the region, a `ZOOM`-th of the frame, that differs most."""
    return densest_region(np.abs(first.astype(np.int16) - last).mean(axis=2), ZOOM)


def densest_region(weights: np.ndarray, zoom: int) -> tuple[slice, slice]:
    """Return rows and columns of the region, a `zoom`-th of [H, W], with the largest sum."""
    height, width = (max(1, side // zoom) for side in weights.shape)
    table = cv2.integral(weights.astype(np.float64))
    sums = table[height:, width:] - table[:-height, width:]
    sums += table[:-height, :-width] - table[height:, :-width]
    top, left = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + height), slice(left, left + width)


def outlined(image: np.ndarray, region: tuple[slice, slice]) -> np.ndarray:
    """Return a copy of the image with the region of it framed."""
    rows, columns = region
    corners = (columns.start, rows.start), (columns.stop - 1, rows.stop - 1)
    return cv2.rectangle(image.copy(), *corners, FRAME_COLOUR, max(1, image.shape[1] // 320))


def draw_label(text: str, width: int, height: int, colour: tuple = TEXT_COLOUR) -> np.ndarray:
    """Return one line of text as a bar [height, width, 3], made smaller until it fits."""
    bar = Image.new("RGB", (width, height), (BACKGROUND,) * 3)
    margin = max(2, width // 80)
    size = 0.68 * height
    while size > 6 and _font(size).getlength(text) > width - 2 * margin - 2:
        size *= 0.96
    middle = (margin, height / 2)
    ImageDraw.Draw(bar).text(middle, text, fill=colour, font=_font(size), anchor="lm")
    return np.array(bar)


def draw_lines(lines: Sequence[str], width: int, size: float) -> np.ndarray:
    """Return lines of text below each other as [h, width, 3]; long ones are broken at blanks.

    A line that starts with "!" becomes red without it. `size` is the height of the letters.
    """
    font, margin, broken = _font(size), 2 * GAP_PX, []
    for line in lines:
        colour = ALARM_COLOUR if line.startswith("!") else TEXT_COLOUR
        part = ""
        for word in line.removeprefix("!").strip().split(" "):
            longer = f"{part} {word}".strip()
            if part and font.getlength(longer) > width - 2 * margin:
                broken.append((part, colour))
                longer = word
            part = longer
        broken.append((part, colour))
    step = math.ceil(size * LINE_SPACING)
    page = Image.new("RGB", (width, step * len(broken) + GAP_PX), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(page)
    for i, (text, colour) in enumerate(broken):
        draw.text((margin, (i + 0.5) * step), text, fill=colour, font=font, anchor="lm")
    return np.array(page)


def scale_to_width(image: np.ndarray, width: int) -> np.ndarray:
    """Return an image of the given width in the same proportions.

    Larger images are averaged down; smaller ones keep square pixels when the factor is whole.
    """
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    if width < image.shape[1]:
        method = cv2.INTER_AREA
    else:
        method = cv2.INTER_CUBIC if width % image.shape[1] else cv2.INTER_NEAREST
    return cv2.resize(image, (width, height), interpolation=method)


def to_grey(values: np.ndarray, white: float) -> np.ndarray:
    """Return values [H, W] as grey uint8 RGB [H, W, 3]: 0 is black, `white` and above white."""
    scaled = np.clip(np.asarray(values, np.float32) * (255 / max(white, 1e-12)), 0, 255)
    return cv2.cvtColor(np.rint(scaled).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def write_page(path: str | Path, page: np.ndarray) -> None:
    """Write uint8 RGB as `.png` or `.jpg`, whole or not at all."""
    if Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"{path}: pages are written as .png or .jpg")
    with atomic_write(path) as partial:
        Image.fromarray(page).save(partial, quality=JPEG_QUALITY, optimize=True)


def _draw_panel(panel: Panel, width: int) -> np.ndarray:
    image = panel.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{panel.caption}: uint8 [H, W, 3] is needed, got {image.shape}")
    colour = ALARM_COLOUR if panel.is_alarm else TEXT_COLOUR
    label = draw_label(panel.caption, width, max(18, width // 16), colour)
    return np.concatenate([label, scale_to_width(image, width)])


@lru_cache(maxsize=64)
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=round(size, 1))
