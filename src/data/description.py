"""What a data set is: `DATA_ROOT/dataset.yaml`, read, checked, written.

The file is written once by whoever makes the data and travels with it. Two results can be compared
only when their descriptions agree, so it holds everything that changes the task.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.data.frames import list_sequences
from src.data.yaml_text import load_plain_mapping, replace_entry
from src.paths import atomic_write, resolve

FILE_NAME = "dataset.yaml"
BLUR_KINDS = ("blur", "blur_gamma", "recorded", "unknown")
TRANSFERS = ("encoded", "linear", "unknown")
BIT_ORDERS = ("little", "big")
CONTENT_RESULTS = ("passed", "failed", "unknown")
ACCEPTED = "accepted: "  # with the reason of a person behind it
MAX_FILE_BYTES = 1 << 20
HASHED_END_BYTES = 1 << 20
LEVELS_ABOVE = 3  # SEQ/blur, SEQ, SPLIT, ROOT


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
        sizes_sha256: hash of names and sizes of all files of these folders, so that a picture that
            was replaced in the middle is noticed; "" in descriptions of older versions.
    """

    split: str
    sequences: int
    frames: int
    names_sha256: str
    ends_sha256: str
    sizes_sha256: str = ""


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
        spike_height, spike_width: pixels of the spike sensor; None where every sequence states it.
        bit_order: "little" (first pixel in the least significant bit) or "big".
        flip_rows: True where the rows of a `.dat` are stored bottom-up.
        interpolator: what made frames between the recorded ones; "none".
        offsets: by the name `SPLIT/SEQUENCE`, the source frames by which the exposures of a
            sequence begin earlier than its frame numbers say; those with 0 are left out.
        fingerprint: one entry per split, see `fingerprint_data`.
        content: whether samples of blur, sharp and spikes were found to belong together: "passed",
            "failed", "unknown" (not checked yet), or "accepted: REASON" where they were not and a
            person says that they do. Two data sets may differ in it.
        content_of: hash of what `content` was found for, see `content_key`; "" where unknown.

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
    offsets: tuple[tuple[str, int], ...] = ()
    fingerprint: tuple[SplitFingerprint, ...] = ()
    content: str = "unknown"
    content_of: str = ""

    def __post_init__(self) -> None:
        choices = {"blur_kind": BLUR_KINDS, "transfer": TRANSFERS, "bit_order": BIT_ORDERS}
        problems = [
            f"{name}: expected one of {allowed}, got {getattr(self, name)!r}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        numbers = [
            ("threshold", self.threshold, (int, float)),
            ("ticks_per_second", self.ticks_per_second, (int, float)),
            ("spike_height", self.spike_height, int),
            ("spike_width", self.spike_width, int),
        ]
        numbers += [("frames_averaged", count, int) for count in self.frames_averaged]
        numbers += [(f"offsets.{name}", offset, int) for name, offset in self.offsets]
        for name, value, kind in numbers:
            is_number = isinstance(value, kind) and not isinstance(value, bool) and value > 0
            if value is not None and not is_number:
                what = "a whole number" if kind is int else "a number"
                problems.append(f"{name}: expected {what} > 0, got {value!r}")
        for name in ("source", "interpolator", "content_of"):
            value = getattr(self, name)
            if not isinstance(value, str) or (not value and name != "content_of"):
                problems.append(f"{name}: expected a text, got {value!r}")
        if not isinstance(self.flip_rows, bool):
            problems.append(f"flip_rows: expected true or false, got {self.flip_rows!r}")
        is_accepted = str(self.content).startswith(ACCEPTED) and self.content != ACCEPTED
        if self.content not in CONTENT_RESULTS and not is_accepted:
            allowed = ", ".join((*CONTENT_RESULTS, f"{ACCEPTED}REASON"))
            problems.append(f"content: expected one of {allowed}, got {self.content!r}")
        if (self.spike_height is None) != (self.spike_width is None):
            problems.append("spike_height and spike_width: give both or none")
        if problems:
            raise ValueError("; ".join(problems))


