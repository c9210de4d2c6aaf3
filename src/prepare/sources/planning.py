"""What a raw source is: options in, a plan of sequences and a data description out.

Every module of this folder that reads a downloaded data set has one function
`plan(options) -> SourcePlan`; it looks at the folder, writes nothing, and lists every problem.
`src/prepare/sources/run.py` carries out the plan. What cannot be read is a BadFileError of that
file, what is missing or contradictory a DataSetError; both say what to do.
"""

import dataclasses
import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from src.data.description import DataDescription
from src.data.errors import BadFileError, DataSetError, listed, problems_of
from src.data.frames import is_cut_short, list_frames, list_sequences
from src.data.scanning import number_frames
from src.paths import atomic_write

IMAGE_EXTS = (".png", ".jpg", ".jpeg", ".bmp")
# Kinds of blur that can be made from sharp frames, and the camera curve of each (GoPro's names).
BLUR_GAMMAS: Mapping[str, float | None] = {"blur": None, "blur_gamma": 2.2}
# The splits of a downloaded data set and what they are called in ours.
OUR_SPLITS: Mapping[str, str] = {"train": "train", "test": "val"}
# How arrays of spikes lie; means nothing where no spikes are read.
ARRAY_OPTIONS = ("axes", "key", "columns")
STREAM_NAME = "spike.dat"
HASHED_BYTES = 16 << 10
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class SourceOptions:
    """What the command line says; None is the default of the source."""

    input: Path  # the downloaded folder, or the folder that holds it and its siblings
    blur_kind: str = "blur"  # mean of encoded frames, or "blur_gamma", of light (power 2.2)
    threshold: float = 2.0  # of simulated spikes, in full-scale intensity times ticks
    transfer: str = "encoded"  # what they integrate: encoded grey values or "linear" light
    downscale: int = 2  # RGB pixels per spike pixel, in each direction
    interpolator: str | None = None  # makes light between source frames: "none" or "linear"
    ticks_per_frame: int | None = None  # readouts per source frame; needs an interpolator
    frames_averaged: int | None = None  # source frames (or ticks) in one blurry frame; odd
    stride: int | None = None  # from the start of one exposure to that of the next
    frames_per_second: float | None = None  # of the source frames
    seed: int = 0  # of the simulated sensor
    axes: str | None = None  # order of the axes of spike arrays, such as "THW"
    key: str | None = None  # name of the array in a container of several
    columns: str = "tyxp"  # order of the columns of event lists
    accept: str | None = None  # why frames and spikes that do not match are accepted

    def __post_init__(self) -> None:
        numbers = ("threshold", "downscale", "ticks_per_frame", "frames_averaged", "stride")
        given = {name: getattr(self, name) for name in (*numbers, "frames_per_second")}
        problems = [
            f"--{name} {value}: a number above 0 is needed"
            for name, value in given.items()
            if value is not None and not (value > 0 and math.isfinite(value))
        ]
        if self.frames_averaged is not None and self.frames_averaged % 2 == 0:
            problems.append(f"--frames_averaged {self.frames_averaged}: an odd number has a middle")
        if self.seed < 0:
            problems.append(f"--seed {self.seed}: it must not be negative")
        if problems:
            raise DataSetError("options of the source", problems)

    @property
    def ticks_per_second(self) -> float:
        """Readouts of the spike sensor, of options that are complete."""
        return self.frames_per_second * self.ticks_per_frame


