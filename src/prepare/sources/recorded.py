"""The user's own sequence of blurry frames, sharp frames, spikes and exposures, in our layout.

    SEQ/blur/NAME.png  SEQ/sharp/NAME.png  SEQ/exposures.csv
    SEQ/spike.dat (or .npy, .npz, .h5), or SEQ/spike/ with one such file, or one per frame

What a file does not say about itself (size, tick rate, order of axes) must be stated beside it or
on the command line; nothing is guessed. Frames are copied, spikes become `.dat`, and what was
written is checked as every data set is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path

from src.data.description import DataDescription
from src.data.errors import BadFileError, DataSetError
from src.data.exposures import (
    EXPOSURES_NAME,
    Exposure,
    frame_index,
    read_exposures,
    window_ticks,
    write_exposures,
)
from src.data.frames import list_frames
from src.data.scanning import ScanSettings, by_reason, scan_sequence
from src.data.spikes.arrays import (
    ARRAY_SUFFIXES,
    AXES,
    DenseFile,
    EventFile,
    array_shape,
    find_axes,
)
from src.data.spikes.find import contradiction, described_sidecar, entries_of
from src.data.spikes.spike_dat import (
    SpikeFile,
    SpikeGeometry,
    SpikeParts,
    SpikeSidecar,
    TickReader,
    check_rate,
    read_sidecar,
    write_dat,
    write_sidecar,
)
from src.prepare.content import better_bits, check_sequence, order_text, sample_bits
from src.prepare.findings import Findings, listed
from src.prepare.sources.plan import (
    STREAM_NAME,
    SourceOptions,
    copy_file,
    file_size,
    inputs_sha256,
    names_or_none,
    pieces_sha256,
    refuse_cut_short,
    sample_sha256,
)
from src.prepare.sources.video import IMAGE_EXTS

DAT, DENSE, EVENTS = "packed ticks (.dat)", "dense array", "list of events"
# What `.dat` files of ours look like, as the sensors write them.
OUR_BIT_ORDER, OUR_FLIP_ROWS = "little", True


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
class RecordedSequence:
    """A sequence, found and checked by names; see `PlannedSequence`.

    Attributes:
        split: our split.
        name: of the sequence.
        blurry, sharp: the frames in order of their numbers, the same names.
        exposures: frame number -> exposure, for every frame.
        spikes: see `SpikeInput`.
        notes: exposures without frames and gaps in the numbers, by name.
        is_accepted: write it although blur, sharp and spikes do not belong together.
    """

    split: str
    name: str
    blurry: tuple[Path, ...]
    sharp: tuple[Path, ...]
    exposures: Mapping[int, Exposure]
    spikes: SpikeInput
    notes: tuple[str, ...] = ()
    is_accepted: bool = False

    @property
    def where(self) -> str:
        """What messages call the sequence."""
        return f"{self.split}/{self.name}"

    @property
    def num_inputs(self) -> int:
        """Frames and spike files."""
        return len(self.blurry) + len(self.spikes.files)

    @property
    def num_exposures(self) -> int:
        """Blurry frames."""
        return len(self.blurry)

    @cached_property
    def out_bytes(self) -> int:
        """Frames as they are; spikes as they are packed, of a list no more than the list takes."""
        frames = sum(file_size(path) for path in (*self.blurry, *self.sharp))
        if self.spikes.layout != DENSE:
            return frames + sum(file_size(path) for path in self.spikes.files)
        shapes = [array_shape(path, self.spikes.key) for path in self.spikes.files]
        return frames + sum(math.prod(shape) // 8 for shape in shapes)

    @property
    def seconds(self) -> float:
        """From the first exposure to the end of the last."""
        exposures = self.exposures.values()
        return max(e.t1 for e in exposures) - min(e.t0 for e in exposures)

    @cached_property
    def identity(self) -> Mapping[str, object]:
        """Everything the output depends on; where the input lies is not part of it."""
        spikes, paths = self.spikes, (*self.blurry, *self.sharp, *self.spikes.files)
        lines = (f"{index} {exposure}" for index, exposure in self.exposures.items())
        return {
            "source": "folders",
            "kind": "recorded frames and spikes",
            "spikes": spikes.describe(),
            "key": spikes.key,
            "bit_order": spikes.sidecar.bit_order,
            "flip_rows": spikes.sidecar.flip_rows,
            "inputs_sha256": inputs_sha256(paths, *lines),
            "spikes_sha256": pieces_sha256(spikes.files),
            "frames_sha256": sample_sha256([*self.blurry, *self.sharp]),
        }

    def write(self, folder: Path) -> list[str]:
        """Write blur, sharp, spike and exposures.csv; return what the user should know.

        Raises:
            BadFileError: a file that cannot be read, or spikes without a spike.
            DataSetError: images whose end is missing, no spike file as long as its exposure; where
                that is not accepted, spikes that do not show the frames, or do in another order of
                bits or rows than is stated.
        """
        refuse_cut_short(self.where, (*self.blurry, *self.sharp))
        for blurry, sharp in zip(self.blurry, self.sharp, strict=True):
            copy_file(blurry, folder / "blur" / blurry.name)
            copy_file(sharp, folder / "sharp" / sharp.name)
        write_exposures(folder / EXPOSURES_NAME, self.exposures)
        targets = [self._convert(i, folder / "spike") for i in range(len(self.spikes.files))]
        sidecar = replace(self.spikes.sidecar, bit_order=OUR_BIT_ORDER, flip_rows=OUR_FLIP_ROWS)
        write_sidecar(folder / "spike", sidecar)
        notes = [f"recorded frames; spikes: {self.spikes.describe()}", *self.notes]
        if not self.spikes.is_per_frame:
            notes += self._leaving(SpikeParts(targets, sidecar.geometry).num_ticks)
        findings = self._check(folder)
        return [*notes, *findings.notes, *findings.seen]

    def _check(self, folder: Path) -> Findings:
        """Check what was written; raise what is wrong, in terms of the user's files."""
        settings = ScanSettings(folder.parent, num_bins=1, use_voxel_cache=False)
        scan = scan_sequence(folder, settings, None)
        if not scan.frames:
            raise DataSetError(str(self.spikes.files[0]), [by_reason(scan.dropped)])
        better = better_bits(sample_bits(scan.frames))
        if better is not None:  # said in terms of the user's file, not of our copy
            findings = Findings(problems=[self._other_order(better)])
        else:
            rate = self.spikes.sidecar.ticks_per_second
            findings = check_sequence(self.where, scan.frames, rate, None)
        problems = [line.removeprefix(f"{self.where}: ") for line in findings.problems]
        if problems and not self.is_accepted:
            problems[-1] += '; nothing was written: if you know better, add --accept "REASON"'
            raise DataSetError(str(self.spikes.files[0]), problems)
        left_out = []
        if scan.dropped and self.spikes.is_per_frame:  # `_leaving` names those of a stream
            left_out.append(f"cannot be used: {by_reason(scan.dropped)}")
        return Findings(findings.seen, [*left_out, *findings.notes, *problems])

    def _other_order(self, better: SpikeGeometry) -> str:
        """Say how the user's file should be read, when our copy of it reads better otherwise."""
        stated = self.spikes.sidecar.geometry
        is_swapped = better.bit_order != OUR_BIT_ORDER
        if self.spikes.layout != DAT:
            axes = "; --axes may be wrong too" if is_swapped else ""
            return f"its spikes are upside down; store the array with its rows reversed{axes}"
        orders = {"little": "big", "big": "little"}
        right = replace(
            stated,
            bit_order=orders[stated.bit_order] if is_swapped else stated.bit_order,
            flip_rows=stated.flip_rows != (better.flip_rows != OUR_FLIP_ROWS),
        )
        return (
            f"its spikes show the sharp frames best with {order_text(right)}; stated is "
            f"{order_text(stated)}; correct the .yaml beside it"
        )

    def _convert(self, number: int, folder: Path) -> Path:
        """Write one spike file as `.dat` in our bit order; return its path."""
        path, stated = self.spikes.files[number], self.spikes.sidecar.geometry
        is_per_frame = self.spikes.is_per_frame
        target = folder / (f"{self.blurry[number].stem}.dat" if is_per_frame else STREAM_NAME)
        ours = replace(stated, bit_order=OUR_BIT_ORDER, flip_rows=OUR_FLIP_ROWS)
        if self.spikes.layout == DAT and stated == ours:
            SpikeParts([path], stated).join_into(target)
            return target
        try:
            source = self.spikes.open(number)
            if isinstance(source, EventFile):
                source.num_ticks = self._end_of(source)
            rate = write_dat(source, target, ours)
        except (OSError, ValueError) as error:
            raise BadFileError(path, str(error).removeprefix(f"{path}: ")) from error
        check_rate(rate, path, source.num_ticks)
        return target

    def _windows(self) -> dict[str, tuple[int, int]]:
        """Return the ticks of the exposures by the names of the frames."""
        rate = self.spikes.sidecar.ticks_per_second
        exposures = {path.stem: self.exposures[frame_index(path.stem)] for path in self.blurry}
        return {name: window_ticks(e.t0, e.t1, rate) for name, e in exposures.items()}

    def _end_of(self, events: EventFile) -> int:
        """Return the ticks of a list of events: its last spike is not its end.

        The last exposure is, where it is near; a table in another unit must not make it longer.

        Raises:
            ValueError: times of another unit, or from another beginning than the exposures.
        """
        unit = events.time_step
        if unit > 1:
            raise ValueError(
                f"all times are multiples of {unit}, so they are no ticks; divide them by {unit}"
            )
        windows = self._windows().values()
        last = max(stop for _, stop in windows)
        if events.first_tick >= last:
            raise ValueError(
                f"its spikes begin at tick {events.first_tick}, the exposures end at {last}; t "
                f"counts from time 0 of {EXPOSURES_NAME}: subtract where it begins"
            )
        longest = max(stop - start for start, stop in windows)
        end = events.num_ticks + min(longest, events.num_ticks)
        return max(events.num_ticks, min(end, last))

    def _leaving(self, num_ticks: int) -> list[str]:
        """Name the frames whose exposure leaves the stream.

        Raises:
            BadFileError: all of them do.
        """
        windows = self._windows()
        leaving = [n for n, (start, stop) in windows.items() if start < 0 or stop > num_ticks]
        if len(leaving) == len(windows):
            rate = self.spikes.sidecar.ticks_per_second
            raise BadFileError(
                self.spikes.files[0],
                f"has {num_ticks} ticks, {num_ticks / rate:g} s at {rate:g} ticks/s; no exposure "
                f"of {EXPOSURES_NAME} lies in that. Is the tick rate right, and the unit of times?",
            )
        if not leaving:
            return []
        return [
            f"{len(leaving)} exposures leave the spikes, which have {num_ticks} ticks, and cannot "
            f"be used: {listed(leaving)}"
        ]


