"""Simulate two cameras on sharp high-speed frames: blurry and sharp frames, and a spike stream.

Source frame j is at tick p * j, with p ticks per frame. Between frames there is nothing ("none":
p = 1) or a cross-fade ("linear": the light of tick p*j + i is (1 - i/p) S_j + (i/p) S_j+1; the last
frame is held). Frames are read once, one at a time, so memory does not grow with the recording;
exposures may overlap.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from src.data.description import DataDescription
from src.data.errors import DataSetError
from src.data.exposures import EXPOSURES_NAME, Exposure, write_exposures
from src.data.frames import write_png
from src.data.simulation.blur import BlurAccumulator
from src.data.simulation.simulator import SpikeSimulator, rgb_to_intensity
from src.data.spikes.spike_dat import SpikeSidecar, pack_spikes, write_sidecar
from src.prepare.sources.plan import BLUR_GAMMAS, STREAM_NAME, SourceOptions, sample_sha256
from src.prepare.sources.video import FrameFolder, HighSpeedFrames

FORMAT = 1  # of what is written; a change makes old sequences differ
PNG_BYTES_PER_VALUE = 0.5  # of a frame whose own PNG size is not known
DEFAULT_TICKS_PER_FRAME = 8


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
        seed: of the spike sensor, together with the sequence's name.

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


def cameras_of(
    options: SourceOptions,
    *,
    interpolator: str,
    frames_per_second: float,
    ticks_per_frame: int = DEFAULT_TICKS_PER_FRAME,
) -> Cameras:
    """Return the cameras that the options ask for.

    Args:
        options: what the command line says.
        interpolator: the default of the source.
        frames_per_second: of the source frames, where the options do not say.
        ticks_per_frame: default where there is an interpolator.

    Raises:
        DataSetError: options that contradict each other.
    """
    interpolator = options.interpolator or interpolator
    ticks = options.ticks_per_frame
    if ticks is None:
        ticks = 1 if interpolator == "none" else ticks_per_frame
    rate = options.frames_per_second
    try:
        return Cameras(
            blur_kind=options.blur_kind,
            transfer=options.transfer,
            threshold=options.threshold,
            downscale=options.downscale,
            interpolator=interpolator,
            ticks_per_frame=ticks,
            frames_per_second=frames_per_second if rate is None else rate,
            seed=options.seed,
        )
    except ValueError as error:
        raise DataSetError("options of the source", [str(error)]) from error


def size_problem(size: tuple[int, int], cameras: Cameras) -> str | None:
    """Say why frames of a size cannot be simulated from; None where they can."""
    height, width = cameras.spike_size(size)
    if height * cameras.downscale != size[0] or width * cameras.downscale != size[1]:
        return (
            f"frames of {size[0]}x{size[1]} cannot be divided by --downscale {cameras.downscale}; "
            "crop them or choose another"
        )
    if height * width % 8:
        return (
            f"frames of {size[0]}x{size[1]} give a spike sensor of {height}x{width}, whose pixels "
            "are no multiple of 8; crop them or choose another --downscale"
        )
    return None


# ---------------------------------------------------------------- which ticks make a frame


@dataclass(frozen=True)
class SimulatedExposure:
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


def frame_exposure(
    index: int, start: int, averaged: int, ticks_per_frame: int
) -> SimulatedExposure:
    """Return the exposure of source frames [start, start + averaged)."""
    return SimulatedExposure(
        index,
        start * ticks_per_frame,
        (start + averaged) * ticks_per_frame,
        (start + (averaged - 1) // 2) * ticks_per_frame,
        ticks_per_frame,
    )


def abutting_exposures(
    num_frames: int, averaged: int, ticks_per_frame: int, stride: int | None = None
) -> tuple[SimulatedExposure, ...]:
    """Return exposures of whole source frames, the sharp frame being their middle one.

    Args:
        num_frames: source frames of the sequence.
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
        frame_exposure(k, start, averaged, ticks_per_frame) for k, start in enumerate(starts)
    )


