"""What a data set is: `DATA_ROOT/dataset.yaml`, read, checked, written.

The file is written once by whoever makes the data and travels with it. Two results can be compared
only when their descriptions agree, so it holds everything that changes the task.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.data.errors import DAMAGED, listed
from src.data.frames import IMAGE_EXTS, list_sequences
from src.data.yaml_text import load_plain_mapping, read_small_text, replace_entry, states_key
from src.paths import atomic_write, resolve

FILE_NAME = "dataset.yaml"
LIST_NAME = "dataset_files.json"  # beside it: what the fingerprint was computed from, by file
BLUR_KINDS = ("blur", "blur_gamma", "recorded", "unknown")
TRANSFERS = ("encoded", "linear", "unknown")
BIT_ORDERS = ("little", "big")
CONTENT_RESULTS = ("passed", "failed", "unknown")
ACCEPTED = "accepted: "  # with the reason of a person behind it
HASHED_END_BYTES = 1 << 20
LEVELS_ABOVE = 3  # SEQ/blur, SEQ, SPLIT, ROOT


class DescriptionError(ValueError):
    """A data description cannot be read; the message names the file, the key and what is needed."""


@dataclass(frozen=True)
class SplitFingerprint:
    """What a split of the data looked like when its description was written."""

    split: str  # folder below the data root
    sequences: int
    frames: int  # number of blurry ones
    names_sha256: str  # of the sorted names of all blurry frames, as `SEQ/NAME`
    ends_sha256: str  # of what `_end_files` yields: size, first and last MiB
    sizes_sha256: str = ""  # of names and sizes of all files; "" in older descriptions


@dataclass(frozen=True)
class DataDescription:
    """Everything two data sets must share for their results to be compared."""

    source: str  # where the frames come from, in words
    blur_kind: str = "unknown"  # mean of encoded frames or, "blur_gamma", of light; or "recorded"
    frames_averaged: tuple[int, ...] = ()  # sharp frames in a blurry one, all that occur
    transfer: str = "unknown"  # what the spikes integrate: encoded grey values or light
    threshold: float | None = None  # firing threshold in full-scale intensity times ticks
    ticks_per_second: float | None = None  # readouts of the spike sensor
    spike_height: int | None = None  # of the sensor; None where every sequence states it
    spike_width: int | None = None
    bit_order: str = "little"  # "little": first pixel in the least significant bit
    flip_rows: bool = True  # the rows of a `.dat` are stored bottom-up
    interpolator: str = "none"  # what made frames between the recorded ones
    offsets: tuple[tuple[str, int], ...] = ()  # source frames that a sequence begins early
    fingerprint: tuple[SplitFingerprint, ...] = ()
    content: str = "unknown"  # whether samples belong together, or "accepted: REASON"
    content_of: str = ""  # `content_key` of what `content` was found for

    def __post_init__(self) -> None:
        choices = {"blur_kind": BLUR_KINDS, "transfer": TRANSFERS, "bit_order": BIT_ORDERS}
        problems = [
            f"{name}: expected one of {allowed}, got {getattr(self, name)!r}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        floats = ("threshold", "ticks_per_second")
        numbers = [(name, getattr(self, name)) for name in (*floats, "spike_height", "spike_width")]
        numbers += [("frames_averaged", count) for count in self.frames_averaged]
        numbers += [(f"offsets.{name}", offset) for name, offset in self.offsets]
        for name, value in numbers:
            kind, what = ((int, float), "a") if name in floats else (int, "a whole")
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            is_number = is_number and 0 < value <= sys.float_info.max
            if value is not None and not is_number:
                problems.append(f"{name}: expected {what} number > 0, got {value!r}")
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
    try:
        return description_from_text(read_small_text(path), str(path))
    except ValueError as error:
        raise DescriptionError(str(error)) from error


def describe_root(root: str | Path) -> str:
    """Return the description of a data root as text, empty where it has none."""
    description = read_description(resolve(root))
    return "" if description is None else description_to_text(description)


def find_description(folder: str | Path) -> DataDescription | None:
    """Return the description of the data root that a folder (`SEQ/blur` or above) lies in, or None.

    A file of this name without an entry `source` is that of another program.
    """
    folder = Path(folder).resolve()
    for level in (folder, *list(folder.parents)[:LEVELS_ABOVE]):
        if states_key(level / FILE_NAME, "source"):
            return read_description(level)
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
    """Say in which fields two descriptions differ, except in what was found about the content."""
    lines = []
    for field in dataclasses.fields(DataDescription):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if field.name == "fingerprint":
            lines += [f"fingerprint of {line}" for line in fingerprint_differences(was, now)]
        elif was != now and field.name not in ("content", "content_of"):
            lines.append(f"{field.name} was {_shown(was)}, is {_shown(now)}")
    return lines


def text_differences(old: str, new: str, names: tuple[str, str]) -> list[str]:
    """Say in which fields descriptions differ that are texts, "" for none, of `names`."""
    if old == new:
        return []
    if not old or not new:
        one, other = names if old else names[::-1]
        return [f"{one} have a {FILE_NAME}, {other} have none"]
    where = (f"description of {name}" for name in names)
    return description_differences(*map(description_from_text, (old, new), where))


def fingerprint_data(
    root: str | Path,
    splits: Iterable[str],
    exts: Iterable[str] = IMAGE_EXTS,
    old: Iterable[SplitFingerprint] = (),
) -> tuple[SplitFingerprint, ...]:
    """Fingerprint the splits of a data root; reads a few files per sequence.

    Only files that a scan reads count, with images of the endings `exts`. Older versions counted
    every file; an entry of `old` that is right by their rule is returned as it is.
    """
    before, entries = {entry.split: entry for entry in old}, []
    for split in splits:
        entry, known = _fingerprint(split, _recorded(Path(root), split, exts)), before.get(split)
        if known is not None and fingerprint_differences([known], [entry]):
            everything = _fingerprint(split, _recorded(Path(root), split, None))
            entry = entry if fingerprint_differences([known], [everything]) else known
        entries.append(entry)
    return tuple(entries)


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
                lines.append(f"{split}: {field.name} was {str(was)[:8]}, is {str(now)[:8]}")
    return lines


def write_file_list(root: str | Path, splits: Iterable[str], exts: Iterable[str]) -> None:
    """Keep size and hash of the files behind a fingerprint, so that a change can name them."""
    path = Path(root) / LIST_NAME
    files = {split: _facts(Path(root), split, exts) for split in splits}
    text = json.dumps(files, indent=0, sort_keys=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with atomic_write(path) as partial:
            partial.write_text(text, encoding="utf-8")


def changed_files(root: str | Path, splits: Iterable[str], exts: Iterable[str]) -> str:
    """Name the files that are new, gone or changed since the list was written; "" where unknown."""
    try:
        stored = json.loads((Path(root) / LIST_NAME).read_text(encoding="utf-8"))
        was = {name: tuple(fact) for split in splits for name, fact in stored[split].items()}
    except DAMAGED:
        return ""
    now = {name: fact for split in splits for name, fact in _facts(Path(root), split, exts).items()}
    changed = {name for name in now.keys() & was.keys() if now[name] != was[name]}
    kinds = {"new": now.keys() - was.keys(), "gone": was.keys() - now.keys(), "changed": changed}
    return "; ".join(f"{kind}: {listed(sorted(n), 5)}" for kind, n in kinds.items() if n)


def write_fingerprint(root: str | Path, fingerprint: Iterable[SplitFingerprint]) -> Path:
    """Renew the fingerprint in `root/dataset.yaml`, or write a file that knows nothing else."""
    path = Path(root) / FILE_NAME
    if not path.is_file():
        known = DataDescription(Path(root).name, fingerprint=tuple(fingerprint))
        return write_description(root, known)
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


Recorded = list[tuple[Path, list[list[Path]]]]  # per sequence: its folder, files by kind


def _recorded(root: Path, split: str, exts: Iterable[str] | None) -> Recorded:
    """Return the files of each sequence that count; with `exts` None all that are visible."""
    images = None if exts is None else tuple(exts)
    found = []
    for sequence in list_sequences(root / split):
        kinds = {"blur": images, "sharp": images, "spike": images and (".dat", ".yaml")}
        if not (sequence / "spike").is_dir():  # else voxels are a cache that preparation writes
            kinds["spike_vox"] = images and (".npy",)
        files = [_visible_files(sequence / name, endings) for name, endings in kinds.items()]
        found.append((sequence, files))
    return found


def _visible_files(folder: Path, endings: tuple[str, ...] | None) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else ()
    visible = sorted(path for path in files if path.name[0] != ".")
    return [path for path in visible if endings is None or path.suffix.lower() in endings]


def _fingerprint(split: str, recorded: Recorded) -> SplitFingerprint:
    names, ends, sizes = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for sequence, folders in recorded:
        root = sequence.parents[1]
        for path in folders[0]:
            names.update(f"{sequence.name}/{path.name}\n".encode())
        for path in (path for files in folders for path in files if path.suffix != ".json"):
            sizes.update(_name_and_size(root, path))
        for path in _end_files(sequence, folders):
            ends.update(_name_and_size(root, path))
            ends.update(_read_ends(path))
    num_frames = sum(len(folders[0]) for _, folders in recorded)
    hashes = (digest.hexdigest() for digest in (names, ends, sizes))
    return SplitFingerprint(split, len(recorded), num_frames, *hashes)


def _facts(root: Path, split: str, exts: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Return by name what the fingerprint depends on: size, and a hash where content counts."""
    facts = {}
    for sequence, folders in _recorded(root, split, exts):
        ends = list(_end_files(sequence, folders))
        for path in (*ends, *(path for files in folders for path in files)):
            name = path.relative_to(root).as_posix()
            content = hashlib.sha256(_read_ends(path)).hexdigest()[:16] if path in ends else ""
            facts.setdefault(name, (path.stat().st_size, content))
    return facts


def _name_and_size(root: Path, path: Path) -> bytes:
    return f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode()


def _end_files(sequence: Path, folders: Iterable[list[Path]]) -> Iterator[Path]:
    """Yield first and last file of each recorded folder, how the bits lie, and the exposures."""
    for files in folders:
        recorded = [path for path in files if path.suffix not in (".yaml", ".json")]
        yield from recorded[:1] + recorded[1:][-1:]
        yield from (path for path in files if path.suffix == ".yaml")
    if (sequence / "exposures.csv").is_file():
        yield sequence / "exposures.csv"


def _read_ends(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(HASHED_END_BYTES)
        handle.seek(max(size - HASHED_END_BYTES, len(start)))
        return start + handle.read()
