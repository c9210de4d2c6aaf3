"""Which downloaded data set a folder looks like: one clear sentence in place of one per clip."""

import re
from collections.abc import Iterator
from pathlib import Path

from src.data.errors import DataSetError

GOPRO_CLIP = re.compile(r"(?:GOPR|GP)\d+_\d\d_\d\d")
X4K_CLIP = re.compile(r"(?:occ\d+\.\d+|TEST\d+_\w+)(?:\.mp4)?")
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
    for clip in _clips(folder):
        names = {path.name for path in clip.iterdir()}
        if {"blur", "sharp", "exposures.csv"} <= names:
            return RECORDED
        if GOPRO_CLIP.fullmatch(clip.name):
            if "sharp" in names:
                return GOPRO_PAIRS
            has_spikes = names & {"spike", "spike.dat"}
            return GOPRO_SPIKES if has_spikes else GOPRO_FRAMES
        if any(X4K_CLIP.fullmatch(name) for name in names):
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


def _clips(folder: Path) -> Iterator[Path]:
    for split in SPLITS:
        inside = folder / split
        if inside.is_dir():
            yield from sorted(
                path for path in inside.iterdir() if path.is_dir() and path.name[0] != "."
            )