def overlapping_exposures(
    num_ticks: int, length: int, stride: int
) -> tuple[SimulatedExposure, ...]:
    """Return exposures of `length` ticks that average all of them; the sharp tick is the middle.

    Raises:
        ValueError: an even length, which has no middle tick.
    """
    if length % 2 == 0:
        raise ValueError(f"exposures of {length} ticks: an odd number has a middle one")
    starts = range(0, num_ticks - length + 1, stride)
    return tuple(
        SimulatedExposure(k, start, start + length, start + (length - 1) // 2, 1)
        for k, start in enumerate(starts)
    )


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


def sequence_seed(seed: int, name: str) -> int:
    """Return the seed of a sequence's sensor: the same whatever else is made, in any order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


# ---------------------------------------------------------------- one sequence


class FrameSink(Protocol):
    """Takes the frames that were made."""

    def put(self, folder: Path, exposure: SimulatedExposure, kind: str, image: np.ndarray) -> None:
        """Write frame `kind` ("blur" or "sharp") of an exposure into the folder of its sequence."""
        ...


class PngSink:
    """Writes frames as PNG files."""

    def put(self, folder: Path, exposure: SimulatedExposure, kind: str, image: np.ndarray) -> None:
        """Write `folder/kind/000000.png`."""
        write_png(folder / kind / f"{exposure.name}.png", image)


@dataclass(frozen=True)
class SimulatedSequence:
    """A sequence simulated from sharp frames; see `PlannedSequence`.

    Attributes:
        place: `SPLIT/SEQUENCE` of the output; draws the start of the spike sensor, too.
        frames: the sharp frames.
        exposures: the blurry frames, by ascending start.
        num_ticks: length of the spike stream.
        cameras: how it is seen.
        facts: what else the output depends on, such as the name of the source.
        notes: for the user, such as frames that cannot be made.
        sink: what to do with blurry and sharp frames.
    """

    place: str
    frames: HighSpeedFrames
    exposures: tuple[SimulatedExposure, ...]
    num_ticks: int
    cameras: Cameras
    facts: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sink: FrameSink = PngSink()

    @property
    def split(self) -> str:
        """Our split."""
        return self.place.partition("/")[0]

    @property
    def name(self) -> str:
        """Folder of the sequence."""
        return self.place.partition("/")[2]

    @property
    def num_inputs(self) -> int:
        """Source frames."""
        return len(self.frames)

    @property
    def num_exposures(self) -> int:
        """Blurry frames."""
        return len(self.exposures)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.frames) / self.cameras.frames_per_second

    @property
    def spike_size(self) -> tuple[int, int]:
        """Height and width of the spike sensor."""
        return self.cameras.spike_size(self.frames.size)

    @property
    def out_bytes(self) -> int:
        """Spikes exactly, and frames as large as those of the source."""
        height, width = self.frames.size
        frame_bytes = height * width * 3 * PNG_BYTES_PER_VALUE
        if isinstance(self.frames, FrameFolder) and self.frames.files[0].suffix == ".png":
            frame_bytes = self.frames.num_bytes / len(self.frames)
        spike_bytes = self.num_ticks * math.prod(self.spike_size) // 8
        return int(spike_bytes + 2 * len(self.exposures) * frame_bytes)

    @cached_property
    def identity(self) -> Mapping[str, object]:
        """Everything the output depends on; where the input lies is not part of it."""
        return {
            "format": FORMAT,
            **self.facts,
            **asdict(self.cameras),
            "source_frames": len(self.frames),
            "source_bytes": self.frames.num_bytes,
            "frames_sha256": sample_sha256(self.frames.files),  # sizes of .bmp are always equal
            "exposures": len(self.exposures),
        }

    def write(self, folder: Path) -> list[str]:
        """Write blur, sharp, spike/spike.dat, its sidecar and exposures.csv.

        Raises:
            ValueError: fewer frames than were planned, or one of another size.
            What reading the frames and the sink raise.
        """
        rate, threshold = self.cameras.ticks_per_second, self.cameras.threshold
        sidecar = SpikeSidecar(*self.spike_size, float(rate), float(threshold))
        write_sidecar(folder / "spike", sidecar)
        times = {
            e.index: Exposure(e.start_tick / rate, e.stop_tick / rate, t_sharp=e.sharp_tick / rate)
            for e in self.exposures
        }
        write_exposures(folder / EXPOSURES_NAME, times)
        camera = BlurCamera(self, folder)
        with (folder / "spike" / STREAM_NAME).open("xb") as stream:
            sensor = SpikeCamera(self, sidecar, stream)
            count = 0
            for frame in self.frames:
                count += 1
                sensor.show(frame)
                camera.show(frame)
            sensor.finish()
        if count != len(self.frames) or camera.is_waiting:
            raise ValueError(f"{self.place}: {count} frames, {len(self.frames)} were planned")
        return list(self.notes)


def own_sequence(
    place: str,
    frames: HighSpeedFrames,
    cameras: Cameras,
    averaged: int,
    stride: int | None = None,
    facts: Mapping[str, object] | None = None,
) -> SimulatedSequence:
    """Return the sequence of somebody's own sharp frames, with exposures of whole frames.

    Args:
        place: `SPLIT/SEQUENCE` of the output.
        frames: see `video.open_frames`.
        cameras: see `cameras_of`; with an interpolator the last frame is held for its ticks.
        averaged: source frames in a blurry frame, odd.
        stride: source frames from one exposure to the next; None: `averaged`.
        facts: what else the output depends on.

    Raises:
        DataSetError: an even `averaged`, too few frames, or a size that cannot be simulated from.
    """
    try:
        exposures = abutting_exposures(len(frames), averaged, cameras.ticks_per_frame, stride)
    except ValueError as error:
        raise DataSetError("options of the source", [f"--frames_averaged: {error}"]) from error
    problem = size_problem(frames.size, cameras)
    if not exposures:
        problem = f"{len(frames)} frames, one exposure needs {averaged}"
    if problem is not None:
        raise DataSetError(str(frames.path), [problem])
    num_ticks = len(frames) * cameras.ticks_per_frame
    all_facts = {"frames_averaged": averaged, "stride": stride or averaged, **(facts or {})}
    return SimulatedSequence(place, frames, exposures, num_ticks, cameras, all_facts)


def simulated_description(
    source: str,
    cameras: Cameras,
    sequences: Iterable[SimulatedSequence],
    frames_averaged: set[int],
    offsets: Mapping[str, int] | None = None,
) -> DataDescription:
    """Return the description of a simulated data set.

    Args:
        source: in words.
        cameras: how all sequences are seen.
        sequences: their spike size is part of the description where they share it.
        frames_averaged: all numbers that occur.
        offsets: by `SPLIT/SEQUENCE`; zeros are left out.
    """
    sizes = {sequence.spike_size for sequence in sequences}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return DataDescription(
        source=source,
        blur_kind=cameras.blur_kind,
        frames_averaged=tuple(sorted(frames_averaged)),
        transfer=cameras.transfer,
        threshold=float(cameras.threshold),
        ticks_per_second=float(cameras.ticks_per_second),
        spike_height=height,
        spike_width=width,
        interpolator=cameras.interpolator,
        offsets=tuple(sorted((name, value) for name, value in (offsets or {}).items() if value)),
    )


# ---------------------------------------------------------------- the two cameras


class SpikeCamera:
    """Shows source frames to the spike sensor, one frame late, and appends its bits to a file."""

    def __init__(
        self, sequence: SimulatedSequence, sidecar: SpikeSidecar, stream: BinaryIO
    ) -> None:
        self._cameras, self._stream = sequence.cameras, stream
        self._geometry = sidecar.geometry
        self._left = sequence.num_ticks
        self._light: np.ndarray | None = None
        self._simulator = SpikeSimulator(
            sidecar.height,
            sidecar.width,
            seed=sequence_seed(sequence.cameras.seed, sequence.place),
            threshold=sequence.cameras.threshold,
        )

    def show(self, frame: np.ndarray) -> None:
        """Record what lies between the frame before and this one."""
        light = rgb_to_intensity(frame, self._cameras.transfer, self._cameras.downscale)
        if self._light is not None:
            self._expose(self._light, light)
        self._light = light

    def finish(self) -> None:
        """Record the last frame, which is held until the end of the stream."""
        if self._light is not None:
            self._expose(self._light, self._light)

    def _expose(self, light: np.ndarray, following: np.ndarray) -> None:
        num_ticks = min(self._cameras.ticks_per_frame, self._left)
        self._left -= num_ticks
        if not num_ticks:
            return
        chunk = np.empty((num_ticks, *light.shape), dtype=np.float32)
        for i in range(num_ticks):
            part = np.float32(i / self._cameras.ticks_per_frame)
            np.multiply(following, part, out=chunk[i])
            chunk[i] += light * (1 - part)
        # Two rounded parts can add up to a hair above 1.
        bits = self._simulator.expose(np.minimum(chunk, 1, out=chunk))
        self._stream.write(pack_spikes(bits, self._geometry))


class BlurCamera:
    """Averages source frames into blurry and sharp frames, as many at a time as overlap."""

    def __init__(self, sequence: SimulatedSequence, folder: Path) -> None:
        self._sequence, self._folder = sequence, folder
        self._num_begun = 0
        self._open: list[_Picture] = []
        self._frame = -1

    @property
    def is_waiting(self) -> bool:
        """Whether there are pictures that were not finished."""
        return bool(self._open) or self._num_begun < len(self._sequence.exposures)

    def show(self, frame: np.ndarray) -> None:
        """Add a source frame to every picture it is part of; hand on those that are complete."""
        self._frame += 1
        self._begin()
        for picture in self._open:
            picture.add(self._frame, frame)
        for picture in self._open:
            if picture.last_frame == self._frame:
                image = picture.mean()
                self._sequence.sink.put(self._folder, picture.exposure, picture.kind, image)
        self._open = [picture for picture in self._open if picture.last_frame > self._frame]

    def _begin(self) -> None:
        """Open the pictures of the exposures that begin with this frame."""
        ticks_per_frame = self._sequence.cameras.ticks_per_frame
        exposures = self._sequence.exposures
        gamma = BLUR_GAMMAS[self._sequence.cameras.blur_kind]
        while self._num_begun < len(exposures):
            exposure = exposures[self._num_begun]
            if exposure.start_tick // ticks_per_frame > self._frame:
                return
            self._num_begun += 1
            averaged = range(exposure.start_tick, exposure.stop_tick, exposure.step_ticks)
            for kind, ticks in (("blur", averaged), ("sharp", [exposure.sharp_tick])):
                weights = frame_weights(ticks, ticks_per_frame, len(self._sequence.frames))
                self._open.append(_Picture(exposure, kind, weights, gamma))


class _Picture:
    """A blurry or sharp frame in the making."""

    def __init__(
        self, exposure: SimulatedExposure, kind: str, weights: dict[int, int], gamma: float | None
    ) -> None:
        self.exposure, self.kind, self.weights, self.gamma = exposure, kind, weights, gamma
        self.last_frame = max(weights)
        self._sum: BlurAccumulator | None = None
        self._only: np.ndarray | None = None

    def add(self, number: int, frame: np.ndarray) -> None:
        if number not in self.weights:
            return
        if len(self.weights) == 1:
            self._only = frame
            return
        if self._sum is None:
            total = sum(self.weights.values())
            self._sum = BlurAccumulator(frame.shape[:2], total, self.gamma)
        self._sum.add(frame, self.weights[number])

    def mean(self) -> np.ndarray:
        return self._only if self._sum is None else self._sum.mean()