def refuse_options(options: SourceOptions, names: Iterable[str], reason: str) -> None:
    """Refuse options that were given (have another value than their default) and do not apply."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    given = {name: getattr(options, name) for name in names}
    problems = [
        f"--{name} {value} does not apply: {reason}"
        for name, value in given.items()
        if value != defaults[name]
    ]
    if problems:
        raise DataSetError("options of the source", problems)


@dataclass(frozen=True)
class PlannedSequence:
    """One sequence of the output, not made yet. It is picklable and holds no frames.

    `write` writes blur, sharp, spike and exposures.csv into an empty folder and returns notes for
    the user.
    """

    split: str  # ours, "train" or "val"
    name: str  # folder of the sequence
    num_inputs: int  # frames and files to read
    num_exposures: int  # blurry frames that will be written
    out_bytes: int  # estimate of what will be written, voxels not counted
    seconds: float  # length of the recording
    spike_size: tuple[int, int]  # height and width of the spike sensor
    identity: Mapping[str, object]  # everything the output depends on, as JSON values
    write: Callable[[Path], list[str]]

    @property
    def where(self) -> str:
        """What messages call the sequence; also its folder below DATA.ROOT."""
        return f"{self.split}/{self.name}"


@dataclass(frozen=True)
class SourcePlan:
    """What is to be made."""

    sequences: tuple[PlannedSequence, ...]
    description: DataDescription  # of the data set that they make, without fingerprint
    notes: tuple[str, ...] = ()  # what the user should know before it starts


def make_all(where: Path, make: Callable[..., Value], items: Iterable[tuple]) -> list[Value]:
    """Return `make(*item)` of all items; what is wrong with one file is listed once."""
    made: list[Value] = []
    problems: dict[str, str] = {}
    for item in items:
        try:
            made.append(make(*item))
        except BadFileError as error:
            problems.setdefault(str(error.path), str(error))
        except DataSetError as error:
            problems |= {problem: problem for problem in problems_of(error)}
    if problems:
        raise DataSetError(str(where), problems.values())
    return made


def with_name(where: str, line: str) -> str:
    """Return a line that begins with the sequence it is about; some begin so already."""
    return f"{where}: {line.removeprefix(f'{where}: ')}"


def common(values: Iterable[Item]) -> Item | None:
    """Return the value that all share; None where they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def collected(sequences: Sequence[PlannedSequence]) -> dict[str, object]:
    """Return what a description collects from the sequences of a source."""
    facts = {sequence.where: sequence.identity for sequence in sequences}
    offsets = sorted((where, fact.get("offset", 0)) for where, fact in facts.items())
    height, width = common(sequence.spike_size for sequence in sequences) or (None, None)
    return {
        "frames_averaged": tuple(sorted({fact["frames_averaged"] for fact in facts.values()})),
        "offsets": tuple((where, offset) for where, offset in offsets if offset),
        "spike_height": height,
        "spike_width": width,
    }


# ---------------------------------------------------------------- which data set a folder is

GOPRO_NAME = re.compile(r"(?:GOPR|GP)\d+_(\d\d)_(\d\d)")
X4K_NAME = re.compile(r"(?:occ\d+\.\d+|TEST\d+_\w+)(?:\.mp4)?")
KNOWN_SPLITS = ("train", "test", "val", "encoded_train", "encoded_test", "train_GT", "test_GT")
GOPRO_PAIRS, GOPRO_SPIKES, GOPRO_FRAMES, X4K, RECORDED = (
    "GOPRO_Large (blurry and sharp frames, no source frames)",
    "GOPRO_Large_spike_seq or Spike_GOPRO_Large_all (spikes of GOPRO_Large)",
    "GOPRO_Large_all (all frames of GoPro)",
    "X4K1000FPS",
    "own recordings (blur, sharp and exposures.csv)",
)
ADVICE = {
    GOPRO_PAIRS: "use --source gopro with GOPRO_Large_all beside it, or --source spk_gopro with "
    "the published spikes beside it",
    GOPRO_SPIKES: "use --source spk_gopro with GOPRO_Large beside it",
    GOPRO_FRAMES: "use --source gopro",
    X4K: "use --source x4k1000fps",
    RECORDED: "use --source folders",
}


def recognise(folder: Path) -> str | None:
    """Return what a folder looks like by the names in it, one of the above; None: nothing known."""
    for split, inside in sequence_folders(folder, KNOWN_SPLITS):
        names = {path.name for path in inside.iterdir()}
        if {"blur", "sharp", "exposures.csv"} <= names:
            return RECORDED
        if GOPRO_NAME.fullmatch(inside.name):
            if "sharp" in names or split.endswith("_GT"):
                return GOPRO_PAIRS
            return GOPRO_SPIKES if names & {"spike", STREAM_NAME} else GOPRO_FRAMES
        if any(X4K_NAME.fullmatch(name) for name in names):
            return X4K
    return None


