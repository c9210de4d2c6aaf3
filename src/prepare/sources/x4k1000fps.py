"""X4K1000FPS: sequences of 65 (X-TRAIN) or 33 (X-TEST) sharp frames at 1,000 per second.

Exposures are ticks with both ends included, and overlap. Without an interpolator a tick is a source
frame: 17 of them (17 ms) every 4. With cross-fades there are 4 ticks per frame, 257 per 65 frames;
an exposure is 65 of them (16.25 ms) every 15, as in published spike sets. Its sharp frame is the
middle tick, which then mostly lies between two source frames and is a cross-fade itself.
"""

from pathlib import Path

from src.data.errors import BadFileError, DataSetError, problems_of
from src.prepare.sources.plan import (
    ARRAY_OPTIONS,
    GOPRO_FRAMES,
    GOPRO_PAIRS,
    GOPRO_SPIKES,
    OUR_SPLITS,
    RECORDED,
    SourceOptions,
    SourcePlan,
    refuse_options,
    refuse_other,
)
from src.prepare.sources.simulate import (
    Cameras,
    SimulatedSequence,
    cameras_of,
    overlapping_exposures,
    simulated_description,
    size_problem,
)
from src.prepare.sources.video import VIDEO_EXTS, open_frames

NAME = "X4K1000FPS"
FRAMES_PER_SECOND = 1000
TICKS_PER_FRAME = 4
FRAMES_PER_SEQUENCE = {"train": 65, "test": 33}
# (ticks in an exposure, ticks from one start to the next)
DEFAULT_EXPOSURE = {"none": (17, 4), "linear": (65, 15)}


def plan(options: SourceOptions) -> SourcePlan:
    """Return what to make of X-TRAIN and X-TEST; `frames_averaged` and `stride` count ticks.

    Raises:
        DataSetError: no sequences, missing frames, or exposures that do not fit; all problems.
    """
    refuse_options(options, ARRAY_OPTIONS, "the sequences are frames, no spikes are read")
    others = (GOPRO_PAIRS, GOPRO_SPIKES, GOPRO_FRAMES, RECORDED)
    refuse_other(options.input, NAME, others)
    cameras = cameras_of(
        options,
        interpolator="none",
        frames_per_second=FRAMES_PER_SECOND,
        ticks_per_frame=TICKS_PER_FRAME,
    )
    length, stride = DEFAULT_EXPOSURE[cameras.interpolator]
    length = length if options.frames_averaged is None else options.frames_averaged
    stride = stride if options.stride is None else options.stride
    sequences, problems = [], []
    found = _find_sequences(options.input)
    for split, name, path in found:
        try:
            sequences.append(_sequence(split, name, path, cameras, (length, stride)))
        except (BadFileError, DataSetError) as error:
            problems += problems_of(error)
    if not found:
        problems.append(
            "holds no sequences; needed are train/002/occ008.320/0000.png ... (or .mp4 files in "
            "place of the last folders) and test/Type1/TEST01_003_f0433/0000.png ..."
        )
    if problems:
        raise DataSetError(str(options.input), problems)
    description = simulated_description(NAME, cameras, sequences, {length})
    return SourcePlan(tuple(sequences), description, tuple(_notes(cameras, length, stride)))


def _notes(cameras: Cameras, length: int, stride: int) -> list[str]:
    if cameras.interpolator == "none":
        return [
            f"no interpolator: a tick is a source frame, {cameras.ticks_per_second:g} per second; "
            f"exposures are {length} frames every {stride}"
        ]
    middles = {((length - 1) // 2 + k * stride) % cameras.ticks_per_frame for k in range(16)}
    if middles == {0}:
        return []
    return [
        f"with exposures of {length} ticks every {stride}, sharp frames lie between source frames "
        f"and are cross-fades; --stride {_whole_stride(cameras, stride)} with --frames_averaged "
        "65 or 33 keeps to source frames"
    ]


def _whole_stride(cameras: Cameras, stride: int) -> int:
    ticks = cameras.ticks_per_frame
    return max(round(stride / ticks), 1) * ticks


def _sequence(
    split: str, name: str, path: Path, cameras: Cameras, exposure: tuple[int, int]
) -> SimulatedSequence:
    """Return one sequence.

    Raises:
        DataSetError, BadFileError: what is wrong with it.
    """
    frames = open_frames(path, first_number=0)
    length, stride = exposure
    num_ticks = (len(frames) - 1) * cameras.ticks_per_frame + 1
    try:
        exposures = overlapping_exposures(num_ticks, length, stride)
    except ValueError as error:
        raise DataSetError("options of the source", [f"--frames_averaged: {error}"]) from error
    problem = size_problem(frames.size, cameras)
    if len(frames) != FRAMES_PER_SEQUENCE[split]:
        problem = f"{len(frames)} frames, sequences of {split} have {FRAMES_PER_SEQUENCE[split]}"
    elif not exposures:
        problem = f"{num_ticks} ticks, one exposure needs {length} (--frames_averaged)"
    if problem is not None:
        raise DataSetError(str(path), [problem])
    place = f"{OUR_SPLITS[split]}/{name}"
    facts = {"source": NAME, "frames_averaged": length, "stride": stride}
    return SimulatedSequence(place, frames, exposures, num_ticks, cameras, facts)


def _find_sequences(given: Path) -> list[tuple[str, str, Path]]:
    """Return (their split, our name, folder or video) of every sequence, in order of names.

    The archives hold videos in encoded_train and encoded_test; their script decodes them into
    folders in train and test. Some may not be decoded yet: a folder wins over its video.
    """
    sequences = []
    for split in OUR_SPLITS:
        found = _sequences_in(given / f"encoded_{split}") | _sequences_in(given / split)
        sequences += [(split, name, path) for name, path in sorted(found.items())]
    return sequences


def _sequences_in(folder: Path) -> dict[str, Path]:
    """Return the folder or video of every sequence of a split by our name; without one, nothing."""
    found: dict[str, Path] = {}
    scenes = [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    for scene in scenes:
        for path in sorted(scene.iterdir(), key=lambda path: (path.is_dir(), path.name)):
            is_video = path.suffix.lower() in VIDEO_EXTS
            if path.name.startswith(".") or not (path.is_dir() or is_video):
                continue
            name = path.name if path.is_dir() else path.stem
            found[f"{scene.name}__{name}"] = path  # a folder wins
    return found
