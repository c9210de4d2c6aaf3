"""What a raw source is: options in, a plan of sequences and a data description out.

Every module of this folder that reads a downloaded data set has one function
`plan(options) -> SourcePlan`; it looks at the folder, writes nothing, and lists every problem. What
carries out the plan is `src/prepare/sources/run.py`.
"""

import dataclasses
import hashlib
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from src.data.description import DataDescription
from src.data.errors import BadFileError, DataSetError
from src.data.frames import is_cut_short
from src.data.simulation.simulator import TRANSFERS
from src.paths import atomic_write
from src.prepare.findings import listed

# Kinds of blur that can be made from sharp frames, and the camera curve of each (GoPro's names).
BLUR_GAMMAS: Mapping[str, float | None] = {"blur": None, "blur_gamma": 2.2}
INTERPOLATORS = ("none", "linear")
# The splits of a downloaded data set and what they are called in ours.
OUR_SPLITS: Mapping[str, str] = {"train": "train", "test": "val"}
# How arrays of spikes lie; means nothing where no spikes are read.
ARRAY_OPTIONS = ("axes", "key", "columns")
STREAM_NAME = "spike.dat"
HASHED_PIECE_BYTES = 16 << 10
# Folders as they come out of the archives; they usually lie side by side.
DOWNLOADED = ("GOPRO_Large_all", "GOPRO_Large", "GOPRO_Large_spike_seq", "Spike_GOPRO_Large_all")


@dataclass(frozen=True)
class SourceOptions:
    """What the command line says; None is the default of the source.

    Attributes:
        input: the downloaded folder, or the folder that holds it and its siblings.
        blur_kind: "blur" (mean of encoded frames) or "blur_gamma" (mean of light, power 2.2).
        threshold: firing threshold of simulated spikes, in full-scale intensity times ticks.
        transfer: what simulated spikes integrate, "encoded" grey values or "linear" light.
        downscale: RGB pixels per spike pixel, in each direction.
        interpolator: what makes the light between source frames, "none" or "linear".
        ticks_per_frame: readouts of the spike sensor per source frame; needs an interpolator.
        frames_averaged: source frames (or ticks, see the source) in one blurry frame.
        stride: from the start of one exposure to the start of the next, in the same unit.
        frames_per_second: of the source frames.
        seed: of the simulated sensor.
        axes: order of the axes of spike arrays, such as "THW".
        key: name of the array in a container of several.
        columns: order of the columns of event lists.
        accept: why frames and spikes that do not belong together are accepted; None: they are not.

    Raises:
        DataSetError: values that cannot be, all of them.
    """

    input: Path
    blur_kind: str = "blur"
    threshold: float = 2.0
    transfer: str = "encoded"
    downscale: int = 2
    interpolator: str | None = None
    ticks_per_frame: int | None = None
    frames_averaged: int | None = None
    stride: int | None = None
    frames_per_second: float | None = None
    seed: int = 0
    axes: str | None = None
    key: str | None = None
    columns: str = "tyxp"
    accept: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"--{name} {value!r}: choose one of {', '.join(choices)}"
            for name, value, choices in (
                ("blur_kind", self.blur_kind, tuple(BLUR_GAMMAS)),
                ("transfer", self.transfer, TRANSFERS),
                ("interpolator", self.interpolator or "none", INTERPOLATORS),
            )
            if value not in choices
        ]
        for name in (
            *("threshold", "downscale", "ticks_per_frame", "frames_averaged"),
            *("stride", "frames_per_second"),
        ):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                problems.append(f"--{name} {value}: a number above 0 is needed")
        if self.seed < 0:
            problems.append(f"--seed {self.seed}: it must not be negative")
        if problems:
            raise DataSetError("options of the source", problems)


