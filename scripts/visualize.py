"""Draw a sequence: blurry frame, TFP, TFI, voxel bins and sharp frame side by side.

    python scripts/visualize.py SEQ [--output FILE] [--format strip|video|gif|webp] [--frames N ...]
        [--steps N] [--bins K] [--panel PX] [--fps F] [--max_mb MB]

SEQ is a sequence folder DATA_ROOT/SPLIT/SEQ. A strip has a row per frame; in a video the spikes run
through each exposure. The file is made smaller until it is at most --max_mb, to be sent by mail.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from src.data.description import DescriptionError
from src.data.errors import BadFileError, DataSetError
from src.paths import resolve
from src.pictures.animation import ANIMATIONS, STRIPS, VIDEOS, Written, write_small
from src.pictures.sequence_view import SequenceView, draw_frames, draw_strip, open_sequence
from src.prepare.frame_checks import sample_places

ENDINGS = {"strip": ".jpg", "video": ".mp4", "gif": ".gif", "webp": ".webp"}
STRIP_FRAMES = 3


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, draw; return the exit status."""
    options = parse_arguments(arguments)
    try:
        view = open_sequence(options.sequence, options.bins)
        written = draw(view, options)
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
    parser.add_argument("sequence", type=Path, metavar="SEQ")
    parser.add_argument("--output", metavar="FILE", help="default: below outputs/visuals")
    parser.add_argument("--format", choices=ENDINGS, help="default: by --output, else strip")
    parser.add_argument("--frames", type=int, nargs="+", metavar="N", help="numbers of frames")
    parser.add_argument("--steps", type=int, default=4, help="pictures per exposure of a video")
    parser.add_argument("--bins", type=int, default=32, metavar="K", help="voxel bins")
    parser.add_argument("--panel", type=int, default=360, metavar="PX", help="width of a panel")
    parser.add_argument("--fps", type=float, default=8.0, help="pictures per second of a video")
    parser.add_argument("--max_mb", type=float, default=10.0, help="largest size of the file")
    options = parser.parse_args(arguments)
    for name in ("steps", "bins", "panel", "fps", "max_mb"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} {getattr(options, name)}: a number above 0 is needed")
    return options


def draw(view: SequenceView, options: argparse.Namespace) -> Written:
    """Write the strip or the video.

    Raises:
        ValueError: frames that are not there, or an ending that does not fit the format.
    """
    path = output_path(view, options)
    is_strip = path.suffix.lower() in STRIPS
    indices = chosen_frames(view, options.frames, STRIP_FRAMES if is_strip else None)

    number = 1 if is_strip else len(indices) * options.steps

    def pages(panel_width: int):  # noqa: ANN202 (an iterator of pages)
        if is_strip:
            yield draw_strip(view, indices, panel_width)
            return
        frames = draw_frames(view, indices, options.steps, panel_width)
        yield from tqdm(frames, desc=path.name, total=number, unit="picture", disable=None)

    max_bytes = int(options.max_mb * 1e6)
    return write_small(path, pages, number, options.panel, options.fps, max_bytes)


def output_path(view: SequenceView, options: argparse.Namespace) -> Path:
    """Return where to write, with the ending of the format."""
    if options.output is None:
        name = view.name.replace("/", "_")
        return resolve("outputs/visuals") / f"{name}{ENDINGS[options.format or 'strip']}"
    path = resolve(options.output)
    wanted = {None: None, "strip": STRIPS}.get(options.format, (ENDINGS.get(options.format),))
    if wanted is None and path.suffix.lower() not in (*STRIPS, *VIDEOS, *ANIMATIONS):
        endings = ", ".join((*STRIPS, *VIDEOS, *ANIMATIONS))
        raise ValueError(f"{path}: the name has to end in one of {endings}")
    if wanted is not None and path.suffix.lower() not in wanted:
        raise ValueError(f"{path}: --format {options.format} ends in {' or '.join(wanted)}")
    return path


def chosen_frames(view: SequenceView, numbers: list[int] | None, limit: int | None) -> list[int]:
    """Return indices of the frames with these numbers, else of up to `limit` spread evenly."""
    frames = view.recording.frames
    if numbers is None:
        return sample_places(len(frames), len(frames) if limit is None else limit)
    known = {frame.index: i for i, frame in enumerate(frames)}
    missing = [number for number in numbers if number not in known]
    if missing:
        raise ValueError(
            f"{view.name}: no usable frames {missing}; there are {min(known)} to {max(known)}"
        )
    return [known[number] for number in numbers]


if __name__ == "__main__":
    sys.exit(main())
