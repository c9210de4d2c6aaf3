"""Labelled panels on a page, the parts of every picture that a command draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.data.frames import write_png
from src.paths import atomic_write

BACKGROUND = 255
TEXT_COLOUR = (20, 20, 20)
ALARM_COLOUR = (200, 0, 0)
GAP_PX = 6
LINE_SPACING = 1.35
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Panel:
    """A picture, uint8 RGB [H, W, 3], with a caption, red where it is an alarm."""

    caption: str
    image: np.ndarray
    is_alarm: bool = False


def make_page(
    rows: Sequence[Sequence[Panel]], panel_width: int, lines: Sequence[str] = ()
) -> np.ndarray:
    """Return panels in rows, each below its caption, under lines of text: uint8 RGB [h, w, 3].

    Args:
        rows: panels from top to bottom; rows may differ in length.
        panel_width: width to which every panel is scaled, keeping its proportions.
        lines: text above the panels, see `draw_lines`.

    Raises:
        ValueError: no panel, or an image that is not uint8 RGB.
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

    A line that starts with "!" is a warning and becomes red without it. `size` is the height of
    the letters in pixels.
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
    """Write uint8 RGB as `.png` or `.jpg`, whole or not at all.

    Raises:
        ValueError: another file ending.
    """
    path = Path(path)
    if path.suffix.lower() == ".png":
        write_png(path, page)
        return
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        raise ValueError(f"{path}: pages are written as .png or .jpg")
    buffer = BytesIO()
    Image.fromarray(page).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    with atomic_write(path) as partial:
        partial.write_bytes(buffer.getvalue())


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
