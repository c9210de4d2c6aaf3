"""Which frames a comparison shows, and how: whole, enlarged on motion edges, and their errors."""

import base64
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from src.comparison.scores import BLURRY, BOUND, SPIKE, TWIN, FrameImages
from src.data.frames import write_png
from src.metrics.report import FrameScores, number_text
from src.pictures.strips import (
    Column,
    busiest_region,
    densest_region,
    enlarge,
    make_strip,
    outlined,
)

WIDEST_PX = 640
ZOOM, ZOOM_WIDTH_PX = 4, 320
ERROR_LEVELS = 64  # grey levels of error at the bright end of the map
CHOICES = ("most blurred input", "largest gain of VRT+Spike", "least gain of VRT+Spike")
SHORT_NAMES = {BLURRY: "blur", TWIN: "RGB-only", BOUND: "bound"}  # in the picture
COLUMNS = 4  # of the picture, in a row


@dataclass(frozen=True)
class Example:
    """A frame that is shown and why."""

    why: str
    frame: FrameScores
    images: FrameImages

    @property
    def title(self) -> str:
        """The frame and why it is shown."""
        return f"{self.frame.sequence}/{self.frame.frame}: {self.why}"


class ExampleChoice:
    """Keeps the most instructive frame for each of `CHOICES` while frames are scored."""

    def __init__(self) -> None:
        self._best: dict[str, tuple[float, Example]] = {}

    def take(self, frame: FrameScores, images: FrameImages) -> None:
        """Look at one more frame."""
        blurry, twin, spike = (frame.scores[m]["psnr_rgb"] for m in (BLURRY, TWIN, SPIKE))
        gain = 0.0 if twin == spike else spike - twin
        for why, value in zip(CHOICES, (-blurry, gain, -gain), strict=True):
            if why not in self._best or value > self._best[why][0]:
                self._best[why] = (value, Example(why, frame, images))

    @property
    def examples(self) -> list[Example]:
        """The chosen frames; one that was chosen twice appears once, with both reasons."""
        found: dict[tuple[str, str], Example] = {}
        for why, (_, example) in self._best.items():
            key = (example.frame.sequence, example.frame.frame)
            why = f"{found[key].why}, {why}" if key in found else why
            found[key] = Example(why, example.frame, example.images)
        return list(found.values())


def pictures_of(example: Example) -> list[list[tuple[str, str]]]:
    """Return data URI and caption of every picture: whole frames, enlarged parts, errors."""
    images, scores = example.images, example.frame.scores
    region = motion_region(images)
    factor = math.ceil(ZOOM_WIDTH_PX / (region[1].stop - region[1].start))
    captions = {
        name: f"{name}: {scores[name]['psnr_rgb']:.2f} dB, "
        f"SSIM {number_text(scores[name]['ssim_rgb'], 4)}"
        for name in images.versions
    }
    everything = (images.versions | {"sharp": images.sharp}).items()
    errors = [
        (data_uri(error_map(image, images.sharp), is_exact=False), f"error of {name}")
        for name, image in images.versions.items()
    ]
    shown = (images.sharp // 2 + 120).astype(np.uint8)
    shown[images.edges.mask] = (220, 38, 38)
    return [
        [
            (data_uri(_shrunk(outlined(image, region)), is_exact=False), captions.get(name, name))
            for name, image in everything
        ],
        [
            (data_uri(enlarge(image[region], factor), is_exact=True), f"{name}, enlarged")
            for name, image in everything
        ],
        [*errors, (data_uri(_shrunk(shown), is_exact=False), "motion edges")],
    ]


def motion_region(images: FrameImages) -> tuple[slice, slice]:
    """Return rows and columns of the part, a `ZOOM`-th of the frame, with most motion edges."""
    if not images.edges.mask.any():
        return busiest_region(images.versions[BLURRY], images.sharp)
    return densest_region(images.edges.mask, ZOOM)


def error_map(image: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """Return the absolute error, mean of the channels, dark for 0, bright from ERROR_LEVELS on."""
    error = np.abs(image.astype(np.float32) - sharp).mean(axis=2)
    levels = (error * (255 / ERROR_LEVELS)).clip(0, 255).astype(np.uint8)
    return _shrunk(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def data_uri(image: np.ndarray, *, is_exact: bool) -> str:
    """Return uint8 RGB [H, W, 3] as a data URI: PNG if every pixel counts, else JPEG."""
    kind = "png" if is_exact else "jpeg"
    options = [] if is_exact else [cv2.IMWRITE_JPEG_QUALITY, 90]
    done, content = cv2.imencode(f".{kind}", np.ascontiguousarray(image[..., ::-1]), options)
    if not done:
        raise ValueError(f"an image {list(image.shape)} could not be written as {kind}")
    return f"data:image/{kind};base64,{base64.b64encode(content.tobytes()).decode()}"


def write_example(path: Path, example: Example) -> None:
    """Write one frame by all methods and the sharp one, with a part enlarged, as PNG."""
    images, scores = example.images, example.frame.scores
    columns = [
        Column(SHORT_NAMES.get(name, name), image, scores[name])
        for name, image in images.versions.items()
    ]
    write_png(path, make_strip([*columns, Column("sharp", images.sharp)], COLUMNS))


def _shrunk(image: np.ndarray) -> np.ndarray:
    """Return the image, made smaller by area means if it is wider than `WIDEST_PX`."""
    height, width = image.shape[:2]
    if width <= WIDEST_PX:
        return image
    size = (WIDEST_PX, max(1, round(height * WIDEST_PX / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
