"""Read sharp high-speed frames and simulate two cameras: blurry and sharp frames, and spikes.

Source frame j is at tick p * j, with p ticks per frame. Between frames there is nothing ("none":
p = 1) or a cross-fade ("linear": the light of tick p*j + i is (1 - i/p) S_j + (i/p) S_j+1; the last
frame is held). Frames are read once, one at a time, so memory does not grow with the recording;
exposures may overlap.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.data.description import DataDescription
from src.data.errors import DataSetError
from src.data.exposures import EXPOSURES_NAME, Exposure, write_exposures
from src.data.frames import write_png
from src.data.simulation.blur import BlurAccumulator
from src.data.simulation.simulator import SpikeSimulator, rgb_to_intensity
from src.data.spikes.spike_dat import SpikeGeometry, SpikeSidecar, pack_spikes, write_sidecar
from src.prepare.sources.high_speed import HighSpeedFrames
from src.prepare.sources.planning import (
    BLUR_GAMMAS,
    STREAM_NAME,
    PlannedSequence,
    SourceOptions,
    collected,
    sample_sha256,
)

FORMAT = 1  # of what is written; a change makes old sequences differ
PNG_BYTES_PER_VALUE = 0.5  # of a frame whose own PNG size is not known
DEFAULT_TICKS_PER_FRAME = 8
# The options that say how the two cameras see the source frames.
CAMERAS = (
    *("blur_kind", "transfer", "threshold", "downscale", "interpolator", "ticks_per_frame"),
    *("frames_per_second", "seed"),
)


# ---------------------------------------------------------------- the two cameras


def completed(
    options: SourceOptions,
    *,
    interpolator: str,
    frames_per_second: float | None,
    ticks_per_frame: int = DEFAULT_TICKS_PER_FRAME,
) -> SourceOptions:
    """Return options with the defaults of a source for what they omit of the two cameras.

    `ticks_per_frame` is the default where there is an interpolator; without one a tick is a frame.
    """
    interpolator = options.interpolator or interpolator
    ticks, rate = options.ticks_per_frame, options.frames_per_second
    if ticks is None:
        ticks = 1 if interpolator == "none" else ticks_per_frame
    problems = []
    if interpolator == "none" and ticks != 1:
        problems.append(
            f"{ticks} ticks per source frame need light between the frames: write --interpolator "
            "linear, or --ticks_per_frame 1"
        )
    if options.threshold < 1:
        problems.append(
            f"threshold {options.threshold}: a white pixel would have to fire more than once per "
            "tick; 1 or more is needed"
        )
    if problems:
        raise DataSetError("options of the source", problems)
    return replace(
        options,
        interpolator=interpolator,
        ticks_per_frame=ticks,
        frames_per_second=frames_per_second if rate is None else rate,
    )


# ---------------------------------------------------------------- which ticks make a frame


@dataclass(frozen=True)
class SimulatedExposure:
    """One blurry frame: the ticks [start, stop)."""

    index: int  # its number, which becomes its name
    start_tick: int
    stop_tick: int
    sharp_tick: int  # its light is the sharp frame
    step_ticks: int  # the mean takes every so many ticks, from the first on

    @property
    def name(self) -> str:
        """Name of the frame, without ending."""
        return f"{self.index:06d}"


def frame_exposure(index: int, start: int, length: int, step_ticks: int) -> SimulatedExposure:
    """Return the exposure [start, start + length), counted in steps of so many ticks.

    With the ticks per source frame as a step these are source frames, with 1 single ticks. The
    sharp frame is the middle one of an odd `length`: with 8 ticks per frame at tick 4 (length - 1).
    """
    start_tick, sharp_tick = start * step_ticks, (start + (length - 1) // 2) * step_ticks
    stop_tick = start_tick + length * step_ticks
    return SimulatedExposure(index, start_tick, stop_tick, sharp_tick, step_ticks)


def regular_exposures(
    count: int, length: int, stride: int, step_ticks: int
) -> tuple[SimulatedExposure, ...]:
    """Return the exposures of `length` steps that begin every `stride` and lie in `count` steps."""
    starts = range(0, count - length + 1, stride)
    return tuple(frame_exposure(k, start, length, step_ticks) for k, start in enumerate(starts))


def frame_weights(ticks: Iterable[int], ticks_per_frame: int, num_frames: int) -> dict[int, int]:
    """Return how much each source frame counts in the mean of the light at some ticks.

    Whole numbers without a common divisor: with 4 ticks per frame tick 6 is {1: 1, 2: 1}.
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


