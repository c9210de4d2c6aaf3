"""The user's own data: `DIR/{train,val}/SEQ`, filmed from sharp frames, or recorded already.

    SEQ/000000.png ... , SEQ/NAME.mp4 or a file SEQ.mp4     sharp high-speed frames, to be filmed
    SEQ/{blur,sharp,exposures.csv} with spike.* or spike/   recorded: converted into our layout

What a sequence is, is seen from what lies in it; a mixture is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.description import DataDescription, read_description
from src.data.errors import (
    BadFileError,
    DataSetError,
    problems_of,
    refuse_undecodable,
)
from src.data.spikes.arrays import ARRAY_SUFFIXES
from src.prepare.sources.film_plan import Cameras
from src.prepare.sources.recognition import GOPRO_PAIRS, GOPRO_SPIKES, X4K, refuse_other
from src.prepare.sources.recorded_clip import find_recorded
from src.prepare.sources.recorded_job import RecordedJob
from src.prepare.sources.simulate import FilmJob, cameras_of, film_description, high_speed_job
from src.prepare.sources.source import ARRAY_OPTIONS, SourceOptions, SourcePlan, refuse_options
from src.prepare.sources.video import IMAGE_EXTS, VIDEO_EXTS, open_frames

SPLITS = ("train", "val")
FILMED, RECORDED = "sharp high-speed frames", "recorded frames and spikes"
FILM_OPTIONS = (
    *("blur_kind", "threshold", "transfer", "downscale", "interpolator", "ticks_per_frame"),
    *("frames_averaged", "stride", "frames_per_second", "seed"),
)
RECORDED_NAMES = ("blur", "sharp", "spike", "exposures.csv")
EXPECTED = (
    "a sequence holds sharp high-speed frames (images or one video file), or blur/, sharp/, "
    "exposures.csv and spikes (spike.dat, .npy, .npz, .h5 or a folder spike/)"
)


@dataclass(frozen=True)
class _Sequence:
    """One sequence of the user; `frames` is the folder or video of sharp frames."""

    split: str
    name: str
    path: Path
    kind: str
    frames: Path


def plan(options: SourceOptions) -> SourcePlan:
    """Return what to make of the user's folders; see `SourceOptions`.

    Raises:
        DataSetError: everything that is missing, unclear or contradictory.
    """
    refuse_other(options.input, "a folder of own sequences", (GOPRO_PAIRS, GOPRO_SPIKES, X4K))
    sequences, problems = _find_sequences(options.input)
    kinds = {sequence.kind for sequence in sequences}
    if len(kinds) > 1:
        named = "; ".join(f"{s.split}/{s.name}: {s.kind}" for s in sequences)
        problems.append(f"two kinds of sequences, which cannot share a description: {named}")
    if problems:
        raise DataSetError(str(options.input), problems)
    if kinds == {FILMED}:
        return _plan_filming(sequences, options)
    return _plan_recorded(sequences, options)


def _find_sequences(root: Path) -> tuple[list[_Sequence], list[str]]:
    """Return the sequences of both splits and what is wrong with them."""
    sequences, problems = [], []
    for split in SPLITS:
        folder = root / split
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if path.name.startswith("."):
                continue
            try:
                refuse_undecodable([path])
                sequences.append(_classify(split, path))
            except DataSetError as error:
                problems += problems_of(error)
    if not sequences and not problems:
        found = ", ".join(sorted(path.name for path in root.iterdir())) or "nothing"
        problems.append(f"no sequences in {' and '.join(SPLITS)}; found {found}. {EXPECTED}")
    names = [(sequence.split, sequence.name) for sequence in sequences]
    twice = sorted({f"{split}/{name}" for split, name in names if names.count((split, name)) > 1})
    problems += [f"{name} is there as a folder and as a video; which is meant?" for name in twice]
    return sequences, problems


def _classify(split: str, path: Path) -> _Sequence:
    """Say what a sequence is, from the names in it.

    Raises:
        DataSetError: neither or both; what was found is listed.
    """
    if not path.is_dir():
        if path.is_file() and path.suffix.lower() in VIDEO_EXTS:
            return _Sequence(split, path.stem, path, FILMED, path)
        what = "a link that leads nowhere" if path.is_symlink() else "neither a folder nor a video"
        raise DataSetError(str(path), [f"is {what}; {EXPECTED}"])
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    images = [entry for entry in inside if _is_file(entry, IMAGE_EXTS)]
    videos = [entry for entry in inside if _is_file(entry, VIDEO_EXTS)]
    spikes = [entry for entry in inside if _is_spikes(entry)]
    recorded = [entry for entry in inside if entry.name in RECORDED_NAMES] + spikes
    found = ", ".join(
        [f"{len(images)} images"] * bool(images)
        + [entry.name for entry in dict.fromkeys([*videos, *recorded])]
        + [entry.name for entry in inside if entry not in [*images, *videos, *recorded]]
    )
    if recorded and not images and not videos:
        return _Sequence(split, path.name, path, RECORDED, path)
    if not recorded and bool(images) != bool(videos) and len(videos) <= 1:
        return _Sequence(split, path.name, path, FILMED, videos[0] if videos else path)
    raise DataSetError(str(path), [f"holds {found or 'nothing'}; {EXPECTED}"])


def _is_file(path: Path, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.is_dir()


def _is_spikes(path: Path) -> bool:
    return path.stem == "spike" and path.suffix.lower() in (".dat", *ARRAY_SUFFIXES)


def _plan_filming(sequences: Sequence[_Sequence], options: SourceOptions) -> SourcePlan:
    refuse_options(options, ARRAY_OPTIONS, "the sequences hold sharp frames, no spikes")
    problems = [
        f"--{name} is needed to film sharp frames: {why}"
        for name, why in (
            ("frames_per_second", "no file says how fast they were recorded"),
            ("frames_averaged", "how many of them make a blurry frame (odd)"),
        )
        if getattr(options, name) is None
    ]
    if problems:
        raise DataSetError(str(options.input), problems)
    cameras = cameras_of(options, interpolator="none", frames_per_second=options.frames_per_second)
    jobs: list[FilmJob] = []
    for sequence in sequences:
        try:
            jobs.append(_film_job(sequence, options, cameras))
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    if problems:
        raise DataSetError(str(options.input), list(dict.fromkeys(problems)))
    description = film_description(
        f"own frames of {options.input.name}", cameras, tuple(jobs), {options.frames_averaged}
    )
    stride = options.frames_averaged if options.stride is None else options.stride
    notes = [
        f"{sequence.split}/{sequence.name}: {FILMED}, {len(job.frames)} in {sequence.frames.name}"
        for sequence, job in zip(sequences, jobs, strict=True)
    ]
    notes.append(
        f"filmed with {cameras.ticks_per_frame} tick(s) per frame (interpolator "
        f"{cameras.interpolator}), {options.frames_averaged} frames per exposure, one every "
        f"{stride} frames"
    )
    return SourcePlan(tuple(jobs), description, tuple(notes))


def _film_job(sequence: _Sequence, options: SourceOptions, cameras: Cameras) -> FilmJob:
    return high_speed_job(
        f"{sequence.split}/{sequence.name}",
        open_frames(sequence.frames),
        cameras,
        options.frames_averaged,
        options.stride,
        {"source": "folders", "kind": FILMED},
    )


def _plan_recorded(sequences: Sequence[_Sequence], options: SourceOptions) -> SourcePlan:
    reason = (
        "the sequences are recorded, nothing is filmed; dataset.yaml of the input describes them"
    )
    refuse_options(options, FILM_OPTIONS, reason)
    problems: list[str] = []
    stated = read_description(options.input)
    jobs: list[RecordedJob] = []
    for sequence in sequences:
        try:
            clip = find_recorded(sequence.path, sequence.split, options, stated)
            jobs.append(RecordedJob(clip))
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    if problems:
        raise DataSetError(str(options.input), problems)
    notes = [f"{job.split}/{job.name}: {RECORDED}; {job.clip.spikes.describe()}" for job in jobs]
    return SourcePlan(tuple(jobs), _describe(jobs, stated, options.input), tuple(notes))


def _describe(
    jobs: Sequence[RecordedJob], stated: DataDescription | None, root: Path
) -> DataDescription:
    """Return what the user's dataset.yaml says, completed by what all sequences share."""
    sidecars = [job.clip.spikes.sidecar for job in jobs]
    sizes = {(sidecar.height, sidecar.width) for sidecar in sidecars}
    rates = {sidecar.ticks_per_second for sidecar in sidecars}
    thresholds = {sidecar.threshold for sidecar in sidecars}
    height, width = sizes.pop() if len(sizes) == 1 else (None, None)
    said = DataDescription(source=f"own recordings of {root.name}") if stated is None else stated
    threshold = thresholds.pop() if len(thresholds) == 1 else None
    return DataDescription(
        source=said.source,
        blur_kind=said.blur_kind,
        frames_averaged=said.frames_averaged,
        transfer=said.transfer,
        threshold=said.threshold if threshold is None else threshold,
        ticks_per_second=rates.pop() if len(rates) == 1 else None,
        spike_height=height,
        spike_width=width,
        interpolator=said.interpolator,
        offsets=said.offsets,
    )
