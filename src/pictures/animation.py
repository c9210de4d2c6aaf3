"""Videos and animations small enough to be sent by mail."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from src.paths import atomic_write
from src.pictures.panels import write_page

STRIPS = (".png", ".jpg", ".jpeg")
VIDEOS = (".mp4",)
ANIMATIONS = (".gif", ".webp")
WEBP_QUALITY = 75
SMALLEST_PANEL = 96
SHRINK_TRIES = 8
PROBED_PAGES = 6

Pages = Callable[[int], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        path: the file.
        pages: pictures in it.
        size: height and width of each.
        num_bytes: size of the file.
    """

    path: Path
    pages: int
    size: tuple[int, int]
    num_bytes: int


def write_small(
    path: Path, pages: Pages, number: int, panel_width: int, rate_hz: float, max_bytes: int
) -> Written:
    """Write pages to a file, smaller ones where it gets too large; whole or not at all.

    Args:
        path: `.png` or `.jpg` (the first page), `.mp4`, `.gif` or `.webp`.
        pages: panel width -> the pages, uint8 RGB [h, w, 3], all of one size.
        number: how many there are.
        panel_width: width to begin with.
        rate_hz: pages per second.
        max_bytes: largest size of the file.

    Raises:
        ValueError: another ending, or a file that is too large at every width.
    """
    with atomic_write(path) as partial:
        for _ in range(SHRINK_TRIES):
            # A few pages tell about how large all of them get.
            for count in sorted({min(PROBED_PAGES, number), number}):
                written, size = write_pages(partial, islice(pages(panel_width), count), rate_hz)
                num_bytes = partial.stat().st_size * number // count
                if num_bytes > max_bytes:
                    break
            else:
                return Written(path, written, size, num_bytes)
            if panel_width == SMALLEST_PANEL:
                break
            smaller = int(panel_width * min(0.9, 0.95 * (max_bytes / num_bytes) ** 0.5))
            panel_width = max(SMALLEST_PANEL, smaller)
        raise ValueError(
            f"{path}: {num_bytes / 1e6:.1f} MB with panels of {panel_width} px, at most "
            f"{max_bytes / 1e6:g} MB is wanted; give fewer frames or a larger limit"
        )


def write_pages(
    path: Path, pages: Iterator[np.ndarray], rate_hz: float
) -> tuple[int, tuple[int, int]]:
    """Write pages in the format of the ending; return their number and their size.

    Raises:
        ValueError: another ending.
    """
    ending = path.suffix.lower()
    if ending in STRIPS:
        page = next(pages)
        write_page(path, page)
        return 1, page.shape[:2]
    if ending in VIDEOS:
        return _write_video(path, pages, rate_hz)
    if ending in ANIMATIONS:
        return _write_animation(path, pages, rate_hz)
    raise ValueError(f"{path}: write to one of {', '.join((*STRIPS, *VIDEOS, *ANIMATIONS))}")


def _write_video(
    path: Path, pages: Iterator[np.ndarray], rate_hz: float
) -> tuple[int, tuple[int, int]]:
    first = _even(next(pages))
    height, width = first.shape[:2]
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, rate_hz, (width, height))
    if not writer.isOpened():
        raise ValueError(f"{path}: this OpenCV cannot write MP4; write a .gif or .webp instead")
    number = 0
    try:
        page = first
        while page is not None:
            writer.write(cv2.cvtColor(page, cv2.COLOR_RGB2BGR))
            number += 1
            page = next((_even(page) for page in pages), None)
    finally:
        writer.release()
    return number, (height, width)


def _write_animation(
    path: Path, pages: Iterator[np.ndarray], rate_hz: float
) -> tuple[int, tuple[int, int]]:
    first = next(pages)
    number = 1

    def others() -> Iterator[Image.Image]:
        nonlocal number
        for page in pages:
            number += 1
            yield _as_image(page, path)

    settings = {"save_all": True, "append_images": others(), "loop": 0}
    settings["duration"] = round(1000 / rate_hz)
    if path.suffix.lower() == ".webp":
        settings["quality"] = WEBP_QUALITY
    _as_image(first, path).save(path, **settings)
    return number, first.shape[:2]


def _as_image(page: np.ndarray, path: Path) -> Image.Image:
    image = Image.fromarray(page)
    if path.suffix.lower() == ".gif":
        return image.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return image


def _even(page: np.ndarray) -> np.ndarray:
    """Return the page without a last odd row or column, which video cannot hold."""
    height, width = page.shape[:2]
    return np.ascontiguousarray(page[: height // 2 * 2, : width // 2 * 2])
