"""The user's own sequence of blurry frames, sharp frames, spikes and exposures: found and checked.

    SEQ/blur/NAME.png  SEQ/sharp/NAME.png  SEQ/exposures.csv
    SEQ/spike.dat (or .npy, .npz, .h5), or SEQ/spike/ with one such file, or one per frame

What a file does not say about itself (size, tick rate, order of axes) must be stated beside it or
on the command line; nothing is guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.data.alignment import (
    EXPOSURES_NAME,
    Exposure,
    frame_index,
    read_exposures,
    window_ticks,
)
from src.data.bad_samples import DataSetError
from src.data.description import DataDescription
from src.data.frames import list_frames
from src.data.sources.high_speed import IMAGE_EXTS
from src.data.sources.source import SourceOptions
from src.data.spikes.array_files import ARRAY_SUFFIXES, array_shape
from src.data.spikes.dense_files import DenseFile, EventFile, TickReader
from src.data.spikes.events import AXES, find_axes
from src.data.spikes.spike_dat import SpikeFile, SpikeSidecar, read_sidecar

DAT, DENSE, EVENTS = "packed ticks (.dat)", "dense array", "list of events"
MAX_NAMES = 20


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
        detail = f", axes {self.axes}" if self.layout == DENSE else ""
        detail += f", columns {self.columns}" if self.layout == EVENTS else ""
        held = self.files[0].suffix == ".npz" or self.layout == EVENTS
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
    """

    split: str
    name: str
    blurry: tuple[Path, ...]
    sharp: tuple[Path, ...]
    exposures: Mapping[int, Exposure]
    spikes: SpikeInput


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
        spikes = _find_spikes(folder, names, options, description)
    except ValueError as error:
        if isinstance(error, DataSetError):
            raise
        reason = str(error).replace(f"{folder}/", "")  # the folder is named once, in front
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
    )


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
    stated = _stated(files[0], description)
    first = files[0]
    if first.suffix == ".dat":
        if stated is None:
            raise ValueError(_size_needed(first))
        return SpikeInput(files, is_per_frame, DAT, _with_rate(stated, first))
    shape = array_shape(first, options.key)
    if len(shape) == 3:
        axes, size = _axes_and_size(shape, stated, options, first)
        if stated is None:
            said = DataDescription("unknown") if description is None else description
            stated = SpikeSidecar(*size, said.ticks_per_second, said.threshold)
        sidecar = _with_rate(stated, first)
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
        raise ValueError(_size_needed(first))
    sidecar = _with_rate(stated, first)
    return SpikeInput(files, False, EVENTS, sidecar, None, options.key, options.columns)


def _spike_files(folder: Path, names: Sequence[str]) -> tuple[tuple[Path, ...], bool]:
    """Return the file of the stream or those of the frames, and whether it is the latter."""
    suffixes = (".dat", *ARRAY_SUFFIXES)
    beside = [path for path in sorted(folder.glob("spike.*")) if path.suffix in suffixes]
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
    has_one_kind = len({path.suffix for path in inside}) == 1
    if not beside and has_one_kind and set(by_name) == set(names):
        return tuple(by_name[name] for name in names), True
    without = sorted(set(names) - set(by_name))
    raise ValueError(
        f"{len(found)} spike files ({listed([path.name for path in found])}); one for the whole "
        "sequence is needed, or one per frame in spike/, named like the frames and all of one "
        f"kind. Frames without one: {listed(without)}"
    )


def _stated(path: Path, description: DataDescription | None) -> SpikeSidecar | None:
    """Return what a file beside the spikes or dataset.yaml says of them."""
    beside = read_sidecar(path)
    if description is None:
        return beside
    overall = None
    if description.spike_height is not None and description.spike_width is not None:
        overall = SpikeSidecar(
            description.spike_height,
            description.spike_width,
            description.ticks_per_second,
            description.threshold,
            description.bit_order,
            description.flip_rows,
        )
    if beside is None or overall is None:
        known = beside or overall
        if known is None or known.ticks_per_second is not None:
            return known
        return replace(known, ticks_per_second=description.ticks_per_second)
    filled = replace(beside, ticks_per_second=beside.ticks_per_second or overall.ticks_per_second)
    if (filled.geometry, filled.ticks_per_second) != (overall.geometry, overall.ticks_per_second):
        raise ValueError(f"{path}: the file beside it says {beside}, dataset.yaml says {overall}")
    return filled


def _with_rate(sidecar: SpikeSidecar, path: Path) -> SpikeSidecar:
    if sidecar.ticks_per_second is None:
        raise ValueError(
            f"{path} does not say ticks_per_second; write 'source: NAME' and 'ticks_per_second: "
            "20000' into dataset.yaml beside train and val, or ticks_per_second, height and width "
            f"into {path.with_suffix('.yaml')}"
        )
    return sidecar


def _size_needed(path: Path) -> str:
    return (
        f"{path} does not say height, width and ticks_per_second; write lines like 'height: 250', "
        f"'width: 400' and 'ticks_per_second: 20000' into {path.with_suffix('.yaml')}, or "
        "spike_height, spike_width and ticks_per_second into dataset.yaml beside train and val"
    )


def _axes_and_size(
    shape: tuple[int, ...], stated: SpikeSidecar | None, options: SourceOptions, path: Path
) -> tuple[str, tuple[int, int]]:
    """Return the order of the axes of dense spikes, and height and width."""
    axes = None if options.axes is None else options.axes.upper().replace("T", "S")
    if stated is not None:
        axes = find_axes(shape, stated.height, stated.width, axes, path)
    if axes is None:
        raise ValueError(
            f"{path}: shape {shape}; state the order of its axes, such as --axes THW or --axes "
            f"HWT, or its size: {_size_needed(path)}"
        )
    if sorted(axes) != sorted(AXES):
        raise ValueError(f"--axes {options.axes}: name T, H and W once each")
    return axes, (shape[axes.index("H")], shape[axes.index("W")])


def listed(names: Sequence[str]) -> str:
    """Return names in one line, of many the first ones."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return (", ".join(names[:MAX_NAMES]) or "none") + more
