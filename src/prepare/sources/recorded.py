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
from itertools import permutations
from pathlib import Path

from src.data.description import DataDescription, read_description
from src.data.errors import BadFileError, DataSetError, listed, other_kind, refuse_other_kind
from src.data.exposures import (
    EXPOSURES_NAME,
    Exposure,
    read_exposures,
    window_ticks,
    write_exposures,
)
from src.data.frames import list_frames
from src.data.scanning import (
    ScanSettings,
    by_reason,
    described_sidecar,
    scan_sequence,
    stated_spikes,
)
from src.data.spikes.arrays import ARRAY_SUFFIXES, DenseFile, EventFile, array_shape
from src.data.spikes.spike_dat import (
    BIT_ORDERS,
    SpikeFile,
    SpikeGeometry,
    SpikeSidecar,
    TickReader,
    locate_sidecar,
    write_dat,
    write_sidecar,
)
from src.prepare.sources import planning
from src.prepare.spikes_match_frames import better_bits, check_sequence, order_text, sample_bits

KIND = "recorded frames and spikes"
DAT, DENSE, EVENTS = "packed ticks (.dat)", "dense array", "list of events"
# What `.dat` files of ours look like, as the sensors write them.
OUR_BIT_ORDER, OUR_FLIP_ROWS = "little", True
SIMULATION_OPTIONS = (
    *("blur_kind", "threshold", "transfer", "downscale", "interpolator", "ticks_per_frame"),
    *("frames_averaged", "stride", "frames_per_second", "seed"),
)


@dataclass(frozen=True)
class SpikeInput:
    """The spikes of a sequence as the user has them."""

    files: tuple[Path, ...]  # one stream, or one file per frame in order of the frames
    is_per_frame: bool
    layout: str  # one of DAT, DENSE, EVENTS
    sidecar: SpikeSidecar  # size and tick rate; bit order and flip of a `.dat`
    axes: str | None  # of a dense array, "THW" in some order
    key: str | None  # name of the array in its file
    columns: str  # of a list of events

    def describe(self) -> str:
        """Return what was found, in words; they are part of `source.json`."""
        files = f"{len(self.files)} files, one per frame" if self.is_per_frame else "one stream"
        detail = f", axes {self.axes}" if self.layout == DENSE else ""
        detail += f", columns {self.columns}" if self.layout == EVENTS else ""
        held = self.files[0].suffix.lower() == ".npz" or self.layout == EVENTS
        return (
            f"{self.layout}{detail}, {files} of {self.sidecar.height}x{self.sidecar.width} at "
            f"{self.sidecar.ticks_per_second:g} ticks/s" + (", held in memory" if held else "")
        )

    def open(self, path: Path) -> TickReader:
        """Return the ticks of one of the files."""
        size = self.sidecar.height, self.sidecar.width
        if self.layout == DAT:
            return SpikeFile(path, self.sidecar.geometry)
        if self.layout == DENSE:
            return DenseFile(path, *size, self.axes.replace("T", "S"), self.key)
        return EventFile(path, *size, self.columns, self.key)


