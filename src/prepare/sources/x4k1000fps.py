"""X4K1000FPS: sequences of 65 (X-TRAIN) or 33 (X-TEST) sharp frames at 1,000 per second.

Exposures are ticks with both ends included, and overlap. Without an interpolator a tick is a source
frame: 17 of them (17 ms) every 4. With cross-fades there are 4 ticks per frame, 257 per 65 frames;
an exposure is 65 of them (16.25 ms) every 15, as in published spike sets. Its sharp frame is the
middle tick, which then mostly lies between two source frames and is a cross-fade itself.
"""

from pathlib import Path

from src.data.errors import DataSetError
from src.data.video import VIDEO_EXTS
from src.prepare.sources import planning
from src.prepare.sources.high_speed import open_frames
from src.prepare.sources.simulate import (
    Simulation,
    completed,
    planned,
    regular_exposures,
    simulated_description,
)

FRAMES_PER_SECOND = 1000
TICKS_PER_FRAME = 4
FRAMES_PER_SEQUENCE = {"train": 65, "test": 33}
# (ticks in an exposure, ticks from one start to the next)
DEFAULT_EXPOSURE = {"none": (17, 4), "linear": (65, 15)}


def plan(options: planning.SourceOptions) -> planning.SourcePlan:
    """Return what to make of X-TRAIN and X-TEST; `frames_averaged` and `stride` count ticks."""
    planning.refuse_options(
        options, planning.ARRAY_OPTIONS, "the sequences are frames, no spikes are read"
    )
    planning.refuse_other(options.input, planning.X4K, planning.X4K)
    cameras = completed(
        options,
        interpolator="none",
        frames_per_second=FRAMES_PER_SECOND,
        ticks_per_frame=TICKS_PER_FRAME,
    )
    length, stride = DEFAULT_EXPOSURE[cameras.interpolator]
    length = length if options.frames_averaged is None else options.frames_averaged
    stride = stride if options.stride is None else options.stride
    found = _find_sequences(options.input)
    if not found:
        reason = (
            "holds no sequences; needed are train/002/occ008.320/0000.png ... (or .mp4 files in "
            "place of the last folders) and test/Type1/TEST01_003_f0433/0000.png ..."
        )
        raise DataSetError(str(options.input), [reason])
    items = ((*place, cameras, length, stride) for place in found)
    sequences = planning.make_all(options.input, _sequence, items)
    description = simulated_description(planning.X4K, cameras, sequences)
    return planning.SourcePlan(tuple(sequences), description)


def _sequence(
    split: str, name: str, path: Path, cameras: planning.SourceOptions, length: int, stride: int
) -> planning.PlannedSequence:
    frames = open_frames(path, first_number=0)
    if len(frames) != FRAMES_PER_SEQUENCE[split]:
        needed = FRAMES_PER_SEQUENCE[split]
        raise DataSetError(str(path), [f"{len(frames)} frames, sequences of {split} have {needed}"])
    num_ticks = (len(frames) - 1) * cameras.ticks_per_frame + 1
    exposures = regular_exposures(num_ticks, length, stride, step_ticks=1)
    where = f"{planning.OUR_SPLITS[split]}/{name}"
    facts = {"source": planning.X4K, "frames_averaged": length, "stride": stride}
    simulation = Simulation(where, frames, exposures, num_ticks, cameras, frames.notes)
    return planned(simulation, facts)


def _find_sequences(given: Path) -> list[tuple[str, str, Path]]:
    """Return (their split, our name, folder or video) of every sequence, in order of names.

    The archives hold videos in encoded_train and encoded_test; a folder that was decoded wins.
    """
    sequences = []
    for split in planning.OUR_SPLITS:
        found: dict[str, Path] = {}
        for scene in [*(given / f"encoded_{split}").glob("*/"), *(given / split).glob("*/")]:
            found |= _sequences_in(scene)
        sequences += [(split, name, path) for name, path in sorted(found.items())]
    return sequences


def _sequences_in(scene: Path) -> dict[str, Path]:
    """Return the folder or video of every sequence of a scene by our name."""
    found = {}
    for path in sorted(scene.glob("[!.]*"), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() or path.suffix.lower() in VIDEO_EXTS:
            name = path.name if path.is_dir() else path.stem
            found[f"{scene.name}__{name}"] = path  # a folder wins
    return found
