"""GOPRO_Large_all: all sharp frames at 240 per second; GOPRO_Large beside it: the released pairs.

A sequence is named `GOPRxxxx_nn_zz`: nn source frames make a blurry frame, and the exposures of a
sequence begin zz source frames early, so that blurry frame k is the mean of source frames
[k*n - zz, k*n - zz + n). Where zz > 0 the first exposure begins before the sequence: that frame is
dropped.

Names are only relied on where there is nothing to compare. With the pairs the offset of each
sequence is found by searching for its first sharp frame among the source frames, every pair is
checked against the source, and the released files are the blurry and sharp frames.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.exposures import frame_index
from src.data.frames import list_frames, read_image
from src.data.simulation.blur import SOURCE_FRAMES_PER_SECOND
from src.prepare.sources.plan import (
    ARRAY_OPTIONS,
    GOPRO_NAME,
    GOPRO_PAIRS,
    GOPRO_SPIKES,
    OUR_SPLITS,
    RECORDED,
    X4K,
    SourceOptions,
    SourcePlan,
    copy_file,
    find_downloaded,
    refuse_options,
    refuse_other,
)
from src.prepare.sources.simulate import (
    Cameras,
    PngSink,
    SimulatedExposure,
    SimulatedSequence,
    cameras_of,
    frame_exposure,
    simulated_description,
    size_problem,
)
from src.prepare.sources.video import FrameFolder, open_folder

ALL_FRAMES, PAIRS = "GOPRO_Large_all", "GOPRO_Large"
# Released frames differ from recomputed ones by rounding only.
MAX_MEAN_ERROR = 1.0  # grey levels


@dataclass(frozen=True)
class GoproName:
    """What the name of a GoPro sequence says.

    Attributes:
        averaged: source frames in a blurry frame (nn).
        offset: source frames by which its exposures begin early (zz).
    """

    averaged: int
    offset: int


def parse_name(name: str) -> GoproName:
    """Return what `GOPRxxxx_nn_zz` says.

    Raises:
        ValueError: another name, or an even nn, which has no middle frame.
    """
    match = GOPRO_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a sequence of GoPro; they are named like GOPR0384_11_05")
    averaged, offset = map(int, match.groups())
    if averaged % 2 == 0:
        raise ValueError(f"{name!r}: {averaged} source frames have no middle one")
    return GoproName(averaged, offset)


def plan(options: SourceOptions) -> SourcePlan:
    """Return what to make of GOPRO_Large_all; see `SourceOptions`.

    Raises:
        DataSetError: options of other sources, no sequences, gaps in the frames, or pairs that do
            not belong to them; all problems of all sequences.
    """
    _refuse_options(options)
    all_frames, pairs_root = _find_folders(options.input)
    cameras = cameras_of(options, interpolator="linear", frames_per_second=SOURCE_FRAMES_PER_SECOND)
    sequences, problems = [], []
    for split, folder in _folders_in(all_frames):
        try:
            pairs = None
            if pairs_root is not None:
                pairs = read_pairs(pairs_root / split / folder.name, options.blur_kind)
            sequences.append(_sequence(split, folder, pairs, cameras))
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    if not sequences and not problems:
        problems.append("has no sequences in train or test")
    if problems:
        raise DataSetError(str(all_frames), problems)
    return _source_plan(sequences, cameras, pairs_root)


def _refuse_options(options: SourceOptions) -> None:
    problems = [
        f"--{name}: the names of GoPro's sequences say it; leave it out"
        for name in ("frames_averaged", "stride", "frames_per_second")
        if getattr(options, name) is not None
    ]
    if problems:
        raise DataSetError("options of the source", problems)
    refuse_options(options, ARRAY_OPTIONS, "the sequences are frames, no spikes are read")


def _find_folders(given: Path) -> tuple[Path, Path | None]:
    """Return the folders of all frames and of the pairs; the latter is None where there is none.

    Raises:
        DataSetError: no folder of all frames.
    """
    frames = find_downloaded(given, ALL_FRAMES)
    if frames is None:
        refuse_other(given, ALL_FRAMES, (GOPRO_PAIRS, GOPRO_SPIKES, X4K, RECORDED))
        if not _folders_in(given):
            reason = (
                f"holds no {ALL_FRAMES}/{{train,test}}/GOPRxxxx_nn_zz/*.png; name that folder, or "
                "the one that holds it"
            )
            raise DataSetError(str(given), [reason])
        frames = given  # under another name
    return frames, find_downloaded(given, PAIRS)


def _folders_in(root: Path) -> list[tuple[str, Path]]:
    """Return (their split, folder) of the sequences of a downloaded folder, in order of names."""
    return [
        (split, folder)
        for split in OUR_SPLITS
        if (root / split).is_dir()
        for folder in sorted((root / split).iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    ]


def _source_plan(
    sequences: list[SimulatedSequence], cameras: Cameras, pairs: Path | None
) -> SourcePlan:
    notes, source = [], f"{ALL_FRAMES} with the pairs of {PAIRS}"
    if pairs is not None:
        made = {sequence.place for sequence in sequences}
        notes += [
            f"{folder}: not made, {ALL_FRAMES} has no such sequence"
            for split, folder in _folders_in(pairs)
            if f"{OUR_SPLITS[split]}/{folder.name}" not in made
        ]
    else:
        source = f"{ALL_FRAMES}, offsets of its clips by their names, unchecked"
        notes.append(
            f"no {PAIRS} beside {ALL_FRAMES}: blurry frames are computed, and the offsets of "
            "sequences are taken from their names without a check"
        )
    averaged = {sequence.facts["frames_averaged"] for sequence in sequences}
    offsets = {sequence.place: sequence.facts["offset"] for sequence in sequences}
    description = simulated_description(source, cameras, sequences, averaged, offsets)
    return SourcePlan(tuple(sequences), description, tuple(notes))


def _sequence(
    split: str, folder: Path, pairs: "ReleasedPairs | None", cameras: Cameras
) -> SimulatedSequence:
    """Return one sequence.

    Raises:
        DataSetError, BadFileError: what is wrong with it.
    """
    try:
        name = parse_name(folder.name)
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    frames = open_folder(folder)
    problem = size_problem(frames.size, cameras)
    if problem is not None:
        raise DataSetError(str(folder), [problem])
    offset, facts = name.offset, {"source": ALL_FRAMES, "frames_averaged": name.averaged}
    if pairs is not None:
        offset = find_offset(pairs, frames, name.averaged, hint=name.offset)
    exposures, notes = exposures_of(len(frames), name.averaged, offset, cameras.ticks_per_frame)
    facts["offset"] = offset
    sink = PngSink() if pairs is None else PairSink(pairs)
    if pairs is not None:
        exposures, notes = _within(exposures, notes, len(pairs))
        if offset != name.offset:
            notes.append(f"offset {offset} found by its pixels, its name says {name.offset}")
        facts |= {"pairs": len(pairs), "pairs_bytes": pairs.num_bytes}
    if not exposures:
        raise DataSetError(str(folder), [f"{len(frames)} frames, too few for one blurry frame"])
    place = f"{OUR_SPLITS[split]}/{folder.name}"
    num_ticks = len(frames) * cameras.ticks_per_frame
    return SimulatedSequence(
        place, frames, exposures, num_ticks, cameras, facts, tuple(notes), sink
    )


def exposures_of(
    num_frames: int, averaged: int, offset: int, ticks_per_frame: int
) -> tuple[tuple[SimulatedExposure, ...], list[str]]:
    """Return the exposures [k*n - offset, k*n - offset + n) that lie in a sequence.

    Returns:
        the exposures, and a note on each frame that begins before the sequence.
    """
    exposures, notes = [], []
    for k in range((num_frames + offset) // averaged):
        start = k * averaged - offset
        if start < 0:
            notes.append(
                f"frame {k:06d} dropped: its exposure begins {-start} source frame(s) before the "
                "sequence"
            )
        else:
            exposures.append(frame_exposure(k, start, averaged, ticks_per_frame))
    return tuple(exposures), notes


def _within(
    exposures: tuple[SimulatedExposure, ...], notes: list[str], num_pairs: int
) -> tuple[tuple[SimulatedExposure, ...], list[str]]:
    """Keep the exposures that have a pair; note the pairs whose exposure leaves the sequence."""
    last = exposures[-1].index if exposures else -1
    notes = notes + [
        f"frame {k:06d} dropped: its exposure ends after the source frames"
        for k in range(last + 1, num_pairs)
    ]
    return tuple(exposure for exposure in exposures if exposure.index < num_pairs), notes


# ---------------------------------------------------------------- the released pairs


@dataclass(frozen=True)
class ReleasedPairs:
    """Blurry and sharp frames of a sequence, in order; the order is right, their numbers are not.

    Attributes:
        folder: of the sequence.
        blurry, sharp: files of the same names.
        num_bytes: size of all files.
    """

    folder: Path
    blurry: tuple[Path, ...]
    sharp: tuple[Path, ...]
    num_bytes: int = 0

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.sharp)


def read_pairs(folder: Path, blur_kind: str) -> ReleasedPairs:
    """Return the pairs in `folder/{blur_kind,sharp}`.

    Raises:
        DataSetError: no such folders, names without numbers, or names that are only in one.
    """
    blurry = list_frames(folder / blur_kind, [".png"])
    sharp = list_frames(folder / "sharp", [".png"])
    lonely = sorted(blurry.keys() ^ sharp.keys())
    if lonely:
        names = ", ".join(lonely[:10])
        raise DataSetError(
            str(folder), [f"{len(lonely)} frames are not in both {blur_kind} and sharp: {names}"]
        )
    if not sharp:
        reason = f"no frames in {blur_kind} and sharp; download them, or move the pairs elsewhere"
        raise DataSetError(str(folder), [reason])
    try:
        names = sorted(sharp, key=frame_index)
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    files = [tuple(found[name] for name in names) for found in (blurry, sharp)]
    return ReleasedPairs(folder, *files, sum(f.stat().st_size for side in files for f in side))


def find_offset(pairs: ReleasedPairs, frames: FrameFolder, averaged: int, hint: int) -> int:
    """Return by how many source frames the exposures of a sequence begin early.

    The first sharp frame is source frame (n - 1) / 2 - offset.

    Args:
        pairs: of the sequence.
        frames: its source frames.
        averaged: n.
        hint: what the name says; decides between source frames that are equal to each other.

    Raises:
        DataSetError: no source frame equals it.
        BadFileError: a frame that cannot be read.
    """
    middle = (averaged - 1) // 2
    first = read_image(pairs.sharp[0])
    errors = [mean_error(first, read_image(path)) for path in frames.files[: middle + 1]]
    best = int(np.argmin(errors))
    if 0 <= middle - hint < len(errors) and errors[middle - hint] == errors[best]:
        best = middle - hint
    if not errors[best] < MAX_MEAN_ERROR:
        raise DataSetError(
            str(pairs.folder),
            [
                f"sharp/{pairs.sharp[0].name} equals none of the first {len(errors)} source frames "
                f"in {frames.path}: the nearest is {frames.files[best].name} with a mean error of "
                f"{errors[best]:.2f} grey levels, below {MAX_MEAN_ERROR:g} is needed; is one of "
                "the two another version?"
            ],
        )
    return middle - best


def mean_error(image: np.ndarray, other: np.ndarray) -> float:
    """Return the mean absolute difference of two uint8 images in grey levels.

    Infinite where their sizes differ.
    """
    if image.shape != other.shape:
        return float("inf")
    return float(np.abs(image.astype(np.int16) - other).mean())


@dataclass(frozen=True)
class PairSink:
    """Puts the released files in place of the computed frames, after comparing them."""

    pairs: ReleasedPairs

    def put(self, folder: Path, exposure: SimulatedExposure, kind: str, image: np.ndarray) -> None:
        """Copy the released frame of an exposure byte for byte under our name.

        Raises:
            BadFileError: it cannot be read, or differs from what was computed.
        """
        released = (self.pairs.sharp if kind == "sharp" else self.pairs.blurry)[exposure.index]
        error = mean_error(read_image(released), image)
        if not error < MAX_MEAN_ERROR:
            made = "its source frame" if kind == "sharp" else "the mean of its source frames"
            raise BadFileError(
                released,
                f"differs from {made} by {error:.2f} grey levels on average, below "
                f"{MAX_MEAN_ERROR:g} is needed (frame {exposure.name} of ours); it is another "
                "version, or frames before it are missing" + self._gap_before(exposure.index),
            )
        copy_file(released, folder / kind / f"{exposure.name}.png")

    def _gap_before(self, index: int) -> str:
        numbers = [frame_index(path.stem) for path in self.pairs.sharp[: index + 1]]
        for before, after in zip(numbers, numbers[1:], strict=False):
            if after != before + 1:
                return f": after {before} comes {after}"
        return ""
