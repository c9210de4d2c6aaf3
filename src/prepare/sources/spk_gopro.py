"""GOPRO_Large with its published spikes (Spk-GoPro): find, check and write its sequences.

    GOPRO_Large/{train,test}/SEQ/{blur,blur_gamma,sharp}/NNNNNN.png   720x1280
    GOPRO_Large_spike_seq/{train,test}/SEQ/spike/NNNNNN.dat           one file per frame, 360x640
    Spike_GOPRO_Large_all/{train,test}/SEQ/spike.dat                  where there: whole sequences
    GOPRO_Large_all/{train,test}/SEQ/NNNNNN.png                       where there: to compare with

SEQ is GOPRxxxx_nn_zz: nn source frames of 240 per second in a blurry frame, 8 ticks per source
frame. The published files are cut at 8 nn k although the exposures begin zz source frames earlier,
so the stream of the sequence (or its parts, which abut) is taken whole and the exposures are stated
anew. The offset is measured (see `spk_gopro_offset`), not taken from the name.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from src.data.description import DataDescription
from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.exposures import EXPOSURES_NAME, frame_index
from src.data.frames import list_frames, list_sequences
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.simulation.blur import (
    SOURCE_FRAMES_PER_SECOND,
    TICKS_PER_SOURCE_FRAME,
    BlurWindow,
    blur_window,
)
from src.data.spikes.spike_dat import (
    SpikeGeometry,
    SpikeParts,
    SpikeSidecar,
    locate_sidecar,
    write_sidecar,
)
from src.paths import atomic_write
from src.prepare.findings import listed
from src.prepare.prepare import default_workers
from src.prepare.sources.gopro import ALL_FRAMES, PAIRS, ReleasedPairs, find_offset, parse_name
from src.prepare.sources.plan import (
    OUR_SPLITS,
    STREAM_NAME,
    SourceOptions,
    SourcePlan,
    copy_file,
    file_size,
    find_downloaded,
    inputs_sha256,
    names_or_none,
    pieces_sha256,
    refuse_cut_short,
    refuse_options,
)
from src.prepare.sources.spk_gopro_offset import MeasuredOffset, measure_offset, other_order
from src.prepare.sources.video import image_size, open_folder

PER_FRAME, WHOLE = "GOPRO_Large_spike_seq", "Spike_GOPRO_Large_all"
TICKS_PER_SECOND = float(SOURCE_FRAMES_PER_SECOND * TICKS_PER_SOURCE_FRAME)
THRESHOLD = 2.0  # of the published spikes
EXPOSURES_IN_TICKS = "frame_idx,t0[ticks],t1[ticks],t_sharp[ticks]"
BYTES_PER_SEQUENCE = 24 << 20  # read to measure one offset: five frames of 720p and their spikes
MAX_NAMED = 20
# What says how to simulate, or how arrays lie.
NOT_FOR_THIS = (
    *("threshold", "transfer", "downscale", "interpolator", "ticks_per_frame", "frames_averaged"),
    *("stride", "frames_per_second", "seed", "axes", "key", "columns"),
)


@dataclass(frozen=True)
class SpkGoproSequence:
    """The files of one sequence, found and counted but not read; see `PlannedSequence`.

    Attributes:
        split: our split.
        name: of the sequence, GOPRxxxx_nn_zz.
        n: source frames averaged.
        zz: the offset that the name states.
        blur_kind: "blur" or "blur_gamma".
        blurry, sharp: the frames in order; the same names.
        spikes: the stream of the sequence, or its consecutive parts in order.
        is_whole: whether `spikes` is the published stream of the sequence.
        is_joined_by_order: whether parts and frames have different names.
        geometry: how the bits lie.
        source_frames: folder of all frames of the sequence, None where it was not downloaded.
        offset: source frames by which its exposures begin early, as measured.
    """

    split: str
    name: str
    n: int
    zz: int
    blur_kind: str
    blurry: tuple[Path, ...]
    sharp: tuple[Path, ...]
    spikes: tuple[Path, ...]
    is_whole: bool
    is_joined_by_order: bool
    geometry: SpikeGeometry
    source_frames: Path | None = None
    offset: int = 0

    @property
    def where(self) -> str:
        """What messages call the sequence."""
        return f"{self.split}/{self.name}"

    @property
    def num_inputs(self) -> int:
        """Files to copy."""
        return len(self.blurry) + len(self.spikes)

    @cached_property
    def num_exposures(self) -> int:
        """Blurry frames that will be written."""
        return len(self.windows()[0])

    @cached_property
    def out_bytes(self) -> int:
        """Bytes of all files that are copied."""
        return sum(map(file_size, self._inputs))

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.blurry) * self.n / SOURCE_FRAMES_PER_SECOND

    @cached_property
    def identity(self) -> Mapping[str, object]:
        """Everything the output depends on."""
        return {
            "source": "spk_gopro",
            "clip": self.where,
            "frames_averaged": self.n,
            "offset": self.offset,
            "blur_kind": self.blur_kind,
            "spikes": "stream of the clip" if self.is_whole else "one file per frame",
            "spike_size": [self.geometry.height, self.geometry.width],
            "inputs_sha256": inputs_sha256(self._inputs),
            "spikes_sha256": pieces_sha256(self.spikes),
        }

    @property
    def _inputs(self) -> tuple[Path, ...]:
        return (*self.blurry, *self.sharp, *self.spikes)

    def windows(self) -> tuple[list[tuple[int, BlurWindow]], list[str]]:
        """Return (k, window) of the frames whose exposure lies in the stream, and the others.

        Raises:
            BadFileError: more than the last frame ends after the stream, or no frame is left.
        """
        num_ticks = SpikeParts(self.spikes, self.geometry).num_ticks
        windows, dropped, late = [], [], []
        for k, path in enumerate(self.blurry):
            before = self.offset - k * self.n
            if before > 0:
                dropped.append(
                    f"{self.where}: {path.stem} is left out: its exposure begins {before} source "
                    "frame(s) before the recording"
                )
                continue
            window = blur_window(k, self.n, self.offset)
            if window.stop_tick > num_ticks:
                late.append(path.stem)
            else:
                windows.append((k, window))
        if not windows and not late:
            raise BadFileError(
                self.blurry[0].parent,
                f"the exposures of all its {len(self.blurry)} frames begin before the recording "
                f"({self.offset} source frames early); leave the sequence out",
            )
        if len(late) > 1 or not windows:
            ticks = TICKS_PER_SOURCE_FRAME * self.n
            raise BadFileError(
                self.spikes[0],
                f"the spikes of {self.where} have {num_ticks} ticks, its {len(self.blurry)} frames "
                f"of {ticks} need {ticks * len(self.blurry)}; files are cut short, copy them again",
            )
        dropped += [
            f"{self.where}: {stem} is left out: its exposure ends after tick {num_ticks}, the end "
            "of the spikes"
            for stem in late
        ]
        return windows, dropped

    def write(self, folder: Path) -> list[str]:
        """Write blur, sharp, spike and exposures.csv; return the frames left out, as sentences.

        Raises:
            BadFileError: a file that cannot be read, or spikes without a spike.
            DataSetError: images whose end is missing.
        """
        windows, notes = self.windows()
        images = [frames[k] for frames in (self.blurry, self.sharp) for k, _ in windows]
        refuse_cut_short(self.where, images)
        SpikeParts(self.spikes, self.geometry).join_into(folder / "spike" / STREAM_NAME)
        size = self.geometry.height, self.geometry.width
        write_sidecar(folder / "spike", SpikeSidecar(*size, TICKS_PER_SECOND, THRESHOLD))
        rows = [EXPOSURES_IN_TICKS]
        for k, window in windows:
            copy_file(self.blurry[k], folder / "blur" / self.blurry[k].name)
            copy_file(self.sharp[k], folder / "sharp" / self.sharp[k].name)
            times = window.start_tick, window.stop_tick, window.start_tick + window.sharp_tick
            rows.append(",".join(map(str, (frame_index(self.blurry[k].stem), *times))))
        with atomic_write(folder / EXPOSURES_NAME) as path:
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return notes


@dataclass(frozen=True)
class Downloads:
    """The downloaded folders; what is not there is None.

    Attributes:
        pairs: blurry and sharp frames.
        whole: spikes of whole sequences.
        per_frame: spikes cut into frames.
        all_frames: all frames at 240 per second, only looked at.
    """

    pairs: Path
    whole: Path | None
    per_frame: Path | None
    all_frames: Path | None

    def whole_stream(self, place: str) -> Path | None:
        """Return the stream of sequence `train/SEQ`."""
        if self.whole is None:
            return None
        folder = self.whole / place
        paths = (folder / STREAM_NAME, folder / "spike" / STREAM_NAME)
        return next((path for path in paths if path.exists()), None)

    def source_frames(self, place: str) -> Path | None:
        """Return the folder of all frames of sequence `train/SEQ`."""
        path = None if self.all_frames is None else self.all_frames / place
        return path if path is not None and path.is_dir() else None


def plan(options: SourceOptions) -> SourcePlan:
    """Find all sequences, measure which ticks belong to which frame, return what is to be written.

    Raises:
        DataSetError: everything that is missing or does not agree.
    """
    refuse_options(options, NOT_FOR_THIS, "frames and spikes are published, nothing is simulated")
    downloads = _find_downloads(options.input)
    found = _find_sequences(downloads, options.blur_kind)
    workers = worthwhile_workers(default_workers(), BYTES_PER_SEQUENCE * len(found))
    results = dict(run_parallel(check_offset, found, workers, "matching spikes with sharp frames"))
    checked = [results[number] for number in range(len(found))]
    problems = [problem for offset in checked for problem in offset.problems]
    if problems:
        raise DataSetError(str(options.input), problems)
    sequences = tuple(
        replace(sequence, offset=offset.offset)
        for sequence, offset in zip(found, checked, strict=True)
    )
    notes = [*_without_frames(downloads), *_joined(sequences)]
    notes += [note for offset in checked for note in offset.notes]
    return SourcePlan(sequences, _describe(sequences, options), tuple(notes))


# ---------------------------------------------------------------- finding


def _find_downloads(given: Path) -> Downloads:
    """Return the downloaded folders.

    Raises:
        DataSetError: no frames, or no spikes.
    """
    pairs, whole, per_frame, all_frames = (
        find_downloaded(given, name) for name in (PAIRS, WHOLE, PER_FRAME, ALL_FRAMES)
    )
    problems = []
    if pairs is None:
        problems.append(f"no folder {PAIRS}; it holds the blurry and sharp frames")
    if whole is None and per_frame is None:
        problems.append(f"no folder {PER_FRAME} or {WHOLE}; one of them must hold the spikes")
    if problems:
        raise DataSetError(str(given), problems)
    return Downloads(pairs, whole, per_frame, all_frames)


def _find_sequences(downloads: Downloads, blur_kind: str) -> list[SpkGoproSequence]:
    """Return all sequences of all splits; raise all problems at once."""
    sequences: list[SpkGoproSequence] = []
    problems: dict[str, str] = {}  # what one config.yaml says wrong is wrong for all sequences
    for theirs, ours in OUR_SPLITS.items():
        split = downloads.pairs / theirs
        for folder in list_sequences(split) if split.is_dir() else []:
            try:
                sequences.append(_find_sequence(folder, ours, downloads, blur_kind))
            except BadFileError as error:
                problems.setdefault(str(error.path), str(error))
            except DataSetError as error:
                problems |= {problem: problem for problem in problems_of(error)}
    if not sequences and not problems:
        reason = f"no sequences; {', '.join(OUR_SPLITS)} should hold folders GOPRxxxx_nn_zz"
        raise DataSetError(str(downloads.pairs), [reason])
    if problems:
        raise DataSetError(str(downloads.pairs), problems.values())
    return sequences


def _find_sequence(
    folder: Path, split: str, downloads: Downloads, blur_kind: str
) -> SpkGoproSequence:
    """Return one sequence.

    Raises:
        BadFileError, DataSetError: names that do not fit together, missing frames or spikes.
    """
    try:
        name = parse_name(folder.name)
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    blurry = list_frames(folder / blur_kind, [".png"])
    sharp = list_frames(folder / "sharp", [".png"])
    _check_names(folder, blur_kind, blurry, sharp)
    place = f"{folder.parent.name}/{folder.name}"
    stream = downloads.whole_stream(place)
    if stream is not None:
        root, parts = downloads.whole, {STREAM_NAME: stream}
    else:
        root, parts = downloads.per_frame, _parts(folder, place, downloads.per_frame, blurry)
    files = tuple(parts.values())
    geometry = _geometry_of(root, files, next(iter(blurry.values())))
    _check_sizes(files, geometry, TICKS_PER_SOURCE_FRAME * name.averaged, stream is not None)
    return SpkGoproSequence(
        split=split,
        name=folder.name,
        n=name.averaged,
        zz=name.offset,
        blur_kind=blur_kind,
        blurry=tuple(blurry.values()),
        sharp=tuple(sharp.values()),
        spikes=files,
        is_whole=stream is not None,
        is_joined_by_order=stream is None and set(parts) != set(blurry),
        geometry=geometry,
        source_frames=downloads.source_frames(place),
    )


def _check_names(
    folder: Path, blur_kind: str, blurry: Mapping[str, Path], sharp: Mapping[str, Path]
) -> None:
    """Refuse frames without a partner and gaps in the numbers: both would shift the exposures."""
    problems = []
    if not blurry:
        problems.append(f"no .png in {blur_kind}; --blur_kind chooses between blur and blur_gamma")
    for name, missing in (
        ("sharp frame", sorted(blurry.keys() - sharp.keys())),
        (f"{blur_kind} frame", sorted(sharp.keys() - blurry.keys())),
    ):
        if missing:
            problems.append(f"{len(missing)} without a {name} of that name: {listed(missing)}")
    try:
        numbers = [frame_index(name) for name in blurry]
    except ValueError as error:
        raise DataSetError(str(folder), [*problems, str(error)]) from error
    gaps = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers)) if numbers else []
    if gaps:
        names = listed([f"{number:06d}" for number in gaps])
        problems.append(f"{len(gaps)} frame(s) missing in the middle: {names}")
    if problems:
        raise DataSetError(str(folder), problems)


def _parts(
    folder: Path, place: str, per_frame: Path | None, blurry: Mapping[str, Path]
) -> dict[str, Path]:
    """Return the spike files of a sequence, one per frame, in order."""
    if per_frame is None:
        raise DataSetError(str(folder), [f"no spikes: {WHOLE}/{place}/{STREAM_NAME} is not there"])
    parts = list_frames(per_frame / place / "spike", [".dat"])
    if not parts:
        raise DataSetError(str(folder), [f"no .dat files in {per_frame / place / 'spike'}"])
    if len(parts) != len(blurry):
        without = sorted(blurry.keys() - parts.keys())
        stray = sorted(parts.keys() - blurry.keys())
        raise DataSetError(
            str(folder),
            [
                f"{len(blurry)} frames, {len(parts)} spike files; frames without a spike file: "
                f"{names_or_none(without)}; spike files without a frame: {names_or_none(stray)}"
            ],
        )
    return parts


def _geometry_of(root: Path, files: Sequence[Path], frame: Path) -> SpikeGeometry:
    """Return how the bits lie: as a config.yaml says, else half the size of the frames.

    Args:
        root: the downloaded folder of spikes.
        files: spikes of the sequence.
        frame: one of its frames.

    Raises:
        BadFileError: an unreadable file, or a size of another shape than the frames.
    """
    try:
        located = locate_sidecar(files[0]) or locate_sidecar(root / STREAM_NAME)
    except ValueError as error:
        raise BadFileError(files[0], str(error)) from error
    height, width = image_size(frame)
    if located is None:
        return SpikeGeometry(height // 2, width // 2)
    path, sidecar = located
    if sidecar.height * width != sidecar.width * height:
        raise BadFileError(
            path,
            f"says height {sidecar.height} and width {sidecar.width} of the spikes, which is not "
            f"the shape of frames of {height}x{width}; published spikes have half their size: "
            f"correct it to {height // 2} and {width // 2}. What the files themselves show: "
            f"python scripts/inspect_spikes.py {shlex.quote(str(files[0]))}",
        )
    return sidecar.geometry


def _check_sizes(
    files: Sequence[Path], geometry: SpikeGeometry, ticks: int, is_whole: bool
) -> None:
    """Refuse parts that are not one exposure long; only the last may end early.

    Args:
        files: the parts, or the stream of the sequence.
        geometry: how their bits lie.
        ticks: of an exposure.
        is_whole: whether `files` is the stream, which may have any whole number of ticks.

    Raises:
        DataSetError: every part that does not fit.
    """
    problems = []
    for path in files:
        found, rest = divmod(file_size(path), geometry.tick_bytes)
        is_short_end = not rest and 0 < found < ticks and path == files[-1]
        if rest or not (is_whole or found == ticks or is_short_end):
            problems.append(
                f"{path.name}: {file_size(path)} bytes are "
                f"{file_size(path) / geometry.tick_bytes:.2f} ticks of "
                f"{geometry.height}x{geometry.width}; "
                + ("whole ticks are needed" if is_whole else f"{ticks} ticks are needed")
            )
    if problems:
        more = [f"and {len(problems) - MAX_NAMED} more"] if len(problems) > MAX_NAMED else []
        advice = "the size comes from config.yaml beside the spikes, or is half that of the frames"
        raise DataSetError(str(files[0].parent), [*problems[:MAX_NAMED], *more, advice])


def _without_frames(downloads: Downloads) -> list[str]:
    """Name sequences of which there are spikes and no frames."""
    places = [
        f"{split}/{folder.name}"
        for root in (downloads.whole, downloads.per_frame)
        for split in OUR_SPLITS
        if root is not None and (root / split).is_dir()
        for folder in list_sequences(root / split)
    ]
    lonely = [place for place in dict.fromkeys(places) if not (downloads.pairs / place).is_dir()]
    return [f"not made, {PAIRS} has no such sequence: {listed(lonely)}"] if lonely else []


def _joined(sequences: Sequence[SpkGoproSequence]) -> list[str]:
    """Say which sequences have no stream of their own."""
    joined = [sequence.where for sequence in sequences if not sequence.is_whole]
    if not joined:
        return []
    return [
        f"{len(joined)} of {len(sequences)} sequences have no {WHOLE}/.../{STREAM_NAME}, their "
        f"files per frame are joined: {listed(joined)}"
    ]


def _describe(sequences: Sequence[SpkGoproSequence], options: SourceOptions) -> DataDescription:
    sizes = {(sequence.geometry.height, sequence.geometry.width) for sequence in sequences}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    return DataDescription(
        source=f"{PAIRS} with the published spikes (Spk-GoPro)",
        blur_kind=options.blur_kind,
        frames_averaged=tuple(sorted({sequence.n for sequence in sequences})),
        transfer="encoded",
        threshold=THRESHOLD,
        ticks_per_second=TICKS_PER_SECOND,
        spike_height=height,
        spike_width=width,
        interpolator=f"x{TICKS_PER_SOURCE_FRAME}, by the publishers of the spikes",
        offsets=tuple((s.where, s.offset) for s in sequences if s.offset),
    )


# ---------------------------------------------------------------- the offset of a sequence


@dataclass(frozen=True)
class CheckedOffset:
    """The offset of a sequence, what the user should know of it, or why there is none.

    Attributes:
        offset: source frames by which the exposures begin early.
        notes: sentences.
        problems: sentences; the sequence cannot be used where there are any.
    """

    offset: int
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def check_offset(sequence: SpkGoproSequence) -> CheckedOffset:
    """Find the offset of a sequence from its frames and spikes, and check the order of its bits.

    Where its source frames are there too, its first sharp frame is searched for among them; what
    they say and what the spikes say must agree.
    """
    try:
        by_pixels = None
        if sequence.source_frames is not None:
            pairs = ReleasedPairs(sequence.sharp[0].parents[1], sequence.blurry, sequence.sharp)
            frames = open_folder(sequence.source_frames)
            by_pixels = find_offset(pairs, frames, sequence.n, hint=sequence.zz)
        highest = max((sequence.n - 1) // 2, sequence.zz, by_pixels or 0)
        stream = SpikeParts(sequence.spikes, sequence.geometry)
        measured = measure_offset(stream, list(enumerate(sequence.sharp)), sequence.n, highest)
        checked = _compare(sequence, by_pixels, measured)
        replace(sequence, offset=checked.offset).windows()  # refuses a stream that is cut short
    except (BadFileError, DataSetError) as error:
        problems = tuple(f"{sequence.where}: {problem}" for problem in problems_of(error))
        return CheckedOffset(sequence.zz, problems=problems)
    return checked


def _compare(
    sequence: SpkGoproSequence, by_pixels: int | None, measured: MeasuredOffset
) -> CheckedOffset:
    """Compare what frames, spikes and the name say."""
    where, offset = sequence.where, measured.offset
    if offset is None:
        return _still(sequence, by_pixels)
    if by_pixels is not None and by_pixels != offset:
        problem = (
            f"{where}: its sharp frames equal the source frames with an offset of {by_pixels}, its "
            f"spikes show them with one of {offset}; frames and spikes are not of the same sequence"
        )
        return CheckedOffset(by_pixels, problems=(problem,))
    best = min(measured.decisive, key=lambda frame: frame.error)
    problem = other_order(SpikeParts(sequence.spikes, sequence.geometry), best)
    if problem is not None:
        return CheckedOffset(offset, problems=(f"{where}: {problem}",))
    notes = [
        f"{where}: its spikes show {frame.sharp.name} at tick {frame.tick:.1f}, "
        f"{frame.deviation(offset):.1f} ticks from where the other frames put it (uncertain by "
        f"{frame.error:.1f}); its scene moves too little there"
        for frame in measured.outliers
    ]
    if offset != sequence.zz:
        notes.append(
            f"{where}: the name states an offset of {sequence.zz} source frames, the data show "
            f"{offset}, which is used"
        )
    elif offset:
        notes.append(
            f"{where}: exposures begin {offset} source frame(s) early, as name and data say "
            f"(spikes within {measured.deviation_ticks:.1f} ticks); published files are cut "
            f"{TICKS_PER_SOURCE_FRAME * offset} ticks late"
        )
    return CheckedOffset(offset, notes=tuple(notes))


def _still(sequence: SpkGoproSequence, by_pixels: int | None) -> CheckedOffset:
    """Return the offset of a sequence whose scene is too still to show it."""
    offset = sequence.zz if by_pixels is None else by_pixels
    if sequence.is_joined_by_order:
        problem = (
            f"{sequence.where}: frames and spike files have different names, and the scene is too "
            "still to show which belong together; rename the spike files like the frames"
        )
        return CheckedOffset(offset, problems=(problem,))
    said = "its name" if by_pixels is None else "the source frames"
    note = (
        f"{sequence.where}: too still for its spikes to show the offset; {offset} is taken from "
        f"{said}"
    )
    return CheckedOffset(offset, notes=(note,))
