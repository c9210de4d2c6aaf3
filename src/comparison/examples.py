"""Which frames a comparison shows, and how: whole, enlarged on motion edges, and their errors."""

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from src.comparison.scores import BLURRY, SPIKE, TWIN, ComparedFrame, FrameImages
from src.pictures.strips import Column, busiest_region, densest_region, write_strip

WIDEST_PX = 640
ZOOM = 4
ERROR_LEVELS = 64  # grey levels of error at the bright end of the map
MARK = (255, 200, 0)
CHOICES = ("most blurred input", "largest gain of VRT+Spike", "least gain of VRT+Spike")


@dataclass(frozen=True)
class Example:
    """A frame that is shown and why."""

    why: str
    frame: ComparedFrame
    images: FrameImages


class ExampleChoice:
    """Keeps the most instructive frame for each of `CHOICES` while frames are scored."""

    def __init__(self) -> None:
        self._best: dict[str, tuple[float, Example]] = {}

    def take(self, frame: ComparedFrame, images: FrameImages) -> None:
        """Look at one more frame."""
        blurry, gain = frame.scores[BLURRY]["psnr_rgb"], self._gain(frame)
        for why, value in zip(CHOICES, (-blurry, gain, -gain), strict=True):
            if why not in self._best or value > self._best[why][0]:
                self._best[why] = (value, Example(why, frame, images))

    @property
    def examples(self) -> list[Example]:
        """The chosen frames; one that was chosen twice appears once, with both reasons."""
        found: dict[tuple[str, str], Example] = {}
        for why in CHOICES:
            if why in self._best:
                example = self._best[why][1]
                key = (example.frame.sequence, example.frame.frame)
                reason = f"{found[key].why}, {why}" if key in found else why
                found[key] = Example(reason, example.frame, example.images)
        return list(found.values())

    @staticmethod
    def _gain(frame: ComparedFrame) -> float:
        twin, spike = (frame.scores[method]["psnr_rgb"] for method in (TWIN, SPIKE))
        return 0.0 if twin == spike else spike - twin


def motion_region(images: FrameImages) -> tuple[slice, slice]:
    """Return rows and columns of the part, a `ZOOM`-th of the frame, with most motion edges."""
    mask = images.edges.mask
    if not mask.any():
        return busiest_region(images.blurry, images.sharp)
    return densest_region(mask, ZOOM)


def marked(image: np.ndarray, region: tuple[slice, slice]) -> np.ndarray:
    """Return the image, at most `WIDEST_PX` wide, with the region outlined."""
    rows, columns = region
    line = max(1, image.shape[1] // 320)
    corners = (columns.start, rows.start), (columns.stop - 1, rows.stop - 1)
    return shrunk(cv2.rectangle(image.copy(), *corners, MARK, line))


def shrunk(image: np.ndarray) -> np.ndarray:
    """Return the image, made smaller by area means if it is wider than `WIDEST_PX`."""
    height, width = image.shape[:2]
    if width <= WIDEST_PX:
        return image
    size = (WIDEST_PX, max(1, round(height * WIDEST_PX / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def error_map(image: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """Return the absolute error, mean of the channels, dark for 0, bright from ERROR_LEVELS on."""
    error = np.abs(image.astype(np.float32) - sharp).mean(axis=2)
    levels = (error * (255 / ERROR_LEVELS)).clip(0, 255).astype(np.uint8)
    return shrunk(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def edges_shown(images: FrameImages) -> np.ndarray:
    """Return the sharp frame, paler, with the motion edges in colour."""
    shown = (images.sharp // 2 + 120).astype(np.uint8)
    shown[images.edges.mask] = (220, 38, 38)
    return shrunk(shown)


def data_uri(image: np.ndarray, *, is_exact: bool) -> str:
    """Return uint8 RGB [H, W, 3] as a data URI: PNG if every pixel counts, else JPEG."""
    kind = "png" if is_exact else "jpeg"
    options = [] if is_exact else [cv2.IMWRITE_JPEG_QUALITY, 90]
    done, content = cv2.imencode(f".{kind}", np.ascontiguousarray(image[..., ::-1]), options)
    if not done:
        raise ValueError(f"an image {list(image.shape)} could not be written as {kind}")
    return f"data:image/{kind};base64,{base64.b64encode(content.tobytes()).decode()}"


def write_example(path: Path, example: Example) -> None:
    """Write blur | RGB-only | VRT+Spike | sharp of one frame, with a part enlarged, as PNG."""
    images, scores = example.images, example.frame.scores
    columns = [
        Column("blur", images.blurry, scores[BLURRY]),
        Column("RGB-only", images.twin, scores[TWIN]),
        Column("VRT+Spike", images.spike, scores[SPIKE]),
        Column("sharp", images.sharp),
    ]
    write_strip(path, columns)