@dataclass(frozen=True)
class RecordedSequence:
    """A sequence, found and checked by names."""

    where: str  # `SPLIT/SEQUENCE`
    pairs: Mapping[int, tuple[Path, Path]]  # number -> (blurry, sharp), in order
    exposures: Mapping[int, Exposure]  # by number, for every frame
    spikes: SpikeInput
    notes: Sequence[str]  # exposures without frames and gaps in the numbers, by name
    is_accepted: bool  # write it although blur, sharp and spikes do not match

    def planned(self) -> planning.PlannedSequence:
        """Return it as a sequence of a plan."""
        spikes, sidecar = self.spikes, self.spikes.sidecar
        blurry, sharp = zip(*self.pairs.values(), strict=True)
        out_bytes = sum(planning.file_size(path) for path in (*blurry, *sharp))
        if spikes.layout == DENSE:
            shapes = [array_shape(path, spikes.key) for path in spikes.files]
            out_bytes += sum(math.prod(shape) // 8 for shape in shapes)
        else:  # a list takes more than its ticks
            out_bytes += sum(planning.file_size(path) for path in spikes.files)
        exposures = self.exposures.values()
        lines = (f"{index} {exposure}" for index, exposure in self.exposures.items())
        identity = {
            "source": "folders",
            "kind": KIND,
            "spikes": spikes.describe(),
            "key": spikes.key,
            "bit_order": sidecar.bit_order,
            "flip_rows": sidecar.flip_rows,
            "inputs_sha256": planning.inputs_sha256((*blurry, *sharp, *spikes.files), *lines),
            "spikes_sha256": planning.parts_sha256(spikes.files),
            "frames_sha256": planning.sample_sha256([*blurry, *sharp]),
        }
        return planning.PlannedSequence(
            *self.where.split("/"),
            num_inputs=len(blurry) + len(spikes.files),
            num_exposures=len(blurry),
            out_bytes=out_bytes,
            seconds=max(e.t1 for e in exposures) - min(e.t0 for e in exposures),
            spike_size=(sidecar.height, sidecar.width),
            identity=identity,
            write=self.write,
        )

    def write(self, folder: Path) -> list[str]:
        """Write blur, sharp, spike and exposures.csv; return what the user should know."""
        planning.refuse_cut_short(
            self.where, [path for pair in self.pairs.values() for path in pair]
        )
        for blurry, sharp in self.pairs.values():
            planning.copy_file(blurry, folder / "blur" / blurry.name)
            planning.copy_file(sharp, folder / "sharp" / sharp.name)
        write_exposures(folder / EXPOSURES_NAME, self.exposures)
        names = [f"{blurry.stem}.dat" for blurry, _ in self.pairs.values()]
        targets = names if self.spikes.is_per_frame else [planning.STREAM_NAME]
        for path, target in zip(self.spikes.files, targets, strict=True):
            self._convert(path, folder / "spike" / target)
        sidecar = replace(self.spikes.sidecar, bit_order=OUR_BIT_ORDER, flip_rows=OUR_FLIP_ROWS)
        write_sidecar(folder / "spike", sidecar)
        found = f"recorded frames; spikes: {self.spikes.describe()}"
        return [found, *self.notes, *self._check(folder)]

    def _convert(self, path: Path, target: Path) -> None:
        """Write one spike file as `.dat` in our bit order."""
        stated = self.spikes.sidecar.geometry
        ours = replace(stated, bit_order=OUR_BIT_ORDER, flip_rows=OUR_FLIP_ROWS)
        refuse_other_kind(path)
        try:
            source = self.spikes.open(path)
            if isinstance(source, EventFile):
                source.num_ticks = self._end_of(source)
            write_dat(source, target, ours, path)
        except (OSError, ValueError) as error:
            raise BadFileError(path, str(error).removeprefix(f"{path}: ")) from error

    def _end_of(self, events: EventFile) -> int:
        """Return the ticks of a list of events: its last spike is not its end.

        The last exposure is, where it is near; a table in another unit must not make it longer.
        """
        unit = events.time_step
        if unit > 1:
            raise ValueError(
                f"all times are multiples of {unit}, so they are no ticks; divide them by {unit}"
            )
        rate = self.spikes.sidecar.ticks_per_second
        windows = [window_ticks(e.t0, e.t1, rate) for e in self.exposures.values()]
        last = max(stop for _, stop in windows)
        if events.first_tick >= last:
            raise ValueError(
                f"its spikes begin at tick {events.first_tick}, the exposures end at {last}; t "
                f"counts from time 0 of {EXPOSURES_NAME}: subtract where it begins"
            )
        longest = max(stop - start for start, stop in windows)
        end = events.num_ticks + min(longest, events.num_ticks)
        return max(events.num_ticks, min(end, last))

    def _check(self, folder: Path) -> list[str]:
        """Check what was written; return notes, or raise what is wrong with the user's files."""
        path, rate = self.spikes.files[0], self.spikes.sidecar.ticks_per_second
        scan = scan_sequence(folder, ScanSettings(folder.parent, 1, use_voxel_cache=False), None)
        name = self.where.partition("/")[2]  # the folder has another one yet
        dropped = by_reason([replace(entry, sequence=name) for entry in scan.dropped])
        dropped = f"{len(scan.dropped)} frames cannot be used: {dropped}"
        if not scan.frames:
            reason = f"{dropped}; are the tick rate and the unit of {EXPOSURES_NAME} right?"
            raise DataSetError(str(path), [reason])
        notes = [dropped] if scan.dropped else []
        better = better_bits(sample_bits(scan.frames))
        if better is not None:
            problems = [self._other_order(better)]
        else:
            findings = check_sequence(self.where, scan.frames, rate, None)
            notes += [*findings.notes, *findings.seen]
            problems = [line.removeprefix(f"{self.where}: ") for line in findings.problems]
        if problems and not self.is_accepted:
            problems[-1] += '; nothing was written: if you know better, add --accept "REASON"'
            raise DataSetError(str(path), problems)
        return [*problems, *notes]

    def _other_order(self, better: SpikeGeometry) -> str:
        """Say how the user's file should be read, when our copy of it reads better otherwise."""
        is_swapped = better.bit_order != OUR_BIT_ORDER
        if self.spikes.layout != DAT:
            axes = "; --axes may be wrong too" if is_swapped else ""
            return f"its spikes are upside down; store the array with its rows reversed{axes}"
        stated = self.spikes.sidecar.geometry
        orders = BIT_ORDERS[:: -1 if is_swapped else 1]
        right = replace(
            stated,
            bit_order=orders[BIT_ORDERS.index(stated.bit_order)],
            flip_rows=stated.flip_rows != (better.flip_rows != OUR_FLIP_ROWS),
        )
        return (
            f"its spikes show the sharp frames best with {order_text(right)}; stated is "
            f"{order_text(stated)}; correct the .yaml beside it"
        )


# ---------------------------------------------------------------- finding sequences


def plan_recorded(
    folders: Mapping[str, Path], options: planning.SourceOptions
) -> planning.SourcePlan:
    """Return what to make of recorded sequences, by `SPLIT/SEQUENCE`."""
    reason = (
        "the sequences are recorded, nothing is simulated; dataset.yaml of the input describes them"
    )
    planning.refuse_options(options, SIMULATION_OPTIONS, reason)
    stated = read_description(options.input)
    items = ((where, folder, options, stated) for where, folder in folders.items())
    found = planning.make_all(options.input, find_recorded, items)
    notes = [f"{s.where}: {KIND}; {s.spikes.describe()}" for s in found]
    sequences = planning.make_all(options.input, RecordedSequence.planned, ((s,) for s in found))
    sidecars = [sequence.spikes.sidecar for sequence in found]
    height, width = planning.common((s.height, s.width) for s in sidecars) or (None, None)
    said = stated or DataDescription(source=f"own recordings of {options.input.name}")
    threshold = planning.common(s.threshold for s in sidecars)
    description = replace(
        said,
        threshold=said.threshold if threshold is None else threshold,
        ticks_per_second=planning.common(s.ticks_per_second for s in sidecars),
        **{"spike_height": height, "spike_width": width, "fingerprint": ()},
        **{"bit_order": OUR_BIT_ORDER, "flip_rows": OUR_FLIP_ROWS},
        **{"content": "unknown", "content_of": ""},
    )
    return planning.SourcePlan(tuple(sequences), description, tuple(notes))


def find_recorded(
    where: str, folder: Path, options: planning.SourceOptions, description: DataDescription | None
) -> RecordedSequence:
    """Return the sequence in `folder`."""
    pairs = planning.find_pairs(folder / "blur", folder / "sharp")
    names = {number: blurry.stem for number, (blurry, _) in pairs.items()}
    try:
        spikes = _find_spikes(folder, list(names.values()), options, description)
        rate = spikes.sidecar.ticks_per_second
        exposures = read_exposures(folder / EXPOSURES_NAME, rate)
        if missing := [name for number, name in names.items() if number not in exposures]:
            found = f"no line in {EXPOSURES_NAME} for {len(missing)} frame(s)"
            raise ValueError(f"{found}: {listed(missing)}")
        used = {number: exposures[number] for number in pairs}
        for number, exposure in used.items():
            try:
                window_ticks(exposure.t0, exposure.t1, rate)
            except ValueError as error:
                raise ValueError(f"{EXPOSURES_NAME}: frame {names[number]}: {error}") from error
    except (BadFileError, DataSetError):
        raise
    except ValueError as error:
        reason = str(error).removeprefix(f"{folder}/")  # the folder is named once, in front
        raise DataSetError(str(folder), [reason]) from error
    notes = name_gaps(list(used), exposures)
    return RecordedSequence(where, pairs, used, spikes, notes, options.accept is not None)


def name_gaps(numbers: Sequence[int], exposures: Mapping[int, Exposure]) -> list[str]:
    """Name exposures without frames, and missing numbers, where training clips end."""
    notes, without = [], sorted(exposures.keys() - set(numbers))
    if without:
        what = f"{len(without)} line(s) of {EXPOSURES_NAME} have no frames and are not used"
        notes.append(f"{what}: {listed(list(map(str, without)))}; are their images missing?")
    missing = sorted(set(range(min(numbers), max(numbers))) - set(numbers) - set(without))
    if missing and len(missing) < len(numbers):  # else numbers are times or the like
        what = f"{len(missing)} frame(s) missing in the middle: {listed(list(map(str, missing)))}"
        notes.append(f"{what}; frames on both sides of a gap are further apart in time")
    return notes


def _find_spikes(
    folder: Path,
    names: Sequence[str],
    options: planning.SourceOptions,
    description: DataDescription | None,
) -> SpikeInput:
    """Return the spikes of a sequence; raise ValueError where something is unclear."""
    files, is_per_frame = _spike_files(folder, names)
    first, layout, axes, stated = files[0], DAT, None, None
    if first.suffix.lower() != ".dat":
        shape = array_shape(first, options.key)
        layout = DENSE if len(shape) == 3 else EVENTS
        if layout == EVENTS and (len(shape) != 2 or not 3 <= shape[1] <= 4):
            raise ValueError(
                f"{first}: shape {shape}; dense spikes have three axes, lists of events have rows "
                "of 3 or 4 numbers"
            )
    if layout == EVENTS and is_per_frame:
        raise ValueError(
            f"{first.parent}: lists of events per frame; it is not clear where their t begins, "
            "join them into one list with t from the start of the sequence"
        )
    if layout != DENSE or locate_sidecar(first) or described_sidecar(description):
        stated = stated_spikes(first, description)
    if layout == DENSE:
        axes = _find_axes(shape, stated, options.axes, first)
        if stated is None:
            said = description or DataDescription("unknown")
            size = shape[axes.index("H")], shape[axes.index("W")]
            stated = SpikeSidecar(*size, said.ticks_per_second, said.threshold)
    if stated.ticks_per_second is None:
        raise ValueError(
            f"{first} does not say ticks_per_second; write 'source: NAME' and 'ticks_per_second: "
            "20000' into dataset.yaml beside train and val, or ticks_per_second, height and width "
            f"into {first.with_name('spike.yaml')}"
        )
    key = None if layout == DAT else options.key
    return SpikeInput(files, is_per_frame, layout, stated, axes, key, options.columns)


def _spike_files(folder: Path, names: Sequence[str]) -> tuple[tuple[Path, ...], bool]:
    """Return the file of the stream or those of the frames, and whether it is the latter."""
    suffixes = (".dat", *ARRAY_SUFFIXES)
    beside = [path for path in sorted(folder.glob("spike.*")) if path.suffix.lower() in suffixes]
    inside = [p for suffix in suffixes for p in list_frames(folder / "spike", [suffix]).values()]
    found = beside + inside
    if not found:
        needed = ", spike".join(suffixes)
        reason = f"no spikes; spike{needed} or a folder spike with such files is needed"
        others = [p for p in (*folder.glob("spike.*"), *folder.glob("spike/*")) if p.is_file()]
        kinds = {path: other_kind(path) for path in others}
        named = [f"{path.name} is {kind}" for path, kind in kinds.items() if kind is not None]
        raise ValueError("; ".join([reason, *named[:1]]))
    if len(found) == 1 and (len(names) > 1 or found[0].stem not in names):
        return (found[0],), False
    by_name = {path.stem: path for path in inside}
    has_one_kind = len({path.suffix.lower() for path in inside}) == 1
    if not beside and has_one_kind and set(by_name) == set(names):
        return tuple(by_name[name] for name in names), True
    raise ValueError(
        f"{len(found)} spike files ({listed([path.name for path in found])}); one for the whole "
        "sequence is needed, or one per frame in spike/, named like the frames and all of one "
        f"kind. Frames without one: {listed(sorted(set(names) - set(by_name))) or 'none'}"
    )


def _find_axes(
    shape: tuple[int, ...], stated: SpikeSidecar | None, given: str | None, path: Path
) -> str:
    """Return the only order of the axes of dense spikes that fits, such as "THW"."""
    orders = ["".join(order) for order in permutations("THW")]
    given = given and given.upper().replace("S", "T")
    if given not in (None, *orders):
        raise ValueError(f"--axes {given}: name T, H and W once each")
    size = None if stated is None else (stated.height, stated.width)
    fitting = [o for o in orders if size in (None, (shape[o.index("H")], shape[o.index("W")]))]
    found = [order for order in fitting if given in (None, order)]
    if len(found) == 1:
        return found[0]
    sensor = f"the sensor {size[0]}x{size[1]} (height x width)" if size else "its size not stated"
    advice = f"give --axes {' or '.join(fitting)}" if fitting else "correct the size"
    raise ValueError(f"{path}: the array is {'x'.join(map(str, shape))}, {sensor}; {advice}")