def refuse_options(options: SourceOptions, names: Iterable[str], reason: str) -> None:
    """Refuse options that were given, and mean nothing to a source.

    Args:
        options: what the command line says.
        names: fields of it that do not apply; one that has its default value counts as not given.
        reason: why they do not apply.

    Raises:
        DataSetError: one sentence for each of them.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    problems = [
        f"--{name} {getattr(options, name)} does not apply: {reason}"
        for name in names
        if getattr(options, name) != defaults[name]
    ]
    if problems:
        raise DataSetError("options of the source", problems)


class PlannedSequence(Protocol):
    """One sequence of the output, not made yet. It is picklable and holds no frames.

    Attributes:
        split: our split, "train" or "val".
        name: folder of the sequence.
        num_inputs: frames and files to read.
        num_exposures: blurry frames that will be written.
        out_bytes: estimate of what will be written, voxels not counted.
        seconds: length of the recording.
        identity: everything the output depends on, as JSON values.
    """

    split: str
    name: str
    num_inputs: int
    num_exposures: int
    out_bytes: int
    seconds: float
    identity: Mapping[str, object]

    def write(self, folder: Path) -> list[str]:
        """Write blur, sharp, spike and exposures.csv into a folder that exists and is empty.

        Returns:
            notes for the user, such as frames that were dropped, by name.

        Raises:
            BadFileError: an input file that cannot be used.
            DataSetError: inputs that contradict each other.
        """
        ...


@dataclass(frozen=True)
class SourcePlan:
    """What is to be made.

    Attributes:
        sequences: what to write.
        description: of the data set that they make, without fingerprint.
        notes: what the user should know before it starts.
    """

    sequences: tuple[PlannedSequence, ...]
    description: DataDescription
    notes: tuple[str, ...] = ()


def find_downloaded(given: Path, name: str) -> Path | None:
    """Return the downloaded folder `name`: `given` itself, a folder in it, or one beside it.

    Beside it is looked only where `given` is a downloaded folder itself. None: there is none.
    """
    folders = [given] if given.name == name else [given / name]
    if given.name in DOWNLOADED:
        folders.append(given.parent / name)
    return next((folder for folder in folders if folder.is_dir()), None)


# ---------------------------------------------------------------- which data set a folder is

GOPRO_NAME = re.compile(r"(?:GOPR|GP)\d+_(\d\d)_(\d\d)")
X4K_NAME = re.compile(r"(?:occ\d+\.\d+|TEST\d+_\w+)(?:\.mp4)?")
SPLITS = ("train", "test", "val", "encoded_train", "encoded_test")
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
    for inside in _sequence_folders(folder):
        names = {path.name for path in inside.iterdir()}
        if {"blur", "sharp", "exposures.csv"} <= names:
            return RECORDED
        if GOPRO_NAME.fullmatch(inside.name):
            if "sharp" in names:
                return GOPRO_PAIRS
            has_spikes = names & {"spike", STREAM_NAME}
            return GOPRO_SPIKES if has_spikes else GOPRO_FRAMES
        if any(X4K_NAME.fullmatch(name) for name in names):
            return X4K
    return None


def refuse_other(folder: Path, wanted: str, others: tuple[str, ...]) -> None:
    """Refuse a folder that is another data set than the source reads.

    Args:
        folder: what was given as --input.
        wanted: what the source reads, in words.
        others: what it must not be.

    Raises:
        DataSetError: it is one of them; the source for it is named.
    """
    found = recognise(folder)
    if found is not None and found in others:
        raise DataSetError(
            str(folder), [f"this is not {wanted}; it looks like {found}: {ADVICE[found]}"]
        )


def _sequence_folders(folder: Path) -> Iterator[Path]:
    for split in SPLITS:
        inside = folder / split
        if inside.is_dir():
            yield from sorted(
                path for path in inside.iterdir() if path.is_dir() and path.name[0] != "."
            )


# ---------------------------------------------------------------- files that are copied


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file, whole or not at all.

    Raises:
        BadFileError: the source cannot be read.
    """
    with atomic_write(target) as partial:
        try:
            shutil.copyfile(source, partial)
        except OSError as error:
            raise BadFileError(source, f"cannot be copied: {error.strerror}") from error


def file_size(path: Path) -> int:
    """Return the bytes of a file.

    Raises:
        BadFileError: it is not there, or a link that leads nowhere.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error


def refuse_cut_short(where: str, images: Sequence[Path]) -> None:
    """Refuse images that are copied without being decoded and whose end is missing.

    Raises:
        DataSetError: all of them, by name.
    """
    problems = [
        f"{path}: empty, or its end is missing; copy or download it again"
        for path in images
        if is_cut_short(path)
    ]
    if problems:
        raise DataSetError(where, problems)


def sample_sha256(paths: Sequence[Path]) -> str:
    """Hash pieces of the first, the middle and the last of files; see `pieces_sha256`.

    Raises:
        BadFileError: a file cannot be read.
    """
    return pieces_sha256([paths[i] for i in sorted({0, len(paths) // 2, len(paths) - 1})])


def pieces_sha256(paths: Sequence[Path]) -> str:
    """Hash the first, middle and last bytes of files, in order.

    Tells other recordings of the same size apart; a change of a few bytes elsewhere is not seen.

    Raises:
        BadFileError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = file_size(path)
        last = max(size - HASHED_PIECE_BYTES, 0)
        try:
            with path.open("rb") as handle:
                for start in (0, last // 2, last):
                    handle.seek(start)
                    digest.update(handle.read(HASHED_PIECE_BYTES))
        except OSError as error:
            raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def inputs_sha256(paths: Iterable[Path], *more: str) -> str:
    """Hash names and sizes of files and other lines of text, which all belong to an identity.

    Raises:
        BadFileError: a file cannot be read.
    """
    lines = [f"{path.parent.name}/{path.name} {file_size(path)}" for path in paths]
    return hashlib.sha256("\n".join([*lines, *more]).encode()).hexdigest()


def names_or_none(names: Sequence[str]) -> str:
    """Return names in one line, of many the first ones."""
    return listed(list(names)) or "none"