def read_description(root: str | Path) -> DataDescription | None:
    """Read `root/dataset.yaml`; None where there is no such file."""
    path = Path(root) / FILE_NAME
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DescriptionError(f"{path}: {size} bytes; a description has a few thousand")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{path}: not a plain YAML file: {error}") from error
    return description_from_text(text, str(path))


def describe_root(root: str | Path) -> str:
    """Return the description of a data root as text, empty where it has none."""
    description = read_description(resolve(root))
    return "" if description is None else description_to_text(description)


def find_description(folder: str | Path) -> DataDescription | None:
    """Return the description of the data root that a folder lies in; None where there is none.

    The folder may be `SEQ/blur`, `SEQ`, `SPLIT` or the root itself.
    """
    folder = Path(folder).resolve()
    for level in (folder, *list(folder.parents)[:LEVELS_ABOVE]):
        description = read_description(level)
        if description is not None:
            return description
    return None


def write_description(root: str | Path, description: DataDescription) -> Path:
    """Write `root/dataset.yaml` whole or not at all and return its path."""
    return _write(root, description_to_text(description))


def description_to_text(description: DataDescription) -> str:
    """Return a description as the YAML that `dataset.yaml` holds; for checkpoints and results."""
    values = dataclasses.asdict(description)
    values["frames_averaged"] = list(description.frames_averaged)
    values["offsets"] = dict(description.offsets)
    values["fingerprint"] = _fingerprint_values(description.fingerprint)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def description_from_text(text: str, where: str) -> DataDescription:
    """Return the description that a YAML text holds; `where` names the text in messages."""
    try:
        values = load_plain_mapping(text, where)
    except ValueError as error:
        raise DescriptionError(str(error)) from error
    known = {field.name for field in dataclasses.fields(DataDescription)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise DescriptionError(f"{where}: unknown keys {unknown}; known are {sorted(known)}")
    if "source" not in values:
        raise DescriptionError(f"{where}: 'source' is missing; write where the frames come from")
    try:
        counts = values.get("frames_averaged")
        counts = () if counts is None else (counts,) if isinstance(counts, int) else counts
        if not isinstance(counts, (list, tuple)):
            raise ValueError(f"frames_averaged: expected a list of whole numbers, got {counts!r}")
        offsets = _mapping(values, "offsets", "lines 'SPLIT/SEQUENCE: number'")
        values["frames_averaged"] = tuple(counts)
        values["offsets"] = tuple((str(name), offset) for name, offset in sorted(offsets.items()))
        splits = _mapping(values, "fingerprint", "one mapping per split")
        values["fingerprint"] = tuple(
            SplitFingerprint(str(split), **_mapping(splits, split, "a mapping per split"))
            for split in splits
        )
        return DataDescription(**values)
    except (TypeError, ValueError) as error:
        raise DescriptionError(f"{where}: {error}") from error


def description_differences(old: DataDescription, new: DataDescription) -> list[str]:
    """Say in which fields two descriptions differ, one sentence each.

    An empty list means that results on the two can be compared. Where the data lie is no part of a
    description, so a copied folder does not differ; nor does what was found about the content.
    """
    lines = []
    for field in dataclasses.fields(DataDescription):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if field.name == "fingerprint":
            lines += [f"fingerprint of {line}" for line in fingerprint_differences(was, now)]
        elif was != now and field.name not in ("content", "content_of"):
            lines.append(f"{field.name} was {_shown(was)}, is {_shown(now)}")
    return lines


def text_differences(old: str, new: str, names: tuple[str, str]) -> list[str]:
    """Say in which fields two descriptions differ, given as `description_to_text` writes them.

    Two empty texts, of data without a description, do not differ; one that is empty is a
    difference. `names` says whose the two are.
    """
    if old == new:
        return []
    if not old or not new:
        one, other = names if old else names[::-1]
        return [f"{one} have a {FILE_NAME}, {other} have none"]
    texts = zip((old, new), names, strict=True)
    return description_differences(
        *(description_from_text(text, f"description of {name}") for text, name in texts)
    )


def fingerprint_data(root: str | Path, splits: Iterable[str]) -> tuple[SplitFingerprint, ...]:
    """Fingerprint the splits of a data root in the given order; reads a few files per sequence.

    What preparation writes (`spike_vox` beside `spike`) does not count, so preparing data does not
    change its fingerprint.
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
            if was != now and "" not in (was, now):  # older versions know fewer hashes
                lines.append(f"{split}: {field.name} was {was}, is {now}")
    return lines


def write_fingerprint(root: str | Path, fingerprint: Iterable[SplitFingerprint]) -> Path:
    """Renew the fingerprint in `root/dataset.yaml`, its other lines and comments unchanged.

    Where there is no file, one is written whose other values are unknown.
    """
    path = Path(root) / FILE_NAME
    if not path.is_file():
        return write_description(
            root, DataDescription(Path(root).name, fingerprint=tuple(fingerprint))
        )
    text = path.read_text(encoding="utf-8")
    return _write(root, replace_entry(text, "fingerprint", _fingerprint_values(fingerprint)))


def content_key(description: DataDescription) -> str:
    """Return a hash of a description; where it differs from `content_of`, `content` is unknown."""
    values = dataclasses.asdict(dataclasses.replace(description, content="unknown", content_of=""))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def write_content(root: str | Path, content: str) -> Path:
    """Write into `root/dataset.yaml` what was found out about the files as they are described."""
    path = Path(root) / FILE_NAME
    text = path.read_text(encoding="utf-8")
    found = dataclasses.replace(description_from_text(text, str(path)), content=content)
    text = replace_entry(text, "content", content)
    return _write(root, replace_entry(text, "content_of", content_key(found)))


def content_of(description: DataDescription) -> str:
    """Return the content of a description; "unknown" where it was found for another state."""
    is_current = description.content_of == content_key(description)
    return description.content if is_current else "unknown"


def _fingerprint_values(fingerprint: Iterable[SplitFingerprint]) -> dict[str, dict]:
    return {entry.pop("split"): entry for entry in map(dataclasses.asdict, fingerprint)}


def _write(root: str | Path, text: str) -> Path:
    path = Path(root) / FILE_NAME
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _shown(value: object) -> str:
    """Return a value as the file has it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    return "not stated" if value is None else str(value)


def _mapping(values: Mapping[str, Any], key: str, expected: str) -> Mapping:
    value = {} if values.get(key) is None else values[key]
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: expected {expected}, got {value!r}")
    return value


def _fingerprint_split(root: Path, split: str) -> SplitFingerprint:
    sequences = list_sequences(root / split)
    names, ends, sizes = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    num_frames = 0
    for sequence in sequences:
        # Voxels are the recording where there are no spikes, else a cache that preparation writes.
        recorded = ["blur", "sharp", "spike"]
        recorded += [] if (sequence / "spike").is_dir() else ["spike_vox"]
        folders = [_visible_files(sequence / name) for name in recorded]
        num_frames += len(folders[0])
        for path in folders[0]:
            names.update(f"{sequence.name}/{path.name}\n".encode())
        for path in (path for files in folders for path in files if path.suffix != ".json"):
            sizes.update(_name_and_size(root, path))
        for path in _end_files(sequence, folders):
            ends.update(_name_and_size(root, path))
            ends.update(_read_ends(path))
    hashes = (digest.hexdigest() for digest in (names, ends, sizes))
    return SplitFingerprint(split, len(sequences), num_frames, *hashes)


def _name_and_size(root: Path, path: Path) -> bytes:
    return f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode()


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
        handle.seek(max(size - HASHED_END_BYTES, len(start)))
        return start + handle.read()
