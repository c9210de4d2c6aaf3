"""What the files of a data set look like: enough to notice that they changed, cheap to find out."""

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from src.data.errors import refuse_undecodable

FINGERPRINTED = ("blur", "sharp", "spike")
HASHED_END_BYTES = 1 << 20


@dataclass(frozen=True)
class SplitFingerprint:
    """What a split of the data looked like when its description was written.

    Attributes:
        split: folder below the data root.
        sequences: number of sequence folders.
        frames: number of blurry frames.
        names_sha256: hash of the sorted names of all blurry frames, as `SEQ/NAME`.
        ends_sha256: hash of size and content of the first and last file of every sequence's
            blur, sharp and spike folder (of long files only their first and last MiB), of the
            .yaml files there and of its exposures.csv.
        sizes_sha256: hash of names and sizes of all files of these folders, so that a picture that
            was replaced in the middle is noticed; "" in descriptions of older versions.
    """

    split: str
    sequences: int
    frames: int
    names_sha256: str
    ends_sha256: str
    sizes_sha256: str = ""


def fingerprint_data(root: str | Path, splits: Iterable[str]) -> tuple[SplitFingerprint, ...]:
    """Fingerprint the splits of a data root in the given order; reads a few files per sequence.

    What preparation writes (`spike_vox` beside `spike`) does not count, so preparing data does not
    change its fingerprint.

    Raises:
        FileNotFoundError: a split has no folder.
    """
    return tuple(_fingerprint_split(Path(root), split) for split in splits)


def fingerprint_differences(
    old: Iterable[SplitFingerprint], new: Iterable[SplitFingerprint]
) -> list[str]:
    """Say in words how two fingerprints differ; an empty list where they agree."""
    before = {entry.split: entry for entry in old}
    after = {entry.split: entry for entry in new}
    lines = [f"{split}: only in one of the two" for split in sorted(before.keys() ^ after.keys())]
    for split in sorted(before.keys() & after.keys()):
        for field in dataclasses.fields(SplitFingerprint):
            was, now = (getattr(side[split], field.name) for side in (before, after))
            is_known = "" not in (was, now)
            if was != now and is_known:
                lines.append(f"{split}: {field.name} was {was}, is {now}")
    return lines


def list_sequences(split_folder: str | Path) -> list[Path]:
    """Return the sequence folders of a split, sorted by name; hidden folders do not count.

    Raises:
        FileNotFoundError: no such folder.
        DataSetError: a name that is not UTF-8.
    """
    folder = Path(split_folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; put one folder per sequence there, or name another one in "
            "DATA.TRAIN_SPLIT and DATA.VAL_SPLIT"
        )
    sequences = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    refuse_undecodable(sequences)
    return sequences


def _fingerprint_split(root: Path, split: str) -> SplitFingerprint:
    sequences = list_sequences(root / split)
    names, ends, sizes = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    num_frames = 0
    for sequence in sequences:
        blurry = _visible_files(sequence / "blur")
        num_frames += len(blurry)
        for path in blurry:
            names.update(f"{sequence.name}/{path.name}\n".encode())
        folders = _recorded_folders(sequence)
        for path in (path for files in folders for path in files if path.suffix != ".json"):
            sizes.update(_name_and_size(root, path))
        for path in _end_files(sequence, folders):
            ends.update(_name_and_size(root, path))
            ends.update(_read_ends(path))
    hashes = (digest.hexdigest() for digest in (names, ends, sizes))
    return SplitFingerprint(split, len(sequences), num_frames, *hashes)


def _name_and_size(root: Path, path: Path) -> bytes:
    return f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode()


def _recorded_folders(sequence: Path) -> list[list[Path]]:
    """Return the files of each folder that preparation does not write."""
    names = list(FINGERPRINTED)
    if not (sequence / "spike").is_dir():
        names.append("spike_vox")  # then the voxels are the recording, not a cache of it
    return [_visible_files(sequence / name) for name in names]


def _end_files(sequence: Path, folders: Iterable[list[Path]]) -> list[Path]:
    """First and last file of each recorded folder, then the exposures table."""
    chosen: list[Path] = []
    for files in folders:
        recorded = [path for path in files if path.suffix not in (".yaml", ".json")]
        chosen += recorded[:1] + recorded[1:][-1:]
        chosen += [path for path in files if path.suffix == ".yaml"]  # how the bits lie
    exposures = sequence / "exposures.csv"
    return [*chosen, exposures] if exposures.is_file() else chosen


def _visible_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _read_ends(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(HASHED_END_BYTES)
        if size <= len(start):
            return start
        handle.seek(max(size - HASHED_END_BYTES, len(start)))
        return start + handle.read()
