"""Find the sequences of a split and join what belongs to each frame, by name."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from yacs.config import CfgNode

from src.data.description import DataDescription, find_description, read_description
from src.data.errors import BadFileError, DataSetError, file_state, listed, problems_of
from src.data.exposures import (
    EXPOSURES_NAME,
    AlignmentLog,
    Exposure,
    frame_index,
    read_exposures,
)
from src.data.frames import ImageReader, list_frames, list_sequences, read_image
from src.data.recordings import FrameRecord, Recording
from src.data.spikes.find import PER_FRAME, STREAM, SequenceSpikes, find_spikes
from src.data.voxel_counts import INDEX_NAME, SpikeSource, VoxelEntry, read_index, staleness
from src.paths import resolve

logger = logging.getLogger(__name__)

MAX_REASONS = 10  # in one line


@dataclass(frozen=True)
class ScanSettings:
    """Where things lie below the data root.

    Attributes:
        num_bins: K.
        image_exts: endings of image files.
        spike_dir: folder of a sequence with `.dat` files.
        voxel_dir: folder of a sequence with voxel counts.
        use_voxel_cache: read counts from `voxel_dir`; False: count the bits at every use.
    """

    root: Path
    num_bins: int
    image_exts: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".bmp")
    spike_dir: str = "spike"
    voxel_dir: str = "spike_vox"
    use_voxel_cache: bool = True


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
    """What a sequence folder holds.

    Attributes:
        num_blurry: blurry frames in the folder.
        frames: those that have all that belongs to them, in order of their numbers.
        dropped: those that have not.
        strays: files and records without a blurry frame of their name.
        ticks_per_second: of its spikes; None where it is unknown.
    """

    name: str
    folder: Path
    num_blurry: int
    frames: tuple[FrameRecord, ...]
    dropped: tuple[Dropped, ...]
    strays: tuple[Dropped, ...]
    ticks_per_second: float | None = None

    @property
    def files(self) -> list[Path]:
        """All image files of the frames, blurry and sharp."""
        return [path for frame in self.frames for path in (frame.blurry, frame.sharp)]


def scan_split(
    settings: ScanSettings, split: str, alignment: AlignmentLog, read: ImageReader = read_image
) -> list[Recording]:
    """Return the aligned recordings of a split and log one line about it.

    Frames without a record in the alignment log, without sharp frame or spikes, with a window that
    leaves the stream, or with voxels that are not up to date are dropped and named in that line.
    No sequences, one that cannot be understood, or no frame left are a DataSetError.
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
    them, exposures.csv is read, as preparation does. `description` states the spike geometry where
    no file beside the spikes does.
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
    parts = _Parts(
        num_bins=settings.num_bins,
        sharp=list_frames(folder / "sharp", settings.image_exts),
        spikes=spikes,
        exposures=records,
        voxel_folder=voxel_folder if settings.use_voxel_cache else None,
        index=index,
    )
    frames, dropped = _join(folder.name, parts, blurry, indices)
    kinds = {"sharp frame": parts.sharp, spikes.kind_of_file: spikes.files}
    strays = [(name, kind) for kind, files in kinds.items() for name in files if name not in blurry]
    numbers = set(indices.values())
    strays += [(f"{number:06d}", "exposure") for number in records if number not in numbers]
    strays = tuple(Dropped(folder.name, *stray) for stray in strays)
    return SequenceScan(
        folder.name, folder, len(blurry), frames, dropped, strays, spikes.ticks_per_second
    )


def summarize(split: str, scans: list[SequenceScan]) -> str:
    """Return one line about a split: how much there is, and what is left out by name and why."""
    total = sum(scan.num_blurry for scan in scans)
    aligned = sum(len(scan.frames) for scan in scans)
    line = f"{split}: {len(scans)} sequences, {total} frames, {aligned} aligned"
    dropped = [entry for scan in scans for entry in scan.dropped]
    strays = [entry for scan in scans for entry in scan.strays]
    if dropped:
        line += f", {len(dropped)} dropped: {by_reason(dropped)}"
    if strays:
        line += f"; {len(strays)} without a blurry frame: {by_reason(strays)}"
    return line


@dataclass(frozen=True)
class _Parts:
    """All of a sequence but its blurry frames, ready to be looked up by name.

    Attributes:
        num_bins: K.
        sharp: by name; None where there are none to join.
        spikes: the same.
        exposures: by number; None where no spikes need them.
        voxel_folder: where stored counts of `spikes` are; None: count at every reading.
        index: what was counted there; None: stored counts need not exist yet.
        counts_stale: count a frame whose stored counts are out of date; False: drop it.
    """

    num_bins: int
    sharp: Mapping[str, Path] | None = None
    spikes: SequenceSpikes | None = None
    exposures: Mapping[int, Exposure] | None = None
    voxel_folder: Path | None = None
    index: Mapping[str, VoxelEntry] | None = None
    counts_stale: bool = False

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
            source = self.spikes.source_of(name, exposure)
            voxels, seen = self._stored(name, source), file_state(source.path)
            spikes = {"spikes": source, "voxels": voxels, "seen": seen}
        sharp = None if self.sharp is None else self.sharp[name]
        return FrameRecord(name, index, blurry, sharp, **times, **spikes)

    def _stored(self, name: str, source: SpikeSource) -> Path | None:
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


