"""Which frames a comparison shows, and how: whole, enlarged on motion edges, and their errors."""

import base64
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from src.comparison.scores import BLURRY, BOUND, RGB_ONLY, SPIKE, FrameImages
from src.data.frames import write_png
from src.metrics.psnr_ssim import score_text
from src.metrics.report import FrameScores
from src.pictures.panels import (
    Panel,
    busiest_region,
    densest_region,
    make_strip,
    outlined,
    scored,
)

WIDEST_PX = 640
ZOOM, ZOOM_WIDTH_PX = 4, 320
NUM_DETAILS = 3
DETAILED = (BLURRY, RGB_ONLY, SPIKE, "sharp")
ERROR_LEVELS = 64  # grey levels of error at the bright end of the map
CHOICES = ("most blurred input", "largest gain of VRT+Spike", "least gain of VRT+Spike")
SHORT_NAMES = {BLURRY: "blur", RGB_ONLY: "RGB-only", BOUND: "bound"}  # in the picture
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
        blurry, baseline, spike = (frame.scores[m]["psnr_rgb"] for m in (BLURRY, RGB_ONLY, SPIKE))
        gain = 0.0 if baseline == spike else spike - baseline
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


@dataclass(frozen=True)
class Pictures:
    """An example as the page shows it: data URIs with captions."""

    slider: tuple[tuple[str, str], tuple[str, str]]  # blurry, restored
    whole: list[tuple[str, str]]
    details: list[list[tuple[str, str]]]  # a row per region, the one with most motion first
    errors: list[tuple[str, str]]


def pictures_of(example: Example) -> Pictures:
    """Return the pictures of an example: pair, whole frames, enlarged parts, errors."""
    images, scores = example.images, example.frame.scores
    regions = motion_regions(images)
    factor = math.ceil(ZOOM_WIDTH_PX / (regions[0][1].stop - regions[0][1].start))
    captions = {
        name: f"{name}: {scores[name]['psnr_rgb']:.2f} dB, "
        f"SSIM {score_text(scores[name]['ssim_rgb'], 4)}"
        for name in images.versions
    }
    everything = images.versions | {"sharp": images.sharp}
    framed = images.sharp // 2 + 120
    framed[images.edges.mask] = (220, 38, 38)
    for region in regions:
        framed = outlined(framed, region)
    whole = {name: _jpeg(image) for name, image in everything.items()}
    return Pictures(
        slider=tuple((whole[name], name) for name in (BLURRY, SPIKE)),
        whole=[(uri, captions.get(name, name)) for name, uri in whole.items()],
        details=[
            [
                (_png(everything[name][region].repeat(factor, 0).repeat(factor, 1)), name)
                for name in DETAILED
                if name in everything
            ]
            for region in regions
        ],
        errors=[
            *(
                (_jpeg(error_map(image, images.sharp)), f"error of {name}")
                for name, image in images.versions.items()
            ),
            (_jpeg(framed), "motion edges, enlarged parts"),
        ],
    )


def motion_regions(images: FrameImages) -> list[tuple[slice, slice]]:
    """Return rows and columns of the parts, a `ZOOM`-th of the frame, with most motion edges.

    What one part shows does not count for the next. Where nothing moves it is the part that
    differs most.
    """
    left, regions = images.edges.mask.astype(np.float64), []
    while left.any() and len(regions) < NUM_DETAILS:
        regions.append(densest_region(left, ZOOM))
        left[regions[-1]] = 0
    return regions or [busiest_region(images.versions[BLURRY], images.sharp)]


def error_map(image: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """Return the absolute error, mean of the channels, dark for 0, bright from ERROR_LEVELS on."""
    error = np.abs(image.astype(np.float32) - sharp).mean(axis=2)
    levels = (error * (255 / ERROR_LEVELS)).clip(0, 255).astype(np.uint8)
    return _shrunk(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def _png(image: np.ndarray) -> str:
    return data_uri(image, "png")


def _jpeg(image: np.ndarray) -> str:
    return data_uri(_shrunk(image), "jpeg", cv2.IMWRITE_JPEG_QUALITY, 90)


def data_uri(image: np.ndarray, kind: str, *options: int) -> str:
    """Return uint8 RGB [H, W, 3] as a data URI, a PNG or JPEG with options of OpenCV."""
    done, content = cv2.imencode(f".{kind}", np.ascontiguousarray(image[..., ::-1]), options)
    if not done:
        raise ValueError(f"an image {list(image.shape)} could not be written as {kind}")
    return f"data:image/{kind};base64,{base64.b64encode(content.tobytes()).decode()}"


def write_example(path: Path, example: Example) -> None:
    """Write one frame by all methods and the sharp one, with a part enlarged, as PNG."""
    images, scores = example.images, example.frame.scores
    columns = [
        scored(SHORT_NAMES.get(name, name), image, scores[name])
        for name, image in images.versions.items()
    ]
    write_png(path, make_strip([*columns, Panel("sharp", images.sharp)], COLUMNS))


def _shrunk(image: np.ndarray) -> np.ndarray:
    """Return the image, made smaller by area means if it is wider than `WIDEST_PX`."""
    height, width = image.shape[:2]
    if width <= WIDEST_PX:
        return image
    size = (WIDEST_PX, max(1, round(height * WIDEST_PX / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
