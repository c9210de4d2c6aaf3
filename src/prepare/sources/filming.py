"""Film sharp high-speed frames with two cameras: blurry and sharp frames, and a spike stream.

Frames are read once, one at a time, so memory does not grow with the clip; exposures may overlap.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from src.data.exposures import EXPOSURES_NAME, write_exposures
from src.data.frames import write_png
from src.data.simulation.blur import BlurAccumulator
from src.data.simulation.simulator import SpikeSimulator, rgb_to_intensity
from src.data.spikes.spike_dat import SpikeSidecar, pack_spikes, write_sidecar
from src.prepare.sources.film_plan import Film, FilmWindow, clip_seed, exposures, frame_weights
from src.prepare.sources.source import BLUR_GAMMAS

STREAM_NAME = "spike.dat"


class FrameSink(Protocol):
    """Takes the frames that were made."""

    def put(self, folder: Path, window: FilmWindow, kind: str, image: np.ndarray) -> None:
        """Write frame `kind` ("blur" or "sharp") of a window into the folder of its sequence."""
        ...


class PngSink:
    """Writes frames as PNG files."""

    def put(self, folder: Path, window: FilmWindow, kind: str, image: np.ndarray) -> None:
        """Write `folder/kind/000000.png`."""
        write_png(folder / kind / f"{window.name}.png", image)


def film(
    plan: Film,
    frames: Iterable[np.ndarray],
    folder: Path,
    advance: Callable[[int], None],
    sink: FrameSink | None = None,
) -> None:
    """Write blur, sharp, spike/spike.dat, its sidecar and exposures.csv of one clip.

    Args:
        plan: what to film.
        frames: uint8 RGB [H, W, 3], `plan.num_frames` of them.
        folder: of the sequence; exists, is empty.
        advance: called with 1 after each source frame.
        sink: what to do with the frames; None writes PNG files.

    Raises:
        ValueError: fewer frames than the plan has, or one of another size.
        What reading the frames and the sink raise.
    """
    height, width = plan.cameras.spike_size(plan.size)
    sidecar = SpikeSidecar(
        height, width, float(plan.cameras.ticks_per_second), float(plan.cameras.threshold)
    )
    write_sidecar(folder / "spike", sidecar)
    write_exposures(folder / EXPOSURES_NAME, exposures(plan))
    exposer = _Exposer(plan, folder, PngSink() if sink is None else sink)
    with (folder / "spike" / STREAM_NAME).open("xb") as stream:
        sensor = _Sensor(plan, sidecar, stream)
        count = 0
        for frame in frames:
            count += 1
            sensor.show(frame)
            exposer.show(frame)
            advance(1)
        sensor.finish()
    if count != plan.num_frames or exposer.is_waiting:
        raise ValueError(f"{plan.clip}: {count} frames came, {plan.num_frames} were planned")


class _Sensor:
    """Shows source frames to the spike sensor, one frame late, and appends its bits to a file."""

    def __init__(self, plan: Film, sidecar: SpikeSidecar, stream: BinaryIO) -> None:
        self._cameras, self._stream = plan.cameras, stream
        self._geometry = sidecar.geometry
        self._left = plan.num_ticks
        self._light: np.ndarray | None = None
        self._simulator = SpikeSimulator(
            sidecar.height,
            sidecar.width,
            seed=clip_seed(plan.cameras.seed, plan.clip),
            threshold=plan.cameras.threshold,
        )

    def show(self, frame: np.ndarray) -> None:
        """Film what lies between the frame before and this one."""
        light = rgb_to_intensity(frame, self._cameras.transfer, self._cameras.downscale)
        if self._light is not None:
            self._expose(self._light, light)
        self._light = light

    def finish(self) -> None:
        """Film the last frame, which is held until the end of the stream."""
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


class _Exposer:
    """Averages source frames into blurry and sharp frames, as many at a time as overlap."""

    def __init__(self, plan: Film, folder: Path, sink: FrameSink) -> None:
        self._plan, self._folder, self._sink = plan, folder, sink
        self._num_begun = 0
        self._open: list[_Picture] = []
        self._frame = -1

    @property
    def is_waiting(self) -> bool:
        """Whether there are pictures that were not finished."""
        return bool(self._open) or self._num_begun < len(self._plan.windows)

    def show(self, frame: np.ndarray) -> None:
        """Add a source frame to every picture it is part of; hand on those that are complete."""
        self._frame += 1
        self._begin()
        for picture in self._open:
            picture.add(self._frame, frame, self._plan)
        for picture in self._open:
            if picture.last_frame == self._frame:
                self._sink.put(self._folder, picture.window, picture.kind, picture.mean())
        self._open = [picture for picture in self._open if picture.last_frame > self._frame]

    def _begin(self) -> None:
        """Open the pictures of the windows that begin with this frame."""
        ticks_per_frame = self._plan.cameras.ticks_per_frame
        windows = self._plan.windows
        while self._num_begun < len(windows):
            window = windows[self._num_begun]
            if window.start_tick // ticks_per_frame > self._frame:
                return
            self._num_begun += 1
            averaged = range(window.start_tick, window.stop_tick, window.step_ticks)
            for kind, ticks in (("blur", averaged), ("sharp", [window.sharp_tick])):
                weights = frame_weights(ticks, ticks_per_frame, self._plan.num_frames)
                self._open.append(_Picture(window, kind, weights))


class _Picture:
    """A blurry or sharp frame in the making."""

    def __init__(self, window: FilmWindow, kind: str, weights: dict[int, int]) -> None:
        self.window, self.kind, self.weights = window, kind, weights
        self.last_frame = max(weights)
        self._sum: BlurAccumulator | None = None
        self._only: np.ndarray | None = None

    def add(self, number: int, frame: np.ndarray, plan: Film) -> None:
        if number not in self.weights:
            return
        if len(self.weights) == 1:
            self._only = frame
            return
        if self._sum is None:
            gamma = BLUR_GAMMAS[plan.cameras.blur_kind]
            self._sum = BlurAccumulator(plan.size, sum(self.weights.values()), gamma)
        self._sum.add(frame, self.weights[number])

    def mean(self) -> np.ndarray:
        return self._only if self._sum is None else self._sum.mean()