# ---------------------------------------------------------------- finding a sequence


def find_recorded(
    folder: Path, split: str, options: SourceOptions, description: DataDescription | None
) -> RecordedSequence:
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
    except DataSetError:
        raise
    except ValueError as error:
        reason = str(error).removeprefix(f"{folder}/")  # the folder is named once, in front
        raise DataSetError(str(folder), [reason]) from error
    exposures = read_exposures(folder / EXPOSURES_NAME, spikes.sidecar.ticks_per_second)
    missing = [name for name in names if frame_index(name) not in exposures]
    if missing:
        reason = f"no line in {EXPOSURES_NAME} for {len(missing)} frame(s): {listed(missing)}"
        raise DataSetError(str(folder), [reason])
    used = {frame_index(name): exposures[frame_index(name)] for name in names}
    for name, exposure in zip(names, used.values(), strict=True):
        try:
            window_ticks(exposure.t0, exposure.t1, spikes.sidecar.ticks_per_second)
        except ValueError as error:
            raise DataSetError(str(folder), [f"{EXPOSURES_NAME}: frame {name}: {error}"]) from error
    images = [tuple(frames[kind][name] for name in names) for kind in ("blur", "sharp")]
    notes = tuple(name_gaps(list(used), exposures))
    is_accepted = options.accept is not None
    return RecordedSequence(split, folder.name, *images, used, spikes, notes, is_accepted)


