"""Videos and animations small enough to be sent by mail."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
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
    """A file that was written, its pictures, their height and width, and its bytes."""

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
    if ending not in (*STRIPS, *VIDEOS, *ANIMATIONS):
        raise ValueError(f"{path}: write to one of {', '.join((*STRIPS, *VIDEOS, *ANIMATIONS))}")
    first, number = next(pages), 0
    if ending in STRIPS:
        write_page(path, first)
        return 1, first.shape[:2]

    def counted() -> Iterator[np.ndarray]:
        nonlocal number
        for page in chain([first], pages):
            number += 1
            yield page

    write = _write_video if ending in VIDEOS else _write_animation
    size = write(path, counted(), first.shape[:2], rate_hz)
    return number, size


def _write_video(
    path: Path, pages: Iterator[np.ndarray], size: tuple[int, int], rate_hz: float
) -> tuple[int, int]:
    height, width = (side // 2 * 2 for side in size)  # video holds no odd row or column
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, rate_hz, (width, height))
    if not writer.isOpened():
        raise ValueError(f"{path}: this OpenCV cannot write MP4; write a .gif or .webp instead")
    try:
        for page in pages:
            writer.write(cv2.cvtColor(page[:height, :width], cv2.COLOR_RGB2BGR))
    finally:
        writer.release()
    return height, width


def _write_animation(
    path: Path, pages: Iterator[np.ndarray], size: tuple[int, int], rate_hz: float
) -> tuple[int, int]:
    images = map(Image.fromarray, pages)
    settings = {"duration": round(1000 / rate_hz), "quality": WEBP_QUALITY}
    if path.suffix.lower() == ".gif":
        colours = {"method": Image.Quantize.MEDIANCUT, "dither": Image.Dither.NONE}
        images = (image.quantize(128, **colours) for image in images)
        del settings["quality"]
    next(images).save(path, save_all=True, append_images=images, loop=0, **settings)
    return size
