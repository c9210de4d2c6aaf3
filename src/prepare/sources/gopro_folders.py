"""Where the frames and spikes of GoPro's sequences lie, in every layout that is published.

    GOPRO_Large/{train,test}/SEQ/{blur,blur_gamma,sharp}/NNNNNN.png    as released
    GOPRO_Large/{train_GT,train_GT_blurred,test_GT,...}/SEQ/NNNNNN.png as KAIR and VRT have it
    GOPRO_Large_all/{train,test}/SEQ/NNNNNN.png                        all source frames
    GOPRO_Large_spike_seq/{train,test}/SEQ/spike/NNNNNN.dat            spikes, one file per frame
    Spike_GOPRO_Large_all/{train,test}/SEQ/spike.dat                   spikes of whole sequences

What lies in a folder says what it is; names of the folders above the splits, their depth and the
case of all names do not matter.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from src.data.description import FILE_NAME as DESCRIPTION_NAME
from src.data.errors import DataSetError, listed
from src.data.frames import list_sequences
from src.prepare.sources.plan import GOPRO_NAME, IMAGE_EXTS, STREAM_NAME

ALL_FRAMES, PAIRS, SPIKES_PER_FRAME, SPIKE_STREAMS = DOWNLOADED = (
    *("GOPRO_Large_all", "GOPRO_Large", "GOPRO_Large_spike_seq", "Spike_GOPRO_Large_all"),
)
SPLIT_NAME = re.compile(r"(train|test)(?:_gt)?(?:_blur(?:red)?)?")
MAX_DEPTH = 3  # folders above a split that are walked
# What a sequence can have: folders, or the file of a stream. FOLDER is where it was seen first.
FOLDER, FRAMES, SPIKES, STREAM = "folder", "frames", "spike", "stream"
BLUR, BLUR_GAMMA, SHARP = PICTURES = "blur", "blur_gamma", "sharp"
NAMES = {BLUR: "blurry frames", BLUR_GAMMA: "blurry frames (gamma)", SHARP: "sharp frames"}
NAMES |= {FRAMES: "source frames", SPIKES: "spikes", STREAM: "spikes of whole sequences"}

Sequence = dict[str, Path]  # what it has -> where


def find_gopro(given: Path) -> dict[tuple[str, str], Sequence]:
    """Return (split, name) -> what there is of a sequence, in order; splits are train and test.

    Looked at is `given`, and what lies beside it where it is one of the downloaded folders.

    Raises:
        DataSetError: something is there twice.
    """
    known = [name.lower() for name in DOWNLOADED]
    roots = [given]
    if given.name.lower() in known:
        roots += [p for p in sorted(given.parent.iterdir()) if p.name.lower() in known]
    found: dict[tuple[str, str], Sequence] = defaultdict(dict)
    problems = []
    for folder in dict.fromkeys(split for root in roots for split in _splits(root, MAX_DEPTH)):
        split = SPLIT_NAME.fullmatch(folder.name.lower())[1]
        for sequence in list_sequences(folder):
            is_gopro = GOPRO_NAME.fullmatch(sequence.name.upper())
            have = found[split, sequence.name.upper() if is_gopro else sequence.name]
            have.setdefault(FOLDER, sequence)
            for what, place in _parts_of(sequence).items():
                if have.setdefault(what, place) != place:
                    problems.append(f"{what} of {split}/{sequence.name}: {have[what]} and {place}")
    if problems:
        advice = "leave one of them; nothing says which is meant"
        raise DataSetError(f"{given}: found twice", [*problems[:5], advice])
    return dict(sorted(found.items()))


def split_folder(place: Path) -> Path:
    """Return the folder of the split in which something of a sequence lies."""
    return next(path for path in place.parents if SPLIT_NAME.fullmatch(path.name.lower()))


def understood(sequences: Mapping[tuple[str, str], Sequence]) -> list[str]:
    """Say where what was found, one line each."""
    places: dict[str, set[Path]] = defaultdict(set)
    for have in sequences.values():
        for what, place in have.items():
            if what in NAMES:
                places[what].add(split_folder(place))
    return [
        f"{NAMES[what]}: {listed([str(path) for path in sorted(paths)])}"
        for what, paths in sorted(places.items())
    ]


def _splits(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders of splits at or below a folder."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if SPLIT_NAME.fullmatch(path.name.lower()):
            yield path
        elif depth > 1 and not (path / DESCRIPTION_NAME).is_file():  # that is data of ours
            yield from _splits(path, depth - 1)


def _parts_of(sequence: Path) -> Sequence:
    """Return what the folder of a sequence holds."""
    inside = {path.name.lower(): path for path in sorted(sequence.iterdir())}
    parts = {what: inside[what] for what in (*PICTURES, SPIKES) if what in inside}
    for folder in (sequence, parts.get(SPIKES, sequence)):
        if (folder / STREAM_NAME).exists():
            parts[STREAM] = folder / STREAM_NAME
    endings = {path.suffix.lower() for path in inside.values()}
    if endings & set(IMAGE_EXTS):
        split = sequence.parent.name.lower()
        parts[BLUR if "_blur" in split else SHARP if "_gt" in split else FRAMES] = sequence
    elif ".dat" in endings and STREAM not in parts:
        parts[SPIKES] = sequence
    return parts
