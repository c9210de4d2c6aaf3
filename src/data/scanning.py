"""Find the sequences of a split and join what belongs to each frame, by name."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.description import DataDescription, read_description
from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.exposures import (
    EXPOSURES_NAME,
    AlignmentLog,
    Exposure,
    frame_index,
    read_exposures,
)
from src.data.file_state import file_state
from src.data.fingerprint import list_sequences
from src.data.frames import list_frames, read_image
from src.data.recordings import FrameRecord, ImageReader, Recording
from src.data.spikes.find import SequenceSpikes, find_spikes
from src.data.voxel_counts import SpikeSource, VoxelEntry, read_index, staleness

logger = logging.getLogger(__name__)

MAX_NAMES_IN_LINE = 20
MAX_REASONS_IN_LINE = 10


@dataclass(frozen=True)
class ScanSettings:
    """Where things lie below the data root.

    Attributes:
        root: DATA_ROOT.
        num_bins: K.
        image_exts: endings of image files.
        spike_dir: folder of a sequence with `.dat` files.
        voxel_dir: folder of a sequence with voxel counts.
        use_voxel_cache: read counts from `voxel_dir`; False: count the bits at every reading.
    """

    root: Path
    num_bins: int
    image_exts: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".bmp")
    spike_dir: str = "spike"
    voxel_dir: str = "spike_vox"
    use_voxel_cache: bool = True


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
        name: name of the sequence.
        folder: its folder.
        num_blurry: blurry frames in the folder.
        frames: those that have all that belongs to them, in order of their numbers.
        dropped: those that have not.
        strays: files and records without a blurry frame of their name.
        ticks_per_second: of its spikes; None where nobody says.
    """

    name: str
    folder: Path
    num_blurry: int
    frames: tuple[FrameRecord, ...]
    dropped: tuple[Dropped, ...]
    strays: tuple[Dropped, ...]
    ticks_per_second: float | None = None


def scan_split(
    settings: ScanSettings, split: str, alignment: AlignmentLog, read: ImageReader = read_image
) -> list[Recording]:
    """Return the aligned recordings of a split and log one line about it.

    Frames without a record in the alignment log, without sharp frame or spikes, with a window that
    leaves the stream, or with voxels that are not up to date are dropped and named in that line.

    Raises:
        DataSetError: no sequences, a sequence that cannot be understood, or no frame left.
    """
    where = str(settings.root / split)
    description = read_description(settings.root)
    scans, problems = [], []
    for folder in _sequence_folders(settings.root / split):
        records = alignment.of_sequence(split, folder.name)
        try:
            scans.append(scan_sequence(folder, settings, description, records))
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    if problems:
        raise DataSetError(where, problems)
    summary = summarize(split, scans)
    if not any(scan.frames for scan in scans):
        advice = "run scripts/prepare_data.py with this configuration first, or see what it says"
        raise DataSetError(where, [f"no frame can be used; {advice}", summary])
    logger.info(summary)
    return [Recording(s.name, s.frames, settings.num_bins, read) for s in scans if s.frames]