def refuse_other(folder: Path, wanted: str, *accepted: str) -> None:
    """Refuse a folder that is known as another data set than the accepted ones."""
    found = recognise(folder)
    if found is not None and found not in accepted:
        reason = f"this is not {wanted}; it looks like {found}: {ADVICE[found]}"
        raise DataSetError(str(folder), [reason])


def sequence_folders(root: Path, splits: Iterable[str] = OUR_SPLITS) -> list[tuple[str, Path]]:
    """Return (their split, folder) of the sequences of a downloaded folder, in order of names."""
    present = [split for split in splits if (root / split).is_dir()]
    return [(split, folder) for split in present for folder in list_sequences(root / split)]


def find_pairs(
    blurry_folder: Path, sharp_folder: Path, exts: tuple[str, ...] = IMAGE_EXTS
) -> dict[int, tuple[Path, Path]]:
    """Return number -> (blurry, sharp) of the frames of a sequence, in order of the numbers."""
    blurry, sharp = (list_frames(folder, exts) for folder in (blurry_folder, sharp_folder))
    problems = [] if blurry else [f"no images ({', '.join(exts)}) in {blurry_folder.name}"]
    for partner, names in (
        ("sharp", blurry.keys() - sharp.keys()),
        ("blurry", sharp.keys() - blurry.keys()),
    ):
        if names:
            found = f"{len(names)} without a {partner} frame of that name"
            problems.append(f"{found}: {listed(sorted(names))}")
    if problems:
        is_shared = blurry_folder.parent == sharp_folder.parent
        where = sharp_folder.parent if is_shared else f"{blurry_folder} and {sharp_folder}"
        raise DataSetError(str(where), problems)
    numbers = number_frames(blurry_folder, blurry)
    names = sorted(blurry, key=numbers.__getitem__)
    return {numbers[name]: (blurry[name], sharp[name]) for name in names}


# ---------------------------------------------------------------- files that are copied


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file, whole or not at all."""
    with atomic_write(target) as partial:
        try:
            shutil.copyfile(source, partial)
        except OSError as error:
            raise BadFileError(source, f"cannot be copied: {error.strerror}") from error


def file_size(path: Path) -> int:
    """Return the bytes of a file."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error


def refuse_cut_short(where: str, images: Iterable[Path]) -> None:
    """Refuse images that are copied without being decoded and whose end is missing."""
    broken = [path for path in images if is_cut_short(path)]
    if broken:
        reason = "empty, or its end is missing; copy or download it again"
        raise DataSetError(where, [f"{path}: {reason}" for path in broken])


def sample_sha256(paths: Sequence[Path]) -> str:
    """Hash parts of the first, the middle and the last of files; see `parts_sha256`."""
    return parts_sha256([paths[i] for i in sorted({0, len(paths) // 2, len(paths) - 1})])


def parts_sha256(paths: Sequence[Path]) -> str:
    """Hash the first, middle and last bytes of files, in order.

    Tells recordings of the same size apart; a change of a few bytes elsewhere is not seen.
    """
    digest = hashlib.sha256()
    for path in paths:
        last = max(file_size(path) - HASHED_BYTES, 0)
        try:
            with path.open("rb") as handle:
                for start in (0, last // 2, last):
                    handle.seek(start)
                    digest.update(handle.read(HASHED_BYTES))
        except OSError as error:
            raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def inputs_sha256(paths: Iterable[Path], *more: str) -> str:
    """Hash names and sizes of files and other lines of text, which all belong to an identity."""
    lines = [f"{path.parent.name}/{path.name} {file_size(path)}" for path in paths]
    return hashlib.sha256("\n".join([*lines, *more]).encode()).hexdigest()
