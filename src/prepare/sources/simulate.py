"""One clip of sharp high-speed frames as a job of a source plan."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from src.data.description import DataDescription
from src.data.errors import DataSetError
from src.prepare.sources.copying import sample_sha256
from src.prepare.sources.film_plan import Cameras, Film, abutting_windows
from src.prepare.sources.filming import FrameSink, film
from src.prepare.sources.source import SourceOptions
from src.prepare.sources.video import FrameFolder, HighSpeedFrames

FORMAT = 1  # of what is written; a change makes old sequences differ
PNG_BYTES_PER_VALUE = 0.5  # of a frame whose own PNG size is not known
DEFAULT_TICKS_PER_FRAME = 8


@dataclass(frozen=True)
class FilmJob:
    """Films one clip; see `ClipJob`.

    Attributes:
        frames: the sharp frames.
        plan: what to film; its clip is named `SPLIT/SEQUENCE`.
        facts: what else the output depends on, such as the name of the source.
        notes: for the user, such as frames that cannot be made.
        sink: what to do with blurry and sharp frames; None writes them.
    """

    frames: HighSpeedFrames
    plan: Film
    facts: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sink: FrameSink | None = None

    @property
    def split(self) -> str:
        """Our split."""
        return self.plan.clip.partition("/")[0]

    @property
    def name(self) -> str:
        """Folder of the sequence."""
        return self.plan.clip.partition("/")[2]

    @property
    def num_units(self) -> int:
        """Source frames."""
        return self.plan.num_frames

    @property
    def num_exposures(self) -> int:
        """Blurry frames."""
        return len(self.plan.windows)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self.plan.num_frames / self.plan.cameras.frames_per_second

    @property
    def out_bytes(self) -> int:
        """Spikes exactly, and frames as large as those of the source."""
        height, width = self.plan.size
        spike_height, spike_width = self.plan.cameras.spike_size(self.plan.size)
        frame_bytes = height * width * 3 * PNG_BYTES_PER_VALUE
        if isinstance(self.frames, FrameFolder) and self.frames.files[0].suffix == ".png":
            frame_bytes = self.frames.num_bytes / len(self.frames)
        spike_bytes = self.plan.num_ticks * spike_height * spike_width // 8
        return int(spike_bytes + 2 * len(self.plan.windows) * frame_bytes)

    @cached_property
    def identity(self) -> Mapping[str, object]:
        """Everything the output depends on; where the input lies is not part of it."""
        return {
            "format": FORMAT,
            **self.facts,
            **asdict(self.plan.cameras),
            "source_frames": self.plan.num_frames,
            "source_bytes": self.frames.num_bytes,
            "frames_sha256": sample_sha256(self.frames.files),  # sizes of .bmp are always equal
            "exposures": len(self.plan.windows),
        }

    def write(self, folder: Path, advance: Callable[[int], None]) -> list[str]:
        """Film the clip; see `ClipJob`."""
        film(self.plan, self.frames, folder, advance, self.sink)
        return list(self.notes)


def cameras_of(
    options: SourceOptions,
    *,
    interpolator: str,
    frames_per_second: float,
    ticks_per_frame: int = DEFAULT_TICKS_PER_FRAME,
) -> Cameras:
    """Return how the options want a clip to be seen.

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
    """Say why frames of a size cannot be filmed; None where they can."""
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


def high_speed_job(
    clip: str,
    frames: HighSpeedFrames,
    cameras: Cameras,
    averaged: int,
    stride: int | None = None,
    facts: Mapping[str, object] | None = None,
) -> FilmJob:
    """Return the job of filming somebody's own sharp frames, with exposures of whole frames.

    Args:
        clip: `SPLIT/SEQUENCE` of the output.
        frames: see `high_speed.open_frames`.
        cameras: see `cameras_of`; with an interpolator the last frame is held for its ticks.
        averaged: source frames in a blurry frame, odd.
        stride: source frames from one exposure to the next; None: `averaged`.
        facts: what else the output depends on.

    Raises:
        DataSetError: an even `averaged`, too few frames, or a size that cannot be filmed.
    """
    try:
        windows = abutting_windows(len(frames), averaged, cameras.ticks_per_frame, stride)
    except ValueError as error:
        raise DataSetError("options of the source", [f"--frames_averaged: {error}"]) from error
    problem = size_problem(frames.size, cameras)
    if not windows:
        problem = f"{len(frames)} frames, one exposure needs {averaged}"
    if problem is not None:
        raise DataSetError(str(frames.path), [problem])
    num_ticks = len(frames) * cameras.ticks_per_frame
    plan = Film(clip, len(frames), frames.size, windows, num_ticks, cameras)
    all_facts = {"frames_averaged": averaged, "stride": stride or averaged, **(facts or {})}
    return FilmJob(frames, plan, all_facts)


def film_description(
    source: str,
    cameras: Cameras,
    jobs: tuple[FilmJob, ...],
    frames_averaged: set[int],
    offsets: Mapping[str, int] | None = None,
) -> DataDescription:
    """Return the description of a data set made by filming.

    Args:
        source: in words.
        cameras: how all clips are seen.
        jobs: the clips; their spike size stands in the description where they share it.
        frames_averaged: all numbers that occur.
        offsets: by `SPLIT/SEQUENCE`; zeros are left out.
    """
    sizes = {cameras.spike_size(job.plan.size) for job in jobs}
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