def name_gaps(numbers: Sequence[int], exposures: Mapping[int, Exposure]) -> list[str]:
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
            f"{listed([str(number) for number in missing])}; frames on both sides of a gap are "
            "further apart in time"
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
    first = files[0]
    stated = _stated_sidecar(first, description)
    if first.suffix.lower() == ".dat":
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
        f"kind. Frames without one: {names_or_none(without)}"
    )


# ---------------------------------------------------------------- what files do not say


def _stated_sidecar(path: Path, description: DataDescription | None) -> SpikeSidecar | None:
    """Return what a file beside the spikes or dataset.yaml says of them; None: nothing.

    Raises:
        ValueError: the two contradict each other, or one cannot be read.
    """
    beside, overall = read_sidecar(path, entries_of(description)), described_sidecar(description)
    if beside is None or overall is None:
        return beside or overall
    problem = contradiction(path, beside, overall)
    if problem is not None:
        raise ValueError(f"{path}: {problem}")
    return beside


def _with_rate(sidecar: SpikeSidecar, path: Path) -> SpikeSidecar:
    """Return a sidecar that states the tick rate.

    Raises:
        ValueError: it does not.
    """
    if sidecar.ticks_per_second is None:
        raise ValueError(
            f"{path} does not say ticks_per_second; write 'source: NAME' and 'ticks_per_second: "
            "20000' into dataset.yaml beside train and val, or ticks_per_second, height and width "
            f"into {path.with_name('spike.yaml')}"
        )
    return sidecar


