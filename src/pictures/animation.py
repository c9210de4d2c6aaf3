"""Strips and videos, small enough to be sent by mail; videos of what src/test.py restored."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace

from src.data.errors import naming_record
from src.data.frames import read_image
from src.data.inputs import find_inputs, scan_inputs
from src.data.recordings import Recording
from src.data.scanning import ScanSettings
from src.paths import atomic_write
from src.pictures.panels import BACKGROUND, draw_label, write_page

STRIPS = (".png", ".jpg", ".jpeg")
VIDEOS = (".mp4",)
SMALLEST_PANEL = 96
BT709, LIMITED_RANGE = 1, 1  # numbers of ISO/IEC 23091-2; what players expect of H.264
FOLDER_RATE_HZ = 25.0  # of frames in folders, which state no rate
GAP_PX = 4

Pages = Callable[[int], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Written:
    """A file that was written, its pictures, their height and width, and its bytes."""

    path: Path
    pages: int
    size: tuple[int, int]
    num_bytes: int


def write_small(
    path: Path, pages: Pages, panel_width: int, rate_hz: float, max_bytes: int
) -> Written:
    """Write pages to a `.mp4`, or the first one to a `.png` or `.jpg`; whole or not at all.

    `pages` returns them for a width of their panels, uint8 RGB [h, w, 3], all of one size. It is
    called with smaller widths until the file fits; a ValueError says that it never does.
    """
    if path.suffix.lower() not in (*STRIPS, *VIDEOS):
        raise ValueError(f"{path}: the name has to end in one of {', '.join((*STRIPS, *VIDEOS))}")
    with atomic_write(path) as partial:
        while True:
            if path.suffix.lower() in STRIPS:
                page = next(pages(panel_width))
                write_page(partial, page)
                number, size = 1, page.shape[:2]
            else:
                number, size = write_video(partial, pages(panel_width), rate_hz)
            num_bytes = partial.stat().st_size
            if num_bytes <= max_bytes:
                return Written(path, number, size, num_bytes)
            if panel_width == SMALLEST_PANEL:
                break
            smaller = int(panel_width * min(0.9, 0.95 * (max_bytes / num_bytes) ** 0.5))
            panel_width = max(SMALLEST_PANEL, smaller)
        raise ValueError(
            f"{path}: {num_bytes / 1e6:.1f} MB with panels of {panel_width} px, at most "
            f"{max_bytes / 1e6:g} MB is wanted; give fewer frames or a larger limit"
        )


def write_video(
    path: Path, pages: Iterable[np.ndarray], rate_hz: float, *, lossless: bool = False
) -> tuple[int, tuple[int, int]]:
    """Write uint8 RGB pages of one size as H.264; return their number, height and width.

    By default it plays everywhere (yuv420p, BT.709, even sides); `lossless` keeps every RGB value,
    which fewer players show.
    """
    pages = iter(pages)
    first, number = next(pages), 0
    height, width = (side + side % 2 for side in first.shape[:2])
    with av.open(str(path), "w", format="mp4") as container:
        codec = "libx264rgb" if lossless else "libx264"
        stream = container.add_stream(codec, Fraction(rate_hz).limit_denominator(1001))
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb24" if lossless else "yuv420p"
        stream.options = {"crf": "0" if lossless else "18"}
        if not lossless:
            context = stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = BT709
            context.color_range = LIMITED_RANGE
        for page in chain([first], pages):
            odd = ((0, height - page.shape[0]), (0, width - page.shape[1]), (0, 0))
            frame = av.VideoFrame.from_ndarray(np.pad(page, odd, mode="edge"), format="rgb24")
            if not lossless:
                frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
            number += 1
        container.mux(stream.encode())
    return number, (height, width)


@dataclass(frozen=True)
class Result:
    """Restored frames of one sequence and what they were made from."""

    folder: Path
    recording: Recording  # with sharp frames where the test had them
    rate_hz: float


def open_result(folder: Path, reports: Path) -> Result:
    """Find the input of restored frames in the report of the test that wrote them.

    `folder` is the `--output` of src/test.py or one of its sequences, `reports` has the reports.
    """
    folder = folder.resolve()
    for path in sorted(reports.glob("test_*.json"), reverse=True):
        with naming_record(path, "report of src/test.py; move it away"):
            content = json.loads(path.read_text(encoding="utf-8"))
            output, names = Path(content["output"]), list(content["frames"])
            if "inputs" not in content or output not in (folder, folder.parent):
                continue
            blurry, sharp = (content["inputs"][what] for what in ("blurry", "sharp"))
            blurry, sharp = Path(blurry), None if sharp is None else Path(sharp)
            for given in filter(None, (blurry, sharp)):
                given.exists()  # an OSError where it is too long for a path
        if output == folder and len(names) > 1:
            raise ValueError(f"{folder} holds several sequences; give one of {', '.join(names)}")
        name = names[0] if output == folder else folder.name
        inputs = find_inputs(blurry, None, sharp)
        recordings = scan_inputs(inputs, ScanSettings(blurry, num_bins=1))
        recording = next((found for found in recordings if found.name == name), None)
        if recording is None:
            raise ValueError(f"{folder}: sequence {name} is not in {blurry} any more")
        return Result(folder, recording, _rate_of(blurry))
    raise ValueError(
        f"{folder}: neither a sequence (no folder blur) nor the --output of a test with a report "
        f"in {reports}"
    )


def video_pages(result: Result, *, side_by_side: bool) -> Iterator[np.ndarray]:
    """Yield a page per restored frame: it alone, or blurry | restored | sharp in their pixels."""
    recording = result.recording
    for i, frame in enumerate(recording.frames):
        restored = read_image(result.folder / f"{frame.name}.png")
        if not side_by_side:
            yield restored
            continue
        images = {"blurry": recording.read_blurry(i), "restored": restored}
        if frame.sharp is not None:
            images["sharp"] = recording.read_sharp(i)
        height, width = restored.shape[:2]
        gap = np.full((height + max(18, width // 20), GAP_PX, 3), BACKGROUND, np.uint8)
        parts = []
        for caption, image in images.items():
            label = draw_label(caption, width, len(gap) - height)
            parts += [gap, np.concatenate([label, image])]
        yield np.concatenate(parts[1:], axis=1)


def _rate_of(path: Path) -> float:
    """Return the frames per second of a video."""
    if not path.is_file():
        return FOLDER_RATE_HZ
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate)