def put_png(folder: Path, exposure: SimulatedExposure, kind: str, image: np.ndarray) -> None:
    """Write frame `kind` ("blur" or "sharp") of an exposure as `folder/kind/000000.png`."""
    write_png(folder / kind / f"{exposure.name}.png", image)


@dataclass(frozen=True)
class Simulation:
    """What `write` makes from sharp frames."""

    where: str  # `SPLIT/SEQUENCE` of the output; draws the start of the spike sensor, too
    frames: HighSpeedFrames
    exposures: Sequence[SimulatedExposure]  # by ascending start
    num_ticks: int  # of the spike stream
    cameras: SourceOptions  # completed, see `completed`
    notes: Sequence[str] = ()  # for the user, such as frames that cannot be made
    put: Callable[[Path, SimulatedExposure, str, np.ndarray], None] = put_png

    @property
    def spike_size(self) -> tuple[int, int]:
        """Height and width of the spike sensor."""
        height, width = self.frames.size
        return height // self.cameras.downscale, width // self.cameras.downscale

    def write(self, folder: Path) -> list[str]:
        """Write blur, sharp, spike/spike.dat, its sidecar and exposures.csv; return the notes."""
        cameras, rate = self.cameras, self.cameras.ticks_per_second
        sidecar = SpikeSidecar(*self.spike_size, float(rate), float(cameras.threshold))
        write_sidecar(folder / "spike", sidecar)
        times = {
            e.index: Exposure(e.start_tick / rate, e.stop_tick / rate, t_sharp=e.sharp_tick / rate)
            for e in self.exposures
        }
        write_exposures(folder / EXPOSURES_NAME, times)
        seed = sequence_seed(cameras.seed, self.where)
        sensor = SpikeSimulator(*self.spike_size, seed=seed, threshold=cameras.threshold)
        uses, sums = self._uses_of_frames(), {}
        count, num_equal, light, previous = 0, 0, None, None
        with (folder / "spike" / STREAM_NAME).open("xb") as stream:
            for count, frame in enumerate(self.frames, start=1):
                num_equal += previous is not None and np.array_equal(frame, previous)
                previous = frame
                for use in uses.pop(count - 1, ()):
                    self._average(*use, count - 1, frame, sums, folder)
                following = rgb_to_intensity(frame, cameras.transfer, cameras.downscale)
                if light is not None:
                    stream.write(self._expose(sensor, count - 2, light, following))
                light = following
            if light is not None:  # the last frame is held
                stream.write(self._expose(sensor, count - 1, light, light))
        if count != len(self.frames) or uses:
            reason = f"{count} frames, {len(self.frames)} were planned; run it again"
            raise DataSetError(self.where, [reason])
        repeats = f"{num_equal} of {count} frames equal the frame before them; time stands still"
        return [*self.notes, *([repeats] if num_equal else [])]

    def _expose(
        self, sensor: SpikeSimulator, number: int, light: np.ndarray, following: np.ndarray
    ) -> bytes:
        """Return the packed ticks from source frame `number` to the next."""
        per_frame = self.cameras.ticks_per_frame
        num_ticks = min(per_frame, self.num_ticks - number * per_frame)
        if num_ticks <= 0:
            return b""
        chunk = np.empty((num_ticks, *light.shape), dtype=np.float32)
        for i in range(num_ticks):
            part = np.float32(i / per_frame)
            np.multiply(following, part, out=chunk[i])
            chunk[i] += light * (1 - part)
        # Two rounded parts can add up to a hair above 1.
        bits = sensor.expose(np.minimum(chunk, 1, out=chunk))
        return pack_spikes(bits, SpikeGeometry(*self.spike_size))

    def _uses_of_frames(self) -> dict[int, list[tuple]]:
        """Return source frame -> (exposure, kind, weights) of the pictures that it is part of."""
        uses = defaultdict(list)
        for e in self.exposures:
            averaged = range(e.start_tick, e.stop_tick, e.step_ticks)
            for kind, ticks in (("blur", averaged), ("sharp", [e.sharp_tick])):
                weights = frame_weights(ticks, self.cameras.ticks_per_frame, len(self.frames))
                for number in weights:
                    uses[number].append((e, kind, weights))
        return uses

    def _average(
        self,
        exposure: SimulatedExposure,
        kind: str,
        weights: Mapping[int, int],
        number: int,
        frame: np.ndarray,
        sums: dict[tuple[int, str], BlurAccumulator],
        folder: Path,
    ) -> None:
        """Add a source frame to a picture; write the picture when it is complete."""
        if len(weights) == 1:
            self.put(folder, exposure, kind, frame)
            return
        key = exposure.index, kind
        if key not in sums:
            gamma = BLUR_GAMMAS[self.cameras.blur_kind]
            sums[key] = BlurAccumulator(frame.shape[:2], sum(weights.values()), gamma)
        sums[key].add(frame, weights[number])
        if number == max(weights):
            self.put(folder, exposure, kind, sums.pop(key).mean())


