"""Find the sequences of a split and join what belongs to each frame, by name.

Spikes of a frame are a range of ticks of a `.dat` file, or stored counts where there are no spikes.
"""

import logging
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yacs.config import CfgNode

from src.data.description import DataDescription, read_description
from src.data.errors import BadFileError, DataSetError, file_state, listed, problems_of
from src.data.exposures import (
    EXPOSURES_NAME,
    SNAP_TICKS,
    AlignmentLog,
    Exposure,
    frame_index,
    read_exposures,
    window_ticks,
)
from src.data.frames import IMAGE_EXTS, ImageReader, list_frames, list_sequences, read_image
from src.data.recordings import FrameRecord, Recording
from src.data.spikes.spike_dat import (
    SIDECAR_NAME,
    SpikeFile,
    SpikeGeometry,
    SpikeSidecar,
    locate_sidecar,
)
from src.data.voxel_counts import SpikeWindow, VoxelEntry, read_index, staleness
from src.paths import resolve

logger = logging.getLogger(__name__)

MAX_REASONS = 10  # in one line
PER_FRAME, STREAM, VOXELS = "per frame", "stream", "voxels"
STATED = ("height", "width", "ticks_per_second", "bit_order", "flip_rows")


@dataclass(frozen=True)
class ScanSettings:
    """Where things lie below the data root."""

    root: Path
    num_bins: int  # K
    image_exts: tuple[str, ...] = IMAGE_EXTS
    spike_dir: str = "spike"  # folder of a sequence with `.dat` files
    voxel_dir: str = "spike_vox"  # folder of a sequence with voxel counts
    use_voxel_cache: bool = True  # read counts from there; False: count the bits at every use


def scan_settings(cfg: CfgNode) -> ScanSettings:
    """Return where things lie below the data root."""
    data = cfg.DATA
    return ScanSettings(
        root=resolve(data.ROOT),
        num_bins=data.K,
        image_exts=tuple(data.IMAGE_EXTS),
        spike_dir=data.SPIKE_DIR,
        voxel_dir=data.VOXEL_CACHE_DIRNAME,
        use_voxel_cache=data.USE_PRECOMPUTED_VOXELS,
    )


def alignment_paths(cfg: CfgNode) -> list[Path]:
    """Return the alignment logs: those of the configuration, else the one named after the root."""
    if cfg.DATA.ALIGN_LOG_PATHS:
        return [resolve(path) for path in cfg.DATA.ALIGN_LOG_PATHS]
    name = resolve(cfg.DATA.ROOT).name
    return [resolve(cfg.LOG.SAVE_DIR) / "logs" / f"align_{name}.txt"]


@dataclass(frozen=True)
class Dropped:
    """A frame that is left out, and why."""

    sequence: str
    frame: str
    reason: str


@dataclass(frozen=True)
class SequenceScan:
    """What a sequence folder holds."""

    name: str
    folder: Path
    num_blurry: int  # frames in the folder
    frames: tuple[FrameRecord, ...]  # those that have all, by number
    dropped: tuple[Dropped, ...]  # those that have not
    unmatched: tuple[Dropped, ...]  # files and records without a blurry frame
    ticks_per_second: float | None = None  # of its spikes; None: unknown

    @property
    def files(self) -> list[Path]:
        """All image files of the frames, blurry and sharp."""
        return [path for frame in self.frames for path in (frame.blurry, frame.sharp)]


def scan_split(
    settings: ScanSettings, split: str, alignment: AlignmentLog, read: ImageReader = read_image
) -> list[Recording]:
    """Return the aligned recordings of a split and log one line about it.

    Frames that lack something, leave the stream or have old voxels are dropped and named there.
    """
    where = str(settings.root / split)
    description = read_description(settings.root)
    scans, problems = scan_folders(settings, split, description, alignment)
    if problems:
        raise DataSetError(where, problems)
    summary = summarize(split, scans)
    if not any(scan.frames for scan in scans):
        advice = "run scripts/prepare_data.py with this configuration first, and read its report"
        raise DataSetError(where, [f"no frame can be used; {advice}", summary])
    logger.info(summary)
    return [Recording(s.name, s.frames, settings.num_bins, read) for s in scans if s.frames]


