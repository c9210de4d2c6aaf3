"""GOPRO_Large_all: all sharp frames at 240 per second; GOPRO_Large beside it: the released pairs.

A clip is named `GOPRxxxx_nn_zz`: nn source frames make a blurry frame, and the windows of a clip
begin zz source frames early, so that blurry frame k is the mean of source frames
[k*n - zz, k*n - zz + n). Where zz > 0 the first window begins before the clip: that frame is
dropped.

The names are only believed where there is nothing to compare. With the pairs the offset of each
clip is found by looking for its first sharp frame among the source frames, every pair is checked
against the source, and the released files are the blurry and sharp frames.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.simulation.blur import SOURCE_FRAMES_PER_SECOND
from src.prepare.sources.film_plan import Cameras, Film, FilmWindow, frame_window
from src.prepare.sources.recognition import (
    GOPRO_PAIRS,
    GOPRO_SPIKES,
    RECORDED,
    X4K,
    refuse_other,
)
from src.prepare.sources.released_pairs import (
    PairSink,
    ReleasedPairs,
    find_offset,
    read_pairs,
)
from src.prepare.sources.simulate import FilmJob, cameras_of, film_description, size_problem
from src.prepare.sources.source import (
    ARRAY_OPTIONS,
    OUR_SPLITS,
    SourceOptions,
    SourcePlan,
    find_downloaded,
    refuse_options,
)
from src.prepare.sources.video import open_folder

ALL_FRAMES, PAIRS = "GOPRO_Large_all", "GOPRO_Large"
CLIP_NAME = re.compile(r"(?:GOPR|GP)\d+_(\d\d)_(\d\d)")


@dataclass(frozen=True)
class ClipName:
    """What the name of a GoPro clip says.

    Attributes:
        averaged: source frames in a blurry frame (nn).
        offset: source frames by which its windows begin early (zz).
    """

    averaged: int
    offset: int


def parse_clip_name(name: str) -> ClipName:
    """Return what `GOPRxxxx_nn_zz` says.

    Raises:
        ValueError: another name, or an even nn, which has no middle frame.
    """
    match = CLIP_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a clip of GoPro, which are named like GOPR0384_11_05")
    averaged, offset = map(int, match.groups())
    if averaged % 2 == 0:
        raise ValueError(f"{name!r}: {averaged} source frames have no middle one")
    return ClipName(averaged, offset)


def find_folders(given: Path) -> tuple[Path, Path | None]:
    """Return the folders of all frames and of the pairs; the latter is None where there is none.

    Raises:
        DataSetError: no folder of all frames.
    """
    frames = find_downloaded(given, ALL_FRAMES)
    if frames is None:
        refuse_other(given, ALL_FRAMES, (GOPRO_PAIRS, GOPRO_SPIKES, X4K, RECORDED))
    if frames is None and _clips(given):
        frames = given  # under another name
    if frames is None:
        reason = (
            f"holds no {ALL_FRAMES}/{{train,test}}/GOPRxxxx_nn_zz/*.png; name that folder, or the "
            "one that holds it"
        )
        raise DataSetError(str(given), [reason])
    return frames, find_downloaded(given, PAIRS)


def plan(options: SourceOptions) -> SourcePlan:
    """Return what to make of GOPRO_Large_all; see `SourceOptions`.

    Raises:
        DataSetError: options of other sources, no clips, gaps in the frames, or pairs that do not
            belong to them; all problems of all clips.
    """
    _refuse_options(options)
    refuse_options(options, ARRAY_OPTIONS, "the clips are frames, no spikes are read")
    all_frames, pairs = find_folders(options.input)
    cameras = cameras_of(options, interpolator="linear", frames_per_second=SOURCE_FRAMES_PER_SECOND)
    jobs, problems = [], []
    for split, folder in _clips(all_frames):
        try:
            jobs.append(_clip_job(split, folder, _pairs_of(pairs, split, folder, options), cameras))
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    if not jobs and not problems:
        problems.append("has no clips in train or test")
    if problems:
        raise DataSetError(str(all_frames), problems)
    return _source_plan(jobs, cameras, pairs)


def _source_plan(jobs: list[FilmJob], cameras: Cameras, pairs: Path | None) -> SourcePlan:
    notes, source = [], f"{ALL_FRAMES} with the pairs of {PAIRS}"
    if pairs is not None:
        made = {job.plan.clip for job in jobs}
        notes += [
            f"{folder}: not made, {ALL_FRAMES} has no such clip"
            for split, folder in _clips(pairs)
            if f"{OUR_SPLITS[split]}/{folder.name}" not in made
        ]
    else:
        source = f"{ALL_FRAMES}, offsets of its clips by their names, unchecked"
        notes.append(
            f"no {PAIRS} beside {ALL_FRAMES}: blurry frames are computed, and the offsets of clips "
            "are taken from their names without a check"
        )
    averaged = {job.facts["frames_averaged"] for job in jobs}
    offsets = {job.plan.clip: job.facts["offset"] for job in jobs}
    description = film_description(source, cameras, tuple(jobs), averaged, offsets)
    return SourcePlan(tuple(jobs), description, tuple(notes))


def _clip_job(split: str, folder: Path, pairs: ReleasedPairs | None, cameras: Cameras) -> FilmJob:
    """Return the job of one clip.

    Raises:
        DataSetError, BadFileError: what is wrong with it.
    """
    try:
        name = parse_clip_name(folder.name)
    except ValueError as error:
        raise DataSetError(str(folder), [str(error)]) from error
    frames = open_folder(folder)
    problem = size_problem(frames.size, cameras)
    if problem is not None:
        raise DataSetError(str(folder), [problem])
    offset = name.offset
    if pairs is not None:
        offset = find_offset(pairs, frames, name.averaged, hint=name.offset)
    windows, notes = clip_windows(len(frames), name.averaged, offset, cameras.ticks_per_frame)
    if pairs is not None:
        windows, notes = _within(windows, notes, len(pairs))
        if offset != name.offset:
            notes.append(f"offset {offset} found by its pixels, its name says {name.offset}")
    if not windows:
        raise DataSetError(str(folder), [f"{len(frames)} frames, too few for one blurry frame"])
    num_ticks = len(frames) * cameras.ticks_per_frame
    clip = f"{OUR_SPLITS[split]}/{folder.name}"
    return FilmJob(
        frames,
        Film(clip, len(frames), frames.size, windows, num_ticks, cameras),
        _facts(name, offset, pairs),
        tuple(notes),
        None if pairs is None else PairSink(pairs),
    )


def clip_windows(
    num_frames: int, averaged: int, offset: int, ticks_per_frame: int
) -> tuple[tuple[FilmWindow, ...], list[str]]:
    """Return the windows [k*n - offset, k*n - offset + n) that lie in a clip.

    Returns:
        the windows, and a note on each frame that begins before the clip.
    """
    windows, notes = [], []
    count = (num_frames + offset) // averaged
    for k in range(count):
        start = k * averaged - offset
        if start < 0:
            notes.append(
                f"frame {k:06d} dropped: its exposure begins {-start} source frame(s) before the "
                "clip"
            )
        else:
            windows.append(frame_window(k, start, averaged, ticks_per_frame))
    return tuple(windows), notes


def _within(
    windows: tuple[FilmWindow, ...], notes: list[str], num_pairs: int
) -> tuple[tuple[FilmWindow, ...], list[str]]:
    """Keep the windows that have a pair; note the pairs whose window leaves the clip."""
    last = windows[-1].index if windows else -1
    notes = notes + [
        f"frame {k:06d} dropped: its exposure ends after the source frames"
        for k in range(last + 1, num_pairs)
    ]
    return tuple(window for window in windows if window.index < num_pairs), notes


def _facts(name: ClipName, offset: int, pairs: ReleasedPairs | None) -> Mapping[str, object]:
    facts = {"source": ALL_FRAMES, "frames_averaged": name.averaged, "offset": offset}
    if pairs is not None:
        facts |= {"pairs": len(pairs), "pairs_bytes": pairs.num_bytes}
    return facts


def _pairs_of(
    pairs: Path | None, split: str, folder: Path, options: SourceOptions
) -> ReleasedPairs | None:
    return None if pairs is None else read_pairs(pairs / split / folder.name, options.blur_kind)


def _clips(root: Path) -> list[tuple[str, Path]]:
    """Return (their split, folder) of the clips of a downloaded folder, in order of names."""
    return [
        (split, folder)
        for split in OUR_SPLITS
        if (root / split).is_dir()
        for folder in sorted((root / split).iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    ]


def _refuse_options(options: SourceOptions) -> None:
    problems = [
        f"--{name}: the clips of GoPro say it by their names; leave it out"
        for name in ("frames_averaged", "stride", "frames_per_second")
        if getattr(options, name) is not None
    ]
    if problems:
        raise DataSetError("options of the source", problems)