def scan_sequence(
    folder: Path,
    settings: ScanSettings,
    description: DataDescription | None,
    records: Mapping[int, Exposure] | None = None,
) -> SequenceScan:
    """Join blurry frames, sharp frames, exposures and spikes of a sequence by name.

    Args:
        folder: the sequence.
        settings: where things lie.
        description: of the data set; says the spike geometry where no file beside them does.
        records: exposures from the alignment log; stored voxels must then be up to date. None:
            take them from exposures.csv, as preparation does.

    Raises:
        BadFileError: an exposures table that cannot be read.
        DataSetError: no blurry frames, names without numbers, or spikes of unknown geometry.
    """
    blurry = list_frames(folder / "blur", settings.image_exts)
    indices = _numbered(folder, blurry)
    voxel_folder = folder / settings.voxel_dir
    sharp = list_frames(folder / "sharp", settings.image_exts)
    spikes = find_spikes(folder / settings.spike_dir, voxel_folder, description, blurry)
    index = None
    if records is None:
        records = read_exposures(folder / EXPOSURES_NAME, spikes.ticks_per_second)
    elif settings.use_voxel_cache:
        index = read_index(voxel_folder)
    join = _Join(folder, settings, sharp, spikes, records, index)
    frames, dropped = [], []
    for name in sorted(blurry, key=indices.__getitem__):
        try:
            frames.append(join.frame(name, indices[name], blurry[name]))
        except _CannotJoinError as error:
            dropped.append(Dropped(folder.name, name, str(error)))
        except BadFileError as error:
            dropped.append(Dropped(folder.name, name, f"{error.path.name}: {error.reason}"))
    strays = join.strays(blurry, set(indices.values()))
    return SequenceScan(
        folder.name,
        folder,
        len(blurry),
        tuple(frames),
        tuple(dropped),
        tuple(strays),
        spikes.ticks_per_second,
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


class _CannotJoinError(ValueError):
    """Something that belongs to a frame is not there."""


@dataclass(frozen=True)
class _Join:
    """All of a sequence but its blurry frames, ready to be looked up by name."""

    folder: Path
    settings: ScanSettings
    sharp: Mapping[str, Path]
    spikes: SequenceSpikes
    records: Mapping[int, Exposure]
    index: Mapping[str, VoxelEntry] | None  # None: stored voxels need not exist yet

    def frame(self, name: str, index: int, blurry: Path) -> FrameRecord:
        """Return the record of one frame.

        Raises:
            _CannotJoinError, BadFileError: what is missing.
        """
        if name not in self.sharp:
            raise _CannotJoinError("no sharp frame of this name")
        if index not in self.records:
            raise _CannotJoinError("no record of its exposure")
        exposure = self.records[index]
        source = self._source(name, exposure)
        return FrameRecord(
            name=name,
            index=index,
            t0=exposure.t0,
            t1=exposure.t1,
            event_count=exposure.event_count,
            blurry=blurry,
            sharp=self.sharp[name],
            spikes=source,
            voxels=self._stored(name, source),
            t_sharp=exposure.t_sharp,
            seen=file_state(source.path),
        )

    def strays(self, blurry: Mapping[str, Path], indices: set[int]) -> list[Dropped]:
        """Return what has no blurry frame."""
        kinds = {"sharp frame": self.sharp, self.spikes.kind_of_file: self.spikes.files}
        found = [
            Dropped(self.folder.name, name, kind)
            for kind, files in kinds.items()
            for name in files
            if name not in blurry
        ]
        records = [f"{index:06d}" for index in self.records if index not in indices]
        return found + [Dropped(self.folder.name, name, "exposure") for name in records]

    def _source(self, name: str, exposure: Exposure) -> SpikeSource:
        try:
            return self.spikes.source_of(name, exposure.t0, exposure.t1)
        except LookupError as error:
            raise _CannotJoinError(f"no {self.spikes.kind_of_file} of this name") from error
        except BadFileError:
            raise
        except ValueError as error:
            raise _CannotJoinError(str(error)) from error

    def _stored(self, name: str, source: SpikeSource) -> Path | None:
        """Return the stored counts of a frame where they are to be used; they must be fresh."""
        if not self.settings.use_voxel_cache or source.geometry is None:
            return None
        path = self.folder / self.settings.voxel_dir / f"{name}.npy"
        if self.index is not None:
            why = staleness(self.index.get(name), source, self.settings.num_bins, path)
            if why is not None:
                raise _CannotJoinError(f"{why}; run scripts/prepare_data.py")
        return path


def _sequence_folders(split_folder: Path) -> list[Path]:
    try:
        folders = list_sequences(split_folder)
    except FileNotFoundError as error:
        raise DataSetError(str(split_folder), [str(error)]) from error
    if not folders:
        raise DataSetError(str(split_folder), ["is empty; it should hold one folder per sequence"])
    return folders


def _numbered(folder: Path, blurry: Mapping[str, Path]) -> dict[str, int]:
    if not blurry:
        raise DataSetError(str(folder / "blur"), ["no image files; blurry frames are needed there"])
    try:
        indices = {name: frame_index(name) for name in blurry}
    except ValueError as error:
        raise DataSetError(str(folder / "blur"), [str(error)]) from error
    twice = [index for index, count in Counter(indices.values()).items() if count > 1]
    if twice:
        raise DataSetError(
            str(folder / "blur"), [f"frames numbered {twice} exist under several names"]
        )
    return indices


def by_reason(entries: Sequence[Dropped]) -> str:
    """Return `reason (names); reason (names)`, with a limit on the names of each reason."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        reasons.setdefault(entry.reason, []).append(f"{entry.sequence}/{entry.frame}")
    parts = []
    for reason, names in list(reasons.items())[:MAX_REASONS_IN_LINE]:
        more = len(names) - MAX_NAMES_IN_LINE
        named = ", ".join(names[:MAX_NAMES_IN_LINE]) + (f" and {more} more" if more > 0 else "")
        parts.append(f"{reason} ({named})")
    if len(reasons) > MAX_REASONS_IN_LINE:
        parts.append(f"and {len(reasons) - MAX_REASONS_IN_LINE} more reasons like these")
    return "; ".join(parts)