def planned(simulation: Simulation, facts: Mapping[str, object]) -> PlannedSequence:
    """Return a simulation as a sequence of a plan; `facts` are what else its output depends on."""
    frames, cameras = simulation.frames, simulation.cameras
    (height, width), (spike_height, spike_width) = frames.size, simulation.spike_size
    problem = None
    if (spike_height * cameras.downscale, spike_width * cameras.downscale) != frames.size:
        problem = (
            f"frames of {height}x{width} cannot be divided by --downscale {cameras.downscale}; "
            "crop them or choose another"
        )
    elif spike_height * spike_width % 8:
        problem = (
            f"frames of {height}x{width} give a spike sensor of {spike_height}x{spike_width}, "
            "whose pixels are no multiple of 8; crop them or choose another --downscale"
        )
    elif not simulation.exposures:
        problem = (
            f"{len(frames)} frames, {simulation.num_ticks} ticks: too few for one exposure of "
            f"{facts['frames_averaged']}"
        )
    if problem is not None:
        raise DataSetError(str(frames.path), [problem])
    frame_bytes = height * width * 3 * PNG_BYTES_PER_VALUE
    if frames.files[0].suffix == ".png":
        frame_bytes = frames.num_bytes / len(frames)
    spike_bytes = simulation.num_ticks * spike_height * spike_width // 8
    identity = {
        "format": FORMAT,
        **facts,
        **{name: getattr(cameras, name) for name in CAMERAS},
        "source_frames": len(frames),
        "source_bytes": frames.num_bytes,
        "frames_sha256": sample_sha256(frames.files),  # sizes of .bmp are always equal
        "exposures": len(simulation.exposures),
    }
    return PlannedSequence(
        *simulation.where.split("/"),
        num_inputs=len(frames),
        num_exposures=len(simulation.exposures),
        out_bytes=int(spike_bytes + 2 * len(simulation.exposures) * frame_bytes),
        seconds=len(frames) / cameras.frames_per_second,
        spike_size=simulation.spike_size,
        identity=identity,
        write=simulation.write,
    )


def simulated_description(
    source: str, cameras: SourceOptions, sequences: Sequence[PlannedSequence]
) -> DataDescription:
    """Return the description of a simulated data set; `source` says in words what it is."""
    return DataDescription(
        source=source,
        blur_kind=cameras.blur_kind,
        transfer=cameras.transfer,
        threshold=float(cameras.threshold),
        ticks_per_second=float(cameras.ticks_per_second),
        interpolator=cameras.interpolator,
        **collected(sequences),
    )