def scan_folders(
    settings: ScanSettings,
    split: str,
    description: DataDescription | None,
    alignment: AlignmentLog | None = None,
) -> tuple[list[SequenceScan], list[str]]:
    """Scan the sequences of a split, see `scan_sequence`; also return what is wrong."""
    scans, problems = [], []
    try:
        folders = list_sequences(settings.root / split)
    except FileNotFoundError as error:
        return [], [str(error)]
    if not folders:
        problems.append(f"{settings.root / split}: is empty; one folder per sequence is needed")
    for folder in folders:
        records = None if alignment is None else alignment.of_sequence(split, folder.name)
        try:
            scans.append(scan_sequence(folder, settings, description, records))
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    return scans, problems


def scan_sequence(
    folder: Path,
    settings: ScanSettings,
    description: DataDescription | None,
    records: Mapping[int, Exposure] | None = None,
) -> SequenceScan:
    """Join blurry frames, sharp frames, exposures and spikes of a sequence by name.

    With `records`, exposures from the alignment log, stored voxels must be up to date; without
    them, exposures.csv is read, as preparation does.
    """
    blurry = list_frames(folder / "blur", settings.image_exts)
    indices = number_frames(folder / "blur", blurry)
    voxel_folder = folder / settings.voxel_dir
    spikes = find_spikes(folder / settings.spike_dir, voxel_folder, description, blurry)
    index = None
    if records is None:
        records = read_exposures(folder / EXPOSURES_NAME, spikes.ticks_per_second)
    elif settings.use_voxel_cache:
        index = read_index(voxel_folder)
    sharp = list_frames(folder / "sharp", settings.image_exts)
    stored = voxel_folder if settings.use_voxel_cache else None
    parts = Parts(settings.num_bins, sharp, spikes, records, stored, index)
    frames, dropped = join_frames(folder.name, parts, blurry, indices)
    unmatched = [
        Dropped(folder.name, name, kind)
        for kind, files in (("sharp frame", sharp), (spikes.kind_of_file, spikes.files))
        for name in files
        if name not in blurry
    ]
    unknown = sorted(records.keys() - set(indices.values()))
    unmatched += [Dropped(folder.name, f"{number:06d}", "exposure") for number in unknown]
    rate = spikes.ticks_per_second
    return SequenceScan(folder.name, folder, len(blurry), frames, dropped, tuple(unmatched), rate)


def summarize(split: str, scans: list[SequenceScan]) -> str:
    """Return one line about a split: how much there is, and what is left out by name and why."""
    total = sum(scan.num_blurry for scan in scans)
    aligned = sum(len(scan.frames) for scan in scans)
    line = f"{split}: {len(scans)} sequences, {total} frames, {aligned} aligned"
    dropped = [entry for scan in scans for entry in scan.dropped]
    unmatched = [entry for scan in scans for entry in scan.unmatched]
    if dropped:
        line += f", {len(dropped)} dropped: {by_reason(dropped)}"
    if unmatched:
        line += f"; {len(unmatched)} without a blurry frame: {by_reason(unmatched)}"
    return line


def number_frames(folder: Path, blurry: Mapping[str, Path]) -> dict[str, int]:
    """Return the number at the end of the name of each blurry frame; each occurs once."""
    if not blurry:
        raise DataSetError(str(folder), ["no image files; blurry frames are needed there"])
    try:
        indices = {name: frame_index(name) for name in blurry}
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    twice = [str(index) for index, count in Counter(indices.values()).items() if count > 1]
    if twice:
        reason = f"frames numbered {listed(twice)} exist under several names"
        raise DataSetError(str(folder), [reason])
    return indices


