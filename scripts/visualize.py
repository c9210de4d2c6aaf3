"""Draw a sequence and its spikes, or make a video of what src/test.py restored.

    python scripts/visualize.py SEQ [--output FILE] [--format strip|video] [--frames N ...]
        [--steps N] [--bins K] [--panel PX] [--fps F] [--max_mb MB]
    python scripts/visualize.py RESULT --video FILE [--side_by_side] [--lossless] [--fps F]

SEQ is a sequence folder DATA_ROOT/SPLIT/SEQ: a strip has a row per frame with blurry frame, TFP,
TFI, voxel bins and sharp frame; in a video the spikes run through each exposure. The file is made
smaller until it is at most --max_mb, to be sent by mail. RESULT is the --output of src/test.py: a
video of the frames, side by side with the blurry and sharp ones, at the rate of the input.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from src.data.description import DescriptionError
from src.data.errors import BadFileError, DataSetError
from src.paths import atomic_write, folder_problem, resolve
from src.pictures.animation import (
    STRIPS,
    VIDEOS,
    Written,
    open_result,
    video_pages,
    write_small,
    write_video,
)
from src.pictures.sequence_view import SequenceView, draw_frames, draw_strip, open_sequence
from src.prepare.frame_checks import sample_evenly

ENDINGS = {"strip": ".jpg", "video": ".mp4"}
SPIKES_RATE_HZ = 8.0
STRIP_FRAMES = 3


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, draw; return the exit status."""
    options = parse_arguments(arguments)
    try:
        if (options.sequence / "blur").is_dir() or options.video is None:
            written = draw(open_sequence(options.sequence, options.bins), options)
        else:
            written = write_result(options)
    except (BadFileError, DataSetError, DescriptionError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    height, width = written.size
    print(
        f"{written.path}: {written.pages} picture(s) of {width}x{height}, "
        f"{written.num_bytes / 1e6:.2f} MB"
    )
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sequence", type=Path, metavar="SEQ|RESULT")
    parser.add_argument("--output", metavar="FILE", help="default: below outputs/visuals")
    parser.add_argument("--video", metavar="FILE", help="the same, of a result (.mp4)")
    parser.add_argument("--side_by_side", action="store_true", help="blurry | restored | sharp")
    parser.add_argument("--lossless", action="store_true", help="keep every value of it")
    parser.add_argument("--format", choices=ENDINGS, help="default: by --output, else strip")
    parser.add_argument("--frames", type=int, nargs="+", metavar="N", help="numbers of frames")
    parser.add_argument("--steps", type=int, default=4, help="pictures per exposure of a video")
    parser.add_argument("--bins", type=int, default=32, metavar="K", help="voxel bins")
    parser.add_argument("--panel", type=int, default=360, metavar="PX", help="width of a panel")
    parser.add_argument("--fps", type=float, help="pictures per second of a video")
    parser.add_argument("--max_mb", type=float, default=10.0, help="largest size of the file")
    options = parser.parse_args(arguments)
    for name in ("steps", "bins", "panel", "fps", "max_mb"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} {value}: a number above 0 is needed")
    options.output = options.video or options.output
    if options.output is not None:
        file = resolve(options.output)
        if problem := f"{file} is a folder" if file.is_dir() else folder_problem(file.parent):
            parser.error(f"--output {options.output}: {problem}")
    return options


def write_result(options: argparse.Namespace) -> Written:
    """Write the video of restored frames."""
    path, result = resolve(options.video), open_result(options.sequence, resolve("outputs/metrics"))
    if path.suffix.lower() not in VIDEOS:
        raise ValueError(f"{path}: a video is written as {', '.join(VIDEOS)}")
    pages = video_pages(result, side_by_side=options.side_by_side)
    pages = tqdm(pages, desc=path.name, total=len(result.recording), unit="frame", disable=None)
    rate_hz = options.fps or result.rate_hz
    with atomic_write(path) as partial:
        number, size = write_video(partial, pages, rate_hz, lossless=options.lossless)
        return Written(path, number, size, partial.stat().st_size)


def draw(view: SequenceView, options: argparse.Namespace) -> Written:
    """Write the strip or the video.

    Raises:
        ValueError: frames that are not there, or an ending that does not fit the format.
    """
    path = output_path(view, options)
    is_strip = path.suffix.lower() in STRIPS
    indices = chosen_frames(view, options.frames, STRIP_FRAMES if is_strip else None)

    def pages(panel_width: int):  # noqa: ANN202 (an iterator of pages)
        if is_strip:
            yield draw_strip(view, indices, panel_width)
            return
        frames, number = draw_frames(view, indices, options.steps, panel_width), len(indices)
        number *= options.steps
        yield from tqdm(frames, desc=path.name, total=number, unit="picture", disable=None)

    max_bytes, rate_hz = int(options.max_mb * 1e6), options.fps or SPIKES_RATE_HZ
    return write_small(path, pages, options.panel, rate_hz, max_bytes)


def output_path(view: SequenceView, options: argparse.Namespace) -> Path:
    """Return where to write, with the ending of the format."""
    if options.output is None:
        name = view.name.replace("/", "_")
        return resolve("outputs/visuals") / f"{name}{ENDINGS[options.format or 'strip']}"
    path = resolve(options.output)
    wanted = {"strip": STRIPS, "video": VIDEOS, None: (*STRIPS, *VIDEOS)}[options.format]
    if path.suffix.lower() not in wanted:
        raise ValueError(f"{path}: the name has to end in one of {', '.join(wanted)}")
    return path


def chosen_frames(view: SequenceView, numbers: list[int] | None, limit: int | None) -> list[int]:
    """Return indices of the frames with these numbers, else of up to `limit` spread evenly."""
    frames = view.recording.frames
    if numbers is None:
        return sample_evenly(len(frames), len(frames) if limit is None else limit)
    known = {frame.index: i for i, frame in enumerate(frames)}
    missing = [number for number in numbers if number not in known]
    if missing:
        raise ValueError(
            f"{view.name}: no usable frames {missing}; there are {min(known)} to {max(known)}"
        )
    return [known[number] for number in numbers]


if __name__ == "__main__":
    sys.exit(main())
