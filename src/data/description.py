"""What a data set is: `DATA_ROOT/dataset.yaml`, read, checked, written.

The file is written once by whoever makes the data and travels with it. Two results can be compared
only when their descriptions agree, so everything that changes the task stands in it.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from src.data.yaml_edit import replace_entry
from src.paths import atomic_write

FILE_NAME = "dataset.yaml"
BLUR_KINDS = ("blur", "blur_gamma", "recorded", "unknown")
TRANSFERS = ("encoded", "linear", "unknown")
BIT_ORDERS = ("little", "big")
FINGERPRINTED = ("blur", "sharp", "spike")
MAX_FILE_BYTES = 1 << 20
HASHED_END_BYTES = 1 << 20


class DescriptionError(ValueError):
    """A data description cannot be read; the message names the file, the key and what is needed."""


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
    """

    split: str
    sequences: int
    frames: int
    names_sha256: str
    ends_sha256: str


@dataclass(frozen=True)
class DataDescription:
    """Everything two data sets must share for their results to be compared.

    Attributes:
        source: where the frames come from, in words ("GOPRO_Large_all", "demo").
        blur_kind: "blur" (mean of encoded frames), "blur_gamma" (mean in linear light by the
            power 2.2), "recorded" (a real camera's exposure) or "unknown".
        frames_averaged: the numbers of sharp frames in one blurry frame that occur, ascending;
            empty where unknown.
        transfer: what the spikes integrate, "encoded" grey values or "linear" light.
        threshold: firing threshold in units of full-scale intensity per tick; None if unknown.
        ticks_per_second: readouts of the spike sensor per second; None if unknown.
        spike_height, spike_width: pixels of the spike sensor; None where every sequence says.
        bit_order: "little" (first pixel in the least significant bit) or "big".
        flip_rows: True where the rows of a `.dat` are stored bottom-up.
        interpolator: what made frames between the recorded ones; "none".
        fingerprint: one entry per split, see `fingerprint_data`.

    Raises:
        ValueError: a value that is not one of those above, with the field's name.
    """

    source: str
    blur_kind: str = "unknown"
    frames_averaged: tuple[int, ...] = ()
    transfer: str = "unknown"
    threshold: float | None = None
    ticks_per_second: float | None = None
    spike_height: int | None = None
    spike_width: int | None = None
    bit_order: str = "little"
    flip_rows: bool = True
    interpolator: str = "none"
    fingerprint: tuple[SplitFingerprint, ...] = ()

    def __post_init__(self) -> None:
        problems = [
            *_check_choice("blur_kind", self.blur_kind, BLUR_KINDS),
            *_check_choice("transfer", self.transfer, TRANSFERS),
            *_check_choice("bit_order", self.bit_order, BIT_ORDERS),
            *_check_positive("threshold", self.threshold, (int, float)),
            *_check_positive("ticks_per_second", self.ticks_per_second, (int, float)),
            *_check_positive("spike_height", self.spike_height, (int,)),
            *_check_positive("spike_width", self.spike_width, (int,)),
        ]
        for name in ("source", "interpolator"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                problems.append(f"{name}: expected a text, got {getattr(self, name)!r}")
        if not isinstance(self.flip_rows, bool):
            problems.append(f"flip_rows: expected true or false, got {self.flip_rows!r}")
        for count in self.frames_averaged:
            problems += _check_positive("frames_averaged", count, (int,))
        if (self.spike_height is None) != (self.spike_width is None):
            problems.append("spike_height and spike_width: give both or none")
        if problems:
            raise ValueError("; ".join(problems))


def read_description(root: str | Path) -> DataDescription | None:
    """Read `root/dataset.yaml`; None where there is no such file.

    Raises:
        DescriptionError: not a plain YAML mapping, an unknown key, or an impossible value.
    """
    path = Path(root) / FILE_NAME
    if not path.is_file():
        return None
    values = _load_plain_mapping(path)
    known = {field.name for field in dataclasses.fields(DataDescription)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise DescriptionError(f"{path}: unknown keys {unknown}; known are {sorted(known)}")
    if "source" not in values:
        raise DescriptionError(f"{path}: 'source' is missing; write where the frames come from")
    try:
        values["frames_averaged"] = _as_counts(values.get("frames_averaged", ()))
        values["fingerprint"] = _as_fingerprints(values.get("fingerprint", {}))
        return DataDescription(**values)
    except (TypeError, ValueError) as error:
        raise DescriptionError(f"{path}: {error}") from error


def write_description(root: str | Path, description: DataDescription) -> Path:
    """Write `root/dataset.yaml` whole or not at all and return its path."""
    values = dataclasses.asdict(description)
    values["frames_averaged"] = list(description.frames_averaged)
    values["fingerprint"] = _fingerprint_values(description.fingerprint)
    return _write(root, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def write_fingerprint(root: str | Path, fingerprint: Iterable[SplitFingerprint]) -> Path:
    """Renew the fingerprint in `root/dataset.yaml`, its other lines and comments unchanged.

    Where there is no file, one is written that calls unknown what nobody said.
    """
    path = Path(root) / FILE_NAME
    if not path.is_file():
        return write_description(
            root, DataDescription(Path(root).name, fingerprint=tuple(fingerprint))
        )
    text = path.read_text(encoding="utf-8")
    return _write(root, replace_entry(text, "fingerprint", _fingerprint_values(fingerprint)))


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
            if was != now:
                lines.append(f"{split}: {field.name} was {was}, is {now}")
    return lines


def list_sequences(split_folder: str | Path) -> list[Path]:
    """Return the sequence folders of a split, sorted by name; hidden folders do not count."""
    folder = Path(split_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it should hold one folder per sequence")
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _fingerprint_values(fingerprint: Iterable[SplitFingerprint]) -> dict[str, dict]:
    return {entry.pop("split"): entry for entry in map(dataclasses.asdict, fingerprint)}


def _write(root: str | Path, text: str) -> Path:
    path = Path(root) / FILE_NAME
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _fingerprint_split(root: Path, split: str) -> SplitFingerprint:
    sequences = list_sequences(root / split)
    names, ends = hashlib.sha256(), hashlib.sha256()
    num_frames = 0
    for sequence in sequences:
        blurry = _visible_files(sequence / "blur")
        num_frames += len(blurry)
        for path in blurry:
            names.update(f"{sequence.name}/{path.name}\n".encode())
        for path in _end_files(sequence):
            ends.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
            ends.update(_read_ends(path))
    return SplitFingerprint(split, len(sequences), num_frames, names.hexdigest(), ends.hexdigest())


def _end_files(sequence: Path) -> list[Path]:
    """First and last file of each recorded folder, then the exposures table."""
    folders = list(FINGERPRINTED)
    if not (sequence / "spike").is_dir():
        folders.append("spike_vox")  # then the voxels are the recording, not a cache of it
    chosen: list[Path] = []
    for name in folders:
        files = _visible_files(sequence / name)
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


def _load_plain_mapping(path: Path) -> dict[str, object]:
    """Load a small YAML mapping: no tags that build objects, no aliases that multiply."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DescriptionError(f"{path}: {size} bytes; a description has a few hundred")
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise DescriptionError(f"{path}: aliases ('*name') are not accepted; write values out")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DescriptionError(f"{path}: not a plain YAML file: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DescriptionError(f"{path}: expected lines 'key: value', got {type(values).__name__}")
    return values


def _as_counts(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    counts = (value,) if isinstance(value, int) else value
    if not isinstance(counts, (list, tuple)):
        raise ValueError(f"frames_averaged: expected a list of whole numbers, got {value!r}")
    return tuple(counts)


def _as_fingerprints(value: object) -> tuple[SplitFingerprint, ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise ValueError(f"fingerprint: expected one mapping per split, got {value!r}")
    entries = []
    for split, entry in value.items():
        if not isinstance(entry, Mapping):
            raise ValueError(f"fingerprint.{split}: expected a mapping, got {entry!r}")
        entries.append(SplitFingerprint(split=str(split), **entry))
    return tuple(entries)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> list[str]:
    return [] if value in choices else [f"{name}: expected one of {choices}, got {value!r}"]


def _check_positive(name: str, value: object, types: tuple[type, ...]) -> list[str]:
    if value is None:
        return []
    kind = "a whole number" if types == (int,) else "a number"
    if isinstance(value, bool) or not isinstance(value, types) or value <= 0:
        return [f"{name}: expected {kind} > 0, got {value!r}"]
    return []
