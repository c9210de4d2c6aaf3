"""What to film of a high-speed clip: cameras, exposures, and which source frames make a picture.

Source frame j stands at tick p * j, with p ticks per frame. Between frames there is nothing
("none": p = 1) or a cross-fade ("linear": the light of tick p*j + i is (1 - i/p) S_j + (i/p) S_j+1;
the last frame is held).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from src.data.exposures import Exposure


@dataclass(frozen=True)
class Cameras:
    """How the two cameras see the source frames.

    Attributes:
        blur_kind: "blur" or "blur_gamma".
        transfer: what the spike sensor integrates, "encoded" or "linear".
        threshold: of the spike sensor, in full-scale intensity times ticks.
        downscale: RGB pixels per spike pixel, in each direction.
        interpolator: "none" or "linear".
        ticks_per_frame: readouts per source frame; 1 with "none".
        frames_per_second: of the source frames.
        seed: of the spike sensor, together with the clip's name.

    Raises:
        ValueError: ticks between frames without an interpolator, or a threshold below 1.
    """

    blur_kind: str
    transfer: str
    threshold: float
    downscale: int
    interpolator: str
    ticks_per_frame: int
    frames_per_second: float
    seed: int

    def __post_init__(self) -> None:
        if self.interpolator == "none" and self.ticks_per_frame != 1:
            raise ValueError(
                f"{self.ticks_per_frame} ticks per source frame need light between the frames: "
                "write --interpolator linear, or --ticks_per_frame 1"
            )
        if self.threshold < 1:
            raise ValueError(
                f"threshold {self.threshold}: a white pixel would have to fire more than once per "
                "tick; 1 or more is needed"
            )

    @property
    def ticks_per_second(self) -> float:
        """Readouts of the spike sensor per second."""
        return self.frames_per_second * self.ticks_per_frame

    def spike_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the spike sensor for frames of this size."""
        return size[0] // self.downscale, size[1] // self.downscale


@dataclass(frozen=True)
class FilmWindow:
    """One blurry frame.

    Attributes:
        index: its number, which becomes its name.
        start_tick, stop_tick: the exposure [start, stop).
        sharp_tick: tick whose light is the sharp frame.
        step_ticks: the mean takes every so many ticks, from the first on.
    """

    index: int
    start_tick: int
    stop_tick: int
    sharp_tick: int
    step_ticks: int

    @property
    def name(self) -> str:
        """Name of the frame, without ending."""
        return f"{self.index:06d}"


@dataclass(frozen=True)
class Film:
    """What to film of a clip.

    Attributes:
        clip: name of the clip; draws the start of the spike sensor.
        num_frames: source frames.
        size: their (height, width).
        windows: the blurry frames, by ascending start.
        num_ticks: length of the spike stream.
        cameras: how it is seen.
    """

    clip: str
    num_frames: int
    size: tuple[int, int]
    windows: tuple[FilmWindow, ...]
    num_ticks: int
    cameras: Cameras


def exposures(plan: Film) -> dict[int, Exposure]:
    """Return the exposure of every blurry frame, in seconds from the first tick."""
    rate = plan.cameras.ticks_per_second
    return {
        window.index: Exposure(
            window.start_tick / rate, window.stop_tick / rate, t_sharp=window.sharp_tick / rate
        )
        for window in plan.windows
    }


def frame_weights(ticks: Iterable[int], ticks_per_frame: int, num_frames: int) -> dict[int, int]:
    """Return how much each source frame counts in the mean of the light at some ticks.

    Whole numbers without a common divisor; with 4 ticks per frame the tick 6 is frame 1 and
    frame 2 in equal parts: {1: 1, 2: 1}.
    """
    weights: Counter[int] = Counter()
    for tick in ticks:
        frame, part = divmod(tick, ticks_per_frame)
        weights[frame] += ticks_per_frame - part
        if part:
            weights[min(frame + 1, num_frames - 1)] += part
    divisor = math.gcd(*weights.values())
    return {frame: weight // divisor for frame, weight in sorted(weights.items())}


def clip_seed(seed: int, clip: str) -> int:
    """Return the seed of a clip's sensor: the same whatever else is filmed, and in what order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{clip}".encode()).digest()[:8], "big")


def abutting_windows(
    num_frames: int, averaged: int, ticks_per_frame: int, stride: int | None = None
) -> tuple[FilmWindow, ...]:
    """Return exposures of whole source frames, the sharp frame being their middle one.

    Args:
        num_frames: source frames of the clip.
        averaged: frames in one exposure, odd.
        ticks_per_frame: readouts per source frame.
        stride: frames from one start to the next; None: `averaged`, so that exposures abut.

    Raises:
        ValueError: an even number of frames, which has no middle one.
    """
    if averaged % 2 == 0:
        raise ValueError(f"{averaged} frames averaged: an odd number has a middle one")
    starts = range(0, num_frames - averaged + 1, averaged if stride is None else stride)
    return tuple(
        frame_window(index, start, averaged, ticks_per_frame) for index, start in enumerate(starts)
    )


def frame_window(index: int, start: int, averaged: int, ticks_per_frame: int) -> FilmWindow:
    """Return the exposure of source frames [start, start + averaged)."""
    return FilmWindow(
        index,
        start * ticks_per_frame,
        (start + averaged) * ticks_per_frame,
        (start + (averaged - 1) // 2) * ticks_per_frame,
        ticks_per_frame,
    )


def overlapping_windows(num_ticks: int, length: int, stride: int) -> tuple[FilmWindow, ...]:
    """Return exposures of `length` ticks that average all of them; the sharp tick is the middle.

    Raises:
        ValueError: an even length, which has no middle tick.
    """
    if length % 2 == 0:
        raise ValueError(f"exposures of {length} ticks: an odd number has a middle one")
    starts = range(0, num_ticks - length + 1, stride)
    return tuple(
        FilmWindow(index, start, start + length, start + (length - 1) // 2, 1)
        for index, start in enumerate(starts)
    )
