"""The user's own sequence of blurry frames, sharp frames, spikes and exposures: found and checked.

    SEQ/blur/NAME.png  SEQ/sharp/NAME.png  SEQ/exposures.csv
    SEQ/spike.dat (or .npy, .npz, .h5), or SEQ/spike/ with one such file, or one per frame

What a file does not say about itself (size, tick rate, order of axes) must be stated beside it or
on the command line; nothing is guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.description import DataDescription
from src.data.errors import DataSetError
from src.data.exposures import (
    EXPOSURES_NAME,
    Exposure,
    frame_index,
    read_exposures,
    window_ticks,
)
from src.data.frames import list_frames
from src.data.spikes.arrays import ARRAY_SUFFIXES, array_shape
from src.data.spikes.dense_files import DenseFile, EventFile, TickReader
from src.data.spikes.spike_dat import SpikeFile, SpikeSidecar
from src.prepare.sources.recorded_sizes import (
    axes_and_size,
    size_needed,
    stated_sidecar,
    with_rate,
)
from src.prepare.sources.source import SourceOptions, listed
from src.prepare.sources.video import IMAGE_EXTS

DAT, DENSE, EVENTS = "packed ticks (.dat)", "dense array", "list of events"


@dataclass(frozen=True)
class SpikeInput:
    """The spikes of a sequence as the user has them.

    Attributes:
        files: one stream, or one file per frame in order of the frames.
        is_per_frame: whether there is one file per frame.
        layout: one of DAT, DENSE, EVENTS.
        sidecar: size and tick rate; bit order and flip of a `.dat`.
        axes: of a dense array, "SHW" in some order.
        key: name of the array in its file.
        columns: of a list of events.
    """

    files: tuple[Path, ...]
    is_per_frame: bool
    layout: str
    sidecar: SpikeSidecar
    axes: str | None = None
    key: str | None = None
    columns: str = "tyxp"

    def describe(self) -> str:
        """Return what was found, in words."""
        files = f"{len(self.files)} files, one per frame" if self.is_per_frame else "one stream"
        detail = f", axes {self.axes.replace('S', 'T')}" if self.layout == DENSE else ""
        detail += f", columns {self.columns}" if self.layout == EVENTS else ""
        held = self.files[0].suffix.lower() == ".npz" or self.layout == EVENTS
        return (
            f"{self.layout}{detail}, {files} of {self.sidecar.height}x{self.sidecar.width} at "
            f"{self.sidecar.ticks_per_second:g} ticks/s" + (", held in memory" if held else "")
        )

    def open(self, number: int) -> TickReader:
        """Return the ticks of one of the files.

        Raises:
            ValueError, OSError: it cannot be read.
        """
        path, size = self.files[number], (self.sidecar.height, self.sidecar.width)
        if self.layout == DAT:
            return SpikeFile(path, self.sidecar.geometry)
        if self.layout == DENSE:
            return DenseFile(path, *size, self.axes, self.key)
        return EventFile(path, *size, self.columns, self.key)


@dataclass(frozen=True)
class RecordedClip:
    """A sequence, found and checked by names.

    Attributes:
        split: our split.
        name: of the sequence.
        blurry, sharp: the frames in order of their numbers, the same names.
        exposures: frame number -> exposure, for every frame.
        spikes: see `SpikeInput`.
        notes: exposures without frames and gaps in the numbers, by name.
    """

    split: str
    name: str
    blurry: tuple[Path, ...]
    sharp: tuple[Path, ...]
    exposures: Mapping[int, Exposure]
    spikes: SpikeInput
    notes: tuple[str, ...] = ()


def find_recorded(
    folder: Path, split: str, options: SourceOptions, description: DataDescription | None
) -> RecordedClip:
    """Return the sequence in `folder`.

    Raises:
        DataSetError: frames without a partner or an exposure, spikes that are missing, of which
            there are several, or of which something has to be stated.
        BadFileError: an exposures table that cannot be read.
    """
    frames = {kind: list_frames(folder / kind, IMAGE_EXTS) for kind in ("blur", "sharp")}
    problems = _unpaired(frames["blur"], frames["sharp"])
    if problems:
        raise DataSetError(str(folder), problems)
    try:
        names = sorted(frames["blur"], key=frame_index)
        _refuse_equal_numbers(names)
        spikes = _find_spikes(folder, names, options, description)
    except ValueError as error:
        if isinstance(error, DataSetError):
            raise
        reason = str(error).removeprefix(f"{folder}/")  # the folder is named once, in front
        raise DataSetError(str(folder), [reason]) from error
    exposures = read_exposures(folder / EXPOSURES_NAME, spikes.sidecar.ticks_per_second)
    missing = [name for name in names if frame_index(name) not in exposures]
    if missing:
        reason = f"no line in {EXPOSURES_NAME} for {len(missing)} frame(s): {listed(missing)}"
        raise DataSetError(str(folder), [reason])
    for name in names:
        exposure = exposures[frame_index(name)]
        try:
            window_ticks(exposure.t0, exposure.t1, spikes.sidecar.ticks_per_second)
        except ValueError as error:
            raise DataSetError(str(folder), [f"{EXPOSURES_NAME}: frame {name}: {error}"]) from error
    return RecordedClip(
        split,
        folder.name,
        *(tuple(frames[kind][name] for name in names) for kind in ("blur", "sharp")),
        {frame_index(name): exposures[frame_index(name)] for name in names},
        spikes,
        tuple(_gaps([frame_index(name) for name in names], exposures)),
    )


def _gaps(numbers: Sequence[int], exposures: Mapping[int, Exposure]) -> list[str]:
    """Name exposures without frames, and missing numbers, where training clips end."""
    notes = []
    without = sorted(exposures.keys() - set(numbers))
    if without:
        notes.append(
            f"{len(without)} line(s) of {EXPOSURES_NAME} have no frames and are not used: "
            f"{listed([str(number) for number in without])}; are their images missing?"
        )
    missing = sorted(set(range(min(numbers), max(numbers))) - set(numbers) - set(without))
    if missing and len(missing) < len(numbers):  # else numbers are times or the like
        notes.append(
            f"{len(missing)} frame(s) missing in the middle: "
            f"{listed([str(number) for number in missing])}; neighbours across a gap are further "
            "apart in time"
        )
    return notes


def _refuse_equal_numbers(names: Sequence[str]) -> None:
    """Refuse frames that share a number, and so a line of the table."""
    twice = [b for a, b in zip(names, names[1:], strict=False) if frame_index(a) == frame_index(b)]
    if twice:
        numbers = listed([str(frame_index(name)) for name in twice])
        raise ValueError(f"frames numbered {numbers} exist under several names; rename them")


def _unpaired(blurry: Mapping[str, Path], sharp: Mapping[str, Path]) -> list[str]:
    problems = [] if blurry else [f"no images ({', '.join(IMAGE_EXTS)}) in blur"]
    for kind, names in (
        ("sharp", sorted(blurry.keys() - sharp.keys())),
        ("blurry", sorted(sharp.keys() - blurry.keys())),
    ):
        if names:
            problems.append(f"{len(names)} without a {kind} frame of that name: {listed(names)}")
    return problems


def _find_spikes(
    folder: Path,
    names: Sequence[str],
    options: SourceOptions,
    description: DataDescription | None,
) -> SpikeInput:
    """Return the spikes of a sequence; raise DataSetError or ValueError where it is not clear."""
    files, is_per_frame = _spike_files(folder, names)
    stated = stated_sidecar(files[0], description)
    first = files[0]
    if first.suffix.lower() == ".dat":
        if stated is None:
            raise ValueError(size_needed(first))
        return SpikeInput(files, is_per_frame, DAT, with_rate(stated, first))
    shape = array_shape(first, options.key)
    if len(shape) == 3:
        axes, size = axes_and_size(shape, stated, options, first)
        if stated is None:
            said = DataDescription("unknown") if description is None else description
            stated = SpikeSidecar(*size, said.ticks_per_second, said.threshold)
        sidecar = with_rate(stated, first)
        return SpikeInput(files, is_per_frame, DENSE, sidecar, axes, options.key)
    if len(shape) != 2 or not 3 <= shape[1] <= 4:
        raise ValueError(
            f"{first}: shape {shape}; dense spikes have three axes, lists of events have rows of "
            "3 or 4 numbers"
        )
    if is_per_frame:
        raise ValueError(
            f"{first.parent}: lists of events per frame; it is not clear where their t begins, "
            "join them into one list with t from the start of the sequence"
        )
    if stated is None:
        raise ValueError(size_needed(first))
    sidecar = with_rate(stated, first)
    return SpikeInput(files, False, EVENTS, sidecar, None, options.key, options.columns)


def _spike_files(folder: Path, names: Sequence[str]) -> tuple[tuple[Path, ...], bool]:
    """Return the file of the stream or those of the frames, and whether it is the latter."""
    suffixes = (".dat", *ARRAY_SUFFIXES)
    beside = [path for path in sorted(folder.glob("spike.*")) if path.suffix.lower() in suffixes]
    inside = [p for suffix in suffixes for p in list_frames(folder / "spike", [suffix]).values()]
    found = beside + inside
    if not found:
        raise ValueError(
            f"no spikes; spike{', spike'.join(suffixes)} or a folder spike with such files is "
            "needed"
        )
    if len(found) == 1 and (len(names) > 1 or found[0].stem not in names):
        return (found[0],), False
    by_name = {path.stem: path for path in inside}
    has_one_kind = len({path.suffix.lower() for path in inside}) == 1
    if not beside and has_one_kind and set(by_name) == set(names):
        return tuple(by_name[name] for name in names), True
    without = sorted(set(names) - set(by_name))
    raise ValueError(
        f"{len(found)} spike files ({listed([path.name for path in found])}); one for the whole "
        "sequence is needed, or one per frame in spike/, named like the frames and all of one "
        f"kind. Frames without one: {listed(without)}"
    )