def _size_needed(path: Path) -> str:
    """Say what is not stated of packed spikes or a list, and where to write it."""
    sidecar = path.with_name("spike.yaml")  # holds for every file of its folder
    return (
        f"{path} does not say height, width and ticks_per_second; write lines like 'height: 250', "
        f"'width: 400' and 'ticks_per_second: 20000' into {sidecar}, or 'source: NAME', "
        "spike_height, spike_width and ticks_per_second into dataset.yaml beside train and val"
    )


def _axes_and_size(
    shape: tuple[int, ...], stated: SpikeSidecar | None, options: SourceOptions, path: Path
) -> tuple[str, tuple[int, int]]:
    """Return the order of the axes of dense spikes, and height and width.

    Raises:
        ValueError: it is not stated, or what is stated does not fit the shape.
    """
    axes = None if options.axes is None else options.axes.upper().replace("T", "S")
    if stated is not None:
        size = stated.height, stated.width
        fitting = [
            order
            for order in map("".join, permutations("THW"))
            if (shape[order.index("H")], shape[order.index("W")]) == size
        ]
        is_order = axes is not None and sorted(axes) == sorted(AXES)
        if is_order and axes.replace("S", "T") not in fitting:
            found = "x".join(map(str, shape))
            does = f"--axes {' or '.join(fitting)} does" if fitting else "no order does"
            raise ValueError(
                f"{path}: --axes {options.axes} does not fit: the array is {found}, the sensor "
                f"{size[0]}x{size[1]} (height x width); {does}"
                + "; correct the size"
                * (not fitting)
            )
        if axes is None and len(fitting) > 1:
            raise ValueError(
                f"{path}: shape {shape} with a sensor of {stated.height}x{stated.width}; give "
                f"--axes {' or '.join(fitting)}"
            )
        axes = find_axes(shape, *size, axes, path)
    if axes is None:
        raise ValueError(
            f"{path}: shape {shape}; state the order of its axes, such as --axes THW or --axes "
            f"HWT, or its size: {_size_needed(path)}"
        )
    if sorted(axes) != sorted(AXES):
        raise ValueError(f"--axes {options.axes}: name T, H and W once each")
    return axes, (shape[axes.index("H")], shape[axes.index("W")])