def by_reason(entries: Iterable[Dropped]) -> str:
    """Return `reason (names); reason (names)`, with a limit on the names of each reason."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        reasons.setdefault(entry.reason, []).append(f"{entry.sequence}/{entry.frame}")
    parts = [f"{why} ({listed(names)})" for why, names in list(reasons.items())[:MAX_REASONS]]
    if len(reasons) > MAX_REASONS:
        parts.append(f"and {len(reasons) - MAX_REASONS} more reasons like these")
    return "; ".join(parts)


# ---------------------------------------------------------------- the spikes of a sequence


@dataclass(frozen=True)
class SequenceSpikes:
    """The spikes of one sequence.

    "per frame": each `.dat` covers exactly the exposure of the frame of its name; "stream": one
    `.dat` of the whole sequence; "voxels": `.npy` files, no spikes.
    """

    kind: str  # one of the three
    files: Mapping[str, Path]  # by name without ending; empty for a stream
    stream: Path | None
    geometry: SpikeGeometry | None  # None for voxels
    ticks_per_second: float | None  # None where no file states it
    index: Mapping[str, VoxelEntry] = field(default_factory=dict)  # of voxels, beside them

    @property
    def kind_of_file(self) -> str:
        """What one of the files is called in messages."""
        return "voxel file" if self.kind == VOXELS else "spike file"

    def window_of(self, name: str, exposure: Exposure | None) -> SpikeWindow:
        """Return where the spikes of a frame are; only a stream needs its exposure.

        A ValueError says what does not fit: name, number of ticks, or an exposure that leaves the
        stream.
        """
        if self.stream is None and name not in self.files:
            raise ValueError(f"no {self.kind_of_file} of this name")
        path = self.stream or self.files[name]
        if self.kind == VOXELS:
            entry = self.index.get(name)
            is_of_it = entry is not None and entry.is_of(path)
            ticks = (entry.start, entry.stop) if is_of_it else (0, 0)
            return SpikeWindow(path, None, *ticks)
        try:
            num_ticks = SpikeFile(path, self.geometry).num_ticks
        except (OSError, ValueError) as error:
            raise BadFileError(path, str(error)) from error
        rate = self.ticks_per_second
        if self.stream is None:
            if exposure is not None and rate is not None:
                expected = (exposure.t1 - exposure.t0) * rate
                if abs(expected - num_ticks) >= 1 - SNAP_TICKS:  # may be rounded up or down
                    raise ValueError(
                        f"exposure and spike file differ in length: [{exposure.t0:g} s, "
                        f"{exposure.t1:g} s) is {expected:.6g} ticks, the file has {num_ticks}"
                    )
            return SpikeWindow(path, self.geometry, 0, num_ticks)
        if rate is None:
            raise ValueError(f"{path.name} is a stream, but ticks_per_second is not known")
        start, stop = window_ticks(exposure.t0, exposure.t1, rate)
        if start < 0 or stop > num_ticks:
            raise ValueError(
                f"exposure leaves the stream: [{exposure.t0:g} s, {exposure.t1:g} s) is ticks "
                f"[{start}, {stop}) of {path.name}, which has [0, {num_ticks})"
            )
        return SpikeWindow(path, self.geometry, start, stop)


def find_spikes(
    spike_folder: Path,
    voxel_folder: Path,
    description: DataDescription | None,
    blurry_names: Collection[str],
    size: tuple[int, int] | None = None,
) -> SequenceSpikes:
    """Return the spikes of a sequence; `size` as in `stated_spikes`.

    A single `.dat` beside several blurry frames is the stream of the sequence; otherwise each
    `.dat` belongs to the frame of its name. Without `.dat` the voxel files are the spikes.
    """
    files = list_frames(spike_folder, [".dat"])
    if not files:
        voxels = list_frames(voxel_folder, [".npy"])
        if not voxels:
            problem = (
                f"no .dat files in {spike_folder.name} and no .npy files in {voxel_folder.name}"
            )
            raise DataSetError(str(spike_folder.parent), [problem])
        rate = None if description is None else description.ticks_per_second
        return SequenceSpikes(VOXELS, voxels, None, None, rate, read_index(voxel_folder))
    first = next(iter(files.values()))
    known = stated_spikes(first, description, size)
    for path in files.values():
        if path.with_suffix(".yaml").is_file() and stated_spikes(path, description, size) != known:
            raise DataSetError(str(path), [f"its .yaml differs from that of {first.name}"])
    if len(files) == 1 and set(files) != set(blurry_names):
        return SequenceSpikes(STREAM, {}, first, known.geometry, known.ticks_per_second)
    return SequenceSpikes(PER_FRAME, files, None, known.geometry, known.ticks_per_second)


def stated_spikes(
    path: Path, description: DataDescription | None, size: tuple[int, int] | None = None
) -> SpikeSidecar:
    """Return what is known about a `.dat`: from the file beside it, else from dataset.yaml.

    These, and `size`, height and width that the user states, must not contradict each other.
    """
    try:
        beside = locate_sidecar(path, entries_of(description))
        overall = described_sidecar(description)
        given = None if size is None else SpikeSidecar(*size, **entries_of(description))
    except ValueError as error:
        raise DataSetError(str(path), [str(error)]) from error
    stated = [(str(beside[0]), beside[1], ())] if beside else []
    stated += [("dataset.yaml of the data root", overall, STATED)] if overall else []
    stated += [("--spike_size", given, ("height", "width"))] if given else []
    if not stated:
        reason = (
            "the size of the spike sensor is not known; a .dat file does not hold it. Write "
            f"{path.parent / SIDECAR_NAME} with lines like 'height: 250', 'width: 400', "
            "'ticks_per_second: 20000', or spike_height, spike_width and ticks_per_second into "
            "dataset.yaml at the data root; src/test.py takes it as --spike_size HEIGHT WIDTH too"
        )
        raise DataSetError(str(path), [reason])
    file, first, _ = stated[0]
    for other, sidecar, names in stated[1:]:
        pairs = {name: (getattr(first, name), getattr(sidecar, name)) for name in names}
        pairs = {name: pair for name, pair in pairs.items() if None not in pair}
        values = {name: (was, now) for name, (was, now) in pairs.items() if was != now}
        if values:
            was, now = (
                yaml.safe_dump({name: pair[side] for name, pair in values.items()}, sort_keys=False)
                for side in (0, 1)
            )
            reason = (
                f"{file} says {', '.join(was.splitlines())}, {other} says "
                f"{', '.join(now.splitlines())}; correct the one that is wrong. python "
                f"scripts/inspect_spikes.py {shlex.quote(str(path))} shows what fits"
            )
            raise DataSetError(str(path), [reason])
    return first


def described_sidecar(description: DataDescription | None) -> SpikeSidecar | None:
    """Return what a description states of all spikes; None where it does not state their size."""
    if description is None or description.spike_height is None or description.spike_width is None:
        return None
    size = description.spike_height, description.spike_width
    return SpikeSidecar(*size, **entries_of(description))


def entries_of(description: DataDescription | None) -> dict[str, object]:
    """Return what a description states for sidecars that do not state it."""
    names = ("ticks_per_second", "threshold", "bit_order", "flip_rows")
    return {} if description is None else {name: getattr(description, name) for name in names}


# ---------------------------------------------------------------- what belongs to a frame


@dataclass(frozen=True)
class Parts:
    """All of a sequence but its blurry frames, ready to be looked up by name."""

    num_bins: int  # K
    sharp: Mapping[str, Path] | None = None  # by name; None: there are none to join
    spikes: SequenceSpikes | None = None  # the same
    exposures: Mapping[int, Exposure] | None = None  # by number; None: not needed
    voxel_folder: Path | None = None  # with stored counts of `spikes`; None: count at every reading
    index: Mapping[str, VoxelEntry] | None = None  # of them; None: they need not exist yet
    counts_stale: bool = False  # count frames whose stored counts are old; False: drop them

    def frame(self, name: str, index: int, blurry: Path) -> FrameRecord:
        """Return the record of one frame; a ValueError says what of it is not there."""
        if self.sharp is not None and name not in self.sharp:
            raise ValueError("no sharp frame of this name")
        exposure = None if self.exposures is None else self.exposures.get(index)
        if exposure is None and self.exposures is not None:
            raise ValueError("no record of its exposure")
        times, spikes = {}, {}
        if exposure is not None:
            times = {"t0": exposure.t0, "t1": exposure.t1, "t_sharp": exposure.t_sharp}
        if self.spikes is not None:
            source = self.spikes.window_of(name, exposure)
            voxels, seen = self._stored(name, source), file_state(source.path)
            spikes = {"spikes": source, "voxels": voxels, "seen": seen}
        sharp = None if self.sharp is None else self.sharp[name]
        return FrameRecord(name, index, blurry, sharp, **times, **spikes)

    def _stored(self, name: str, source: SpikeWindow) -> Path | None:
        """Return the stored counts of a frame where they are to be used; they must be fresh."""
        if self.voxel_folder is None or source.geometry is None:
            return None
        path = self.voxel_folder / f"{name}.npy"
        if self.index is not None:
            why = staleness(self.index.get(name), source, self.num_bins, path)
            if why is not None and self.counts_stale:
                return None
            if why is not None:
                raise ValueError(f"{why}; run scripts/prepare_data.py")
        return path


def join_frames(
    sequence: str, parts: Parts, blurry: Mapping[str, Path], indices: Mapping[str, int]
) -> tuple[tuple[FrameRecord, ...], tuple[Dropped, ...]]:
    """Return the frames that have all that belongs to them, by number, and those that have not."""
    frames, dropped = [], []
    for name in sorted(blurry, key=indices.__getitem__):
        try:
            frames.append(parts.frame(name, indices[name], blurry[name]))
        except BadFileError as error:
            dropped.append(Dropped(sequence, name, f"{error.path.name}: {error.reason}"))
        except ValueError as error:
            dropped.append(Dropped(sequence, name, str(error)))
    return tuple(frames), tuple(dropped)
