"""Check what the configuration and the description say against the data."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from src.data.description import FILE_NAME, DataDescription
from src.data.errors import BadFileError, DataSetError, problems_of
from src.data.exposures import AlignmentLog
from src.data.fingerprint import fingerprint_data, fingerprint_differences, list_sequences
from src.data.recordings import Recording
from src.data.scanning import SequenceScan
from src.data.transforms import crop_grid
from src.data.yaml_text import number_text
from src.prepare.check_cache import RUN_PREPARE
from src.prepare.counting import PreparedSplit
from src.prepare.prepare import normalization_texts

NORM_UNSET = (number_text(0.0), number_text(1.0))  # the defaults of DATA.NORM
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expected:
    """What the configuration says about the data.

    Attributes:
        norm_mean, norm_std: DATA.NORM.
        clip_len: frames of a training clip.
        crop_px: side of a training crop in RGB pixels.
        gain, bin_normalize: how counts enter mean and deviation, DATA.GAIN and DATA.BIN_NORMALIZE.
        has_weights: the model starts from weights, whose training may have had other numbers.
    """

    norm_mean: float
    norm_std: float
    clip_len: int
    crop_px: int
    gain: float = 1.0
    bin_normalize: bool = False
    has_weights: bool = False

    @classmethod
    def of(cls, cfg: CfgNode) -> "Expected":
        """Return what a configuration says."""
        data = cfg.DATA
        return cls(
            norm_mean=data.NORM.MEAN,
            norm_std=data.NORM.STD,
            clip_len=data.CLIP_LEN,
            crop_px=data.CROP_SIZE,
            gain=data.GAIN,
            bin_normalize=data.BIN_NORMALIZE,
            has_weights=bool(cfg.MODEL.PRETRAINED),
        )


def check_crops(scan: SequenceScan, num_bins: int, expected: Expected) -> Iterable[str]:
    """Name a sequence of which no clip or no crop can be taken."""
    if len(scan.frames) < expected.clip_len:
        yield (
            f"{scan.folder}: {len(scan.frames)} usable frames, a clip needs {expected.clip_len}; "
            "no clip is taken from this sequence; lower DATA.CLIP_LEN or delete it"
        )
    recording = Recording(scan.name, scan.frames, num_bins)
    try:
        height, width = recording.frame_size
        if min(height, width) < expected.crop_px:
            yield (
                f"{scan.folder}: frames of {height}x{width} are below the crop {expected.crop_px}; "
                "lower DATA.CROP_SIZE"
            )
        crop_grid((height, width), recording.spike_size, expected.crop_px)
    except BadFileError:
        return  # named before
    except ValueError as error:
        yield f"{scan.folder}: {error}"


def check_log_names(log: AlignmentLog, root: Path, splits: Iterable[str]) -> list[str]:
    """Name the sequences of the alignment log that are no longer there."""
    present: set[str] = set()
    for split in splits:
        if (root / split).is_dir():
            names = [folder.name for folder in list_sequences(root / split)]
            present.update(names, (f"{split}/{name}" for name in names))
    gone = sorted(set(log.records) - present)
    logs = ", ".join(map(str, log.paths))
    return [f"{logs}: sequences {gone} do not exist; {RUN_PREPARE}"] if gone else []


def check_normalization(
    splits: list[PreparedSplit], train_split: str, expected: Expected
) -> list[str]:
    """Compare DATA.NORM with mean and deviation of what was counted.

    A model that goes on from weights of another data set keeps the numbers of that one: then a
    difference is only logged.
    """
    if not any(s.entries[scan.name] for s in splits if s.split == train_split for scan in s.scans):
        return [f"{train_split}: no prepared frame, so DATA.NORM is not checked; {RUN_PREPARE}"]
    try:
        found = normalization_texts(splits, train_split, expected.gain, expected.bin_normalize)
    except DataSetError as error:
        return problems_of(error)
    given = (number_text(expected.norm_mean), number_text(expected.norm_std))
    if found == given:
        return []
    difference = (
        f"DATA.NORM: MEAN {given[0]}, STD {given[1]} in the configuration, the training split has "
        f"{found[0]}, {found[1]}"
    )
    if expected.has_weights and given != NORM_UNSET:
        logger.warning("%s; right if MODEL.PRETRAINED was trained with the former", difference)
        return []
    return [f"{difference}; {RUN_PREPARE}"]


def check_description(
    root: Path, splits: tuple[str, ...], description: DataDescription | None
) -> Iterable[str]:
    """Compare the description with the files as they are."""
    if description is None:
        yield f"{root / FILE_NAME}: missing; {RUN_PREPARE}"
        return
    try:
        now = fingerprint_data(root, splits)
    except FileNotFoundError:
        return  # named before
    for change in fingerprint_differences(description.fingerprint, now):
        yield (
            f"{root / FILE_NAME}: {change}; if the change is meant, {RUN_PREPARE}, else bring the "
            "old files back"
        )
    present = {
        f"{split}/{folder.name}" for split in splits for folder in list_sequences(root / split)
    }
    gone = [
        name
        for name, _ in description.offsets
        if name.partition("/")[0] in splits and name not in present
    ]
    if gone:
        yield (
            f"{root / FILE_NAME}: offsets of sequences that do not exist: {', '.join(gone)}; "
            "delete those lines"
        )