def _join(
    sequence: str, parts: _Parts, blurry: Mapping[str, Path], indices: Mapping[str, int]
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


# ---------------------------------------------------------------- folders given for testing


@dataclass(frozen=True)
class InputFolders:
    """What the user gives for testing.

    Attributes:
        blurry: folder of frames, of sequence folders, or of sequence folders with `blur` in them.
        spikes: the same with `.npy` counts (`spike_vox`) or `.dat` spikes (`spike`).
        sharp: the same with the ground truth (`sharp`).
        spike_size: height and width of `.dat` spikes; None: as the files beside them say.
    """

    blurry: Path
    spikes: Path | None = None
    sharp: Path | None = None
    spike_size: tuple[int, int] | None = None


def scan_inputs(inputs: InputFolders, settings: ScanSettings) -> list[Recording]:
    """Return all sequences of the folders given for testing, sorted by name.

    The rules are those of `scan_sequence`, but every frame must have spikes and a sharp frame where
    these are given; a DataSetError names all that lack something. Files without a blurry frame of
    their name do not count. Where stored counts in `SEQ/spike_vox` are out of date, the spikes in
    `SEQ/spike` are counted.
    """
    images = settings.image_exts
    blurry = _find_folders(inputs.blurry, ("blur",), images)
    sharp = spikes = None
    if inputs.sharp is not None:
        sharp = _find_folders(inputs.sharp, ("sharp",), images)
    if inputs.spikes is not None:
        inner = dict.fromkeys((settings.voxel_dir, settings.spike_dir, "spike_vox", "spike"))
        spikes = _find_folders(inputs.spikes, tuple(inner), (".npy", ".dat"))
    problems: list[str] = []
    recordings = []
    for name, folder in blurry.items():
        try:
            frames = list_frames(folder, images)
            indices = number_frames(folder, frames)
            parts = _Parts(settings.num_bins)
            if sharp is not None:
                partner = _partner(name, blurry, sharp, inputs.sharp)
                parts = replace(parts, sharp=list_frames(partner, images))
            if spikes is not None:
                partner = _partner(name, blurry, spikes, inputs.spikes)
                parts = _with_spikes(parts, partner, frames, inputs.spike_size, settings)
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
            continue
        found, dropped = _join(name, parts, frames, indices)
        problems += [by_reason(dropped)] if dropped else []
        recordings.append(Recording(name, found, settings.num_bins))
    if problems:
        raise DataSetError(str(inputs.blurry), problems)
    return recordings


def _with_spikes(
    parts: _Parts,
    folder: Path,
    blurry: Mapping[str, Path],
    size: tuple[int, int] | None,
    settings: ScanSettings,
) -> _Parts:
    """Return the parts of a sequence with the spikes in a folder of `.npy` or `.dat` files."""
    folder = folder.absolute()  # "." has no name and no parent
    bits = folder.with_name(settings.spike_dir)
    is_cache = (folder / INDEX_NAME).is_file() and bool(list_frames(bits, [".dat"]))
    if not is_cache:  # what is given is all there is; voxels count before bits
        bits = folder / "none" if list_frames(folder, [".npy"]) else folder
    spikes = find_spikes(bits, folder, find_description(folder), blurry, size)
    table = bits.parent / EXPOSURES_NAME
    exposures = None
    can_check_lengths = spikes.ticks_per_second is not None and table.is_file()
    if spikes.kind == STREAM or (spikes.kind == PER_FRAME and can_check_lengths):
        exposures = read_exposures(table, spikes.ticks_per_second)
    parts = replace(parts, spikes=spikes, exposures=exposures)
    if is_cache:
        parts = replace(parts, voxel_folder=folder, index=read_index(folder), counts_stale=True)
    return parts


def _find_folders(
    root: Path, inner_names: tuple[str, ...], endings: tuple[str, ...]
) -> dict[str, Path]:
    """Return sequence name -> folder that holds its files; one entry if `root` is a sequence."""
    if not root.is_dir():
        reason = "is a file; name the folder that holds it" if root.exists() else "no such folder"
        raise DataSetError(str(root), [reason])
    here = _folder_with_files(root, inner_names, endings)
    if here is not None:
        name = root.resolve().name
        return {root.resolve().parent.name if name in inner_names else name: here}
    entries = [entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."]
    found = {
        entry.name: folder
        for entry in sorted(entries, key=_natural_order)
        if (folder := _folder_with_files(entry, inner_names, endings)) is not None
    }
    if not found:
        folders = [str(root), f"{root}/SEQ", *(f"{root}/SEQ/{n}" for n in inner_names)]
        raise DataSetError(str(root), [f"no {', '.join(endings)} files in {' or '.join(folders)}"])
    return found


def _folder_with_files(
    folder: Path, inner_names: tuple[str, ...], endings: tuple[str, ...]
) -> Path | None:
    for candidate in (folder, *(folder / name for name in inner_names)):
        files = candidate.iterdir() if candidate.is_dir() else ()
        if any(path.suffix.lower() in endings and path.name[0] != "." for path in files):
            return candidate
    return None


def _partner(name: str, blurry: Mapping[str, Path], others: Mapping[str, Path], root: Path) -> Path:
    """Return the folder that belongs to a sequence; a lone one belongs to a lone one."""
    if len(blurry) == len(others) == 1:
        return next(iter(others.values()))
    if name not in others:
        raise DataSetError(str(root), [f"sequence {name} is not in it; it has {', '.join(others)}"])
    return others[name]


def _natural_order(path: Path) -> list[tuple[str, int]]:
    """Return a key that sorts `f2` before `f10`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path.name)]


def number_frames(folder: Path, blurry: Mapping[str, Path]) -> dict[str, int]:
    """Return the number at the end of the name of each blurry frame; each occurs once."""
    if not blurry:
        raise DataSetError(str(folder), ["no image files; blurry frames are needed there"])
    try:
        indices = {name: frame_index(name) for name in blurry}
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    twice = [index for index, count in Counter(indices.values()).items() if count > 1]
    if twice:
        raise DataSetError(str(folder), [f"frames numbered {twice} exist under several names"])
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
