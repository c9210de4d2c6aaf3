"""What src/test.py restored, beside its input, as pages of a film."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from src.data.frames import read_image
from src.data.inputs import scan_inputs
from src.data.recordings import Recording
from src.data.scanning import ScanSettings
from src.inference.video_input import find_inputs
from src.pictures.panels import BACKGROUND, draw_label

FOLDER_RATE_HZ = 25.0  # of frames in folders, which state no rate
GAP_PX = 4


@dataclass(frozen=True)
class Result:
    """Restored frames of one sequence and what they were made from."""

    folder: Path
    recording: Recording  # with sharp frames where the test had them
    rate_hz: float


def open_result(folder: Path, reports: Path) -> Result:
    """Find the input of restored frames in the report of the test that wrote them.

    Args:
        folder: The `--output` of src/test.py, or the folder of one of its sequences.
        reports: Where the reports lie, `outputs/metrics`.

    Raises:
        ValueError: No report of it, or several sequences.
    """
    folder = folder.resolve()
    for path in sorted(reports.glob("test_*.json"), reverse=True):
        content = json.loads(path.read_text(encoding="utf-8"))
        output, names = Path(content["output"]), list(content["frames"])
        if "inputs" not in content or output not in (folder, folder.parent):
            continue
        if output == folder and len(names) > 1:
            raise ValueError(f"{folder} holds several sequences; give one of {', '.join(names)}")
        name = names[0] if output == folder else folder.name
        blurry, sharp = (content["inputs"][what] for what in ("blurry", "sharp"))
        inputs = find_inputs(Path(blurry), None, None if sharp is None else Path(sharp))
        recordings = scan_inputs(inputs, ScanSettings(Path(blurry), num_bins=1))
        recording = next((found for found in recordings if found.name == name), None)
        if recording is None:
            raise ValueError(f"{folder}: sequence {name} is not in {blurry} any more")
        return Result(folder, recording, _rate_of(Path(blurry)))
    raise ValueError(
        f"{folder}: neither a sequence (no folder blur) nor the --output of a test with a report "
        f"in {reports}"
    )


def film_pages(result: Result, *, side_by_side: bool) -> Iterator[np.ndarray]:
    """Yield a page per restored frame: it alone, or blurry | restored | sharp in their pixels.

    Raises:
        BadFileError: a frame that is missing or cannot be read.
    """
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
