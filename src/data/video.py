"""Videos as frames: what their files state is read, and refused if it misleads.

A video is decoded once before anything is made: its frames are counted then, not taken from the
header, which may be missing (a pipe), rounded (sound that is longer), or those of another file (a
cut without encoding). Refused are frames of two instants (interlaced), frames that are not evenly
spaced, frames that repeat, light that is not that of a standard display (HLG, PQ, BT.2020, log),
and what a decoder had to conceal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import av
import numpy as np

from src.data.errors import BadFileError, other_kind
from src.data.frames import read_image

VIDEO_EXTS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
AS_IMAGES = "-fps_mode passthrough FOLDER/%06d.png"
# Numbers of ISO/IEC 23091-2 that 8 bit pictures of a standard display do not have.
TRANSFERS = {8: "linear light", 9: "a log curve", 10: "a log curve", 16: "PQ", 18: "HLG"}
TRANSFERS |= {14: "BT.2020", 15: "BT.2020"}
BT2020_PRIMARIES, BT2020_MATRICES = 9, (9, 10)
MAX_UNEVEN = 0.2  # of the usual time between frames; a step of the clock is allowed, too
MIN_MOTION = 0.3  # grey levels from frame to frame; below it repeats cannot be seen
REPEATS = 0.2  # of the usual motion; a frame that moves less shows the one before it
MAX_REPEATS_IN_A_ROW = 10  # more is a scene that stands still
REFUSED_REPEATS = 0.15  # of all frames
MAX_PASSES = 2  # at a time: scoring follows restoring at a distance
# Titles that are not UTF-8 end a reading before PyAV 19, which reads them and has no such argument.
IGNORE_METADATA_ERRORS = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
)


@dataclass
class Seen:
    """What one pass over a video collects."""

    times: list[int | None] = field(default_factory=list)  # in steps of its clock; none in .avi
    motion: list[float] = field(default_factory=list)  # mean change of grey from frame to frame
    num_interlaced: int = 0
    rotation: int = 0  # degrees
    bits: int = 8
    colours: set[str | None] = field(default_factory=set)  # as container and frames state them


def probe_video(path: Path) -> tuple[int, tuple[int, int], list[str]]:
    """Return number and size of the frames of a video that can be used, and notes on it."""
    seen, previous = Seen(), None
    with _opened(path) as stream:
        seen.colours.add(_colours(stream))  # some decoders forget what the container states
        for frame in _decoded(path, stream):
            seen.times.append(None if stream.container.format.name == "avi" else frame.pts)
            seen.num_interlaced += bool(frame.interlaced_frame)
            if previous is None:
                seen.rotation = frame.rotation
                if frame.rotation % 90:
                    reason = f"is to be turned by {frame.rotation} degrees; give a folder of images"
                    raise BadFileError(path, reason)
                seen.bits = max(component.bits for component in frame.format.components)
                is_on_its_side = frame.rotation % 180 != 0
                size = (frame.height, frame.width)[:: -1 if is_on_its_side else 1]
            grey = frame.to_ndarray(format="gray8")[::4].astype(np.int16)
            if previous is not None:
                seen.motion.append(float(np.abs(grey - previous).mean()))
            previous = grey
        if not seen.times:
            raise BadFileError(path, "has no frames; get it again, or give a folder of images")
        seen.colours.add(_colours(stream))
        notes = [*_refuse_colours(path, stream, seen), *_refuse_repeats(path, seen)]
        _refuse_interlaced(path, seen)
        step = _refuse_uneven(path, seen)
        notes += _stated(stream, seen, step)
    return len(seen.times), size, notes


def read_video(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video, upright: uint8 RGB [H, W, 3]."""
    with _opened(path) as stream:
        for frame in _decoded(path, stream):
            image = frame.to_ndarray(format="rgb24")
            yield np.ascontiguousarray(np.rot90(image, frame.rotation // 90))


@dataclass
class Pass:
    """A decoder somewhere in a video."""

    frames: Iterator[np.ndarray]
    next: int = 0
    latest: np.ndarray | None = None

    def read(self, number: int) -> np.ndarray:
        """Return a frame from the latest one on."""
        if number >= self.next:
            self.latest = next(islice(self.frames, number - self.next, None))
            self.next = number + 1
        return self.latest


class VideoInput:
    """The frames of a video, named by their numbers: the path of frame 7 is `VIDEO/000007`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        count, _, self.notes = probe_video(path)
        self.frames = {name: path / name for name in (f"{i:06d}" for i in range(count))}
        self._passes: list[Pass] = []

    def read(self, path: Path) -> np.ndarray:
        """Return a frame of the video, or an image file: uint8 [H, W, 3].

        Frames are read forwards; what lies behind every decoder is decoded again from the start.
        """
        if path.parent != self.path:
            return read_image(path)
        number = int(path.name)
        behind = [found for found in self._passes if found.next <= number + 1]
        if behind:
            nearest = max(behind, key=lambda found: found.next)
        else:
            nearest = Pass(read_video(self.path))
            self._passes = [*self._passes, nearest][-MAX_PASSES:]
        try:
            return nearest.read(number)
        except StopIteration:
            raise BadFileError(self.path, f"has no frame {number} any more") from None


# ---------------------------------------------------------------- decoding


@contextmanager
def _opened(path: Path) -> Iterator[av.VideoStream]:
    """Open the main picture stream of a file; what its decoder would conceal becomes an error."""
    try:
        container = av.open(str(path), **IGNORE_METADATA_ERRORS)
    except (av.FFmpegError, OSError) as error:
        kind = other_kind(path)
        found = "cannot be opened as a video" if kind is None else f"is {kind}, no video"
        reason = f"{found} ({error.strerror}); get it again, or give a folder of images"
        raise BadFileError(path, reason) from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise BadFileError(path, "holds no pictures that can be decoded; give images")
        # Threads by frame would swallow an error in the last frames.
        stream.thread_type = "SLICE"
        stream.codec_context.options = {"err_detect": "explode"}
        yield stream


def _decoded(path: Path, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    count, size = 0, None
    try:
        for frame in stream.container.decode(stream):
            found = frame.height, frame.width
            if frame.is_corrupt or found != (size or found):
                what = "is damaged" if frame.is_corrupt else f"is {found}, the first one {size}"
                raise BadFileError(path, f"frame {count} {what}; {_get_again(path)}")
            size = found
            yield frame
            count += 1
    except av.FFmpegError as error:
        reason = f"is damaged: frame {count} cannot be decoded ({error.strerror})"
        raise BadFileError(path, f"{reason}; {_get_again(path)}") from error


def _get_again(path: Path) -> str:
    return f"get it again, or give the good part as images: ffmpeg -i {path.name} {AS_IMAGES}"


# ---------------------------------------------------------------- what misleads


def _refuse_interlaced(path: Path, seen: Seen) -> None:
    if seen.num_interlaced:
        raise BadFileError(
            path,
            f"is interlaced ({seen.num_interlaced} of {len(seen.times)} frames): a frame mixes two "
            "instants. Give images instead: "
            f"ffmpeg -i {path.name} -vf bwdif=mode=send_frame {AS_IMAGES} "
            "(without -vf if it was recorded progressively and is only marked so)",
        )


def _colours(stream: av.VideoStream) -> str | None:
    """Return what a stream states about its light; None: that of a standard display, or nothing."""
    context = stream.codec_context
    is_wide = context.color_primaries == BT2020_PRIMARIES or context.colorspace in BT2020_MATRICES
    return TRANSFERS.get(context.color_trc, "BT.2020" if is_wide else None)


def _refuse_colours(path: Path, stream: av.VideoStream, seen: Seen) -> list[str]:
    """Refuse light that is not that of a standard display; return a note where none is stated."""
    if stated := ", ".join(sorted(seen.colours - {None})):
        raise BadFileError(
            path,
            f"states {stated} colours, which would be taken for those of a standard display; "
            "export it as SDR (BT.709), or as images of 8 bits",
        )
    if seen.bits > 8 and stream.codec_context.color_trc in (0, 2):
        return [f"{seen.bits} bits per value, taken as SDR: the file does not state its colours"]
    return []


def _refuse_uneven(path: Path, seen: Seen) -> float | None:
    """Refuse frames that are not evenly spaced; return the steps between them, None: unknown."""
    if len(seen.times) < 3 or None in seen.times:
        return None
    steps = np.diff(seen.times)
    usual = float(np.median(steps))
    wrong = np.flatnonzero(np.abs(steps - usual) > max(1, MAX_UNEVEN * usual))
    if wrong.size == 0:
        return float(steps.mean())
    edges = [0, *(wrong + 1), len(seen.times)]
    longest = int(np.argmax(np.diff(edges)))
    first, stop, at = edges[longest], edges[longest + 1], int(wrong[0])
    raise BadFileError(
        path,
        f"its frames are not evenly spaced: from frame {at} to {at + 1} it is {steps[at]} steps "
        f"of its clock, usually {usual:g} ({len(wrong)} such places). Cut out a part of one rate, "
        f"the longest is: ffmpeg -i {path.name} -vf trim=start_frame={first}:end_frame={stop} "
        f"{AS_IMAGES}",
    )


def _refuse_repeats(path: Path, seen: Seen) -> list[str]:
    """Refuse a video of which many frames show the one before; return a note where some do."""
    motion = np.array(seen.motion)
    usual = float(np.percentile(motion, 90)) if motion.size else 0.0
    if usual < MIN_MOTION:
        return []
    gaps = np.diff(np.flatnonzero(motion > REPEATS * usual))
    repeated = int((gaps[gaps <= MAX_REPEATS_IN_A_ROW] - 1).sum())
    if repeated == 0:
        return []
    found = f"{repeated} of {len(seen.times)} frames repeat the frame before them"
    if repeated < REFUSED_REPEATS * len(seen.times):
        return [f"{found}; time stands still there"]
    raise BadFileError(
        path,
        f"{found}: it was converted from another rate. Get the recording itself, or drop them: "
        f"ffmpeg -i {path.name} -vf mpdecimate {AS_IMAGES}, and give the rate that remains",
    )


def _stated(stream: av.VideoStream, seen: Seen, step: float | None) -> list[str]:
    """Return notes on what the container states beside its frames."""
    notes, count = [], len(seen.times)
    if seen.rotation:
        notes.append(f"turned by {seen.rotation} degrees, as the file states")
    if stream.sample_aspect_ratio not in (None, 0, 1):
        notes.append(f"pixels of shape {stream.sample_aspect_ratio}, taken as square")
    if stream.frames not in (0, count):
        notes.append(f"its header states {stream.frames} frames, {count} are decoded and used")
    container = stream.container
    if step and container.duration and len(container.streams) == 1:
        stated, found = container.duration / av.time_base, count * step * float(stream.time_base)
        if stated > 1.1 * found + 0.1:
            notes.append(f"its header states {stated:.2f} s, its frames last {found:.2f} s")
    return notes
