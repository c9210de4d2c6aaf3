"""Look once at what a prepared data set shows, and remember the verdict beside its fingerprint.

The verdict stands in `dataset.yaml`, so that a training can refuse data that failed without
decoding a picture.
"""

import logging
from dataclasses import dataclass, field

from src.data.description import (
    ACCEPTED,
    FILE_NAME,
    DataDescription,
    content_of,
    read_description,
    write_content,
)
from src.prepare.check_content import check_content
from src.prepare.counting import PreparedSplit
from src.prepare.findings import Findings, merged
from src.prepare.prepare import PrepareSettings, scan_splits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What the look at a sample of all sequences gave.

    Attributes:
        content: as `DataDescription.content`.
        findings: what was seen; empty where nothing had to be looked at.
    """

    content: str
    findings: Findings = field(default_factory=Findings)


def judge_content(settings: PrepareSettings, accepted: str | None = None) -> Verdict:
    """Check samples of all sequences and write the verdict, unless it is known already.

    A data set that failed is looked at every time, so that the problems are told again.

    Args:
        settings: of the data set, which is prepared.
        accepted: why problems are to be lived with; None: they are not.

    Raises:
        DataSetError: sequences that cannot be understood.
        DescriptionError: a description that cannot be read.
    """
    root = settings.scan.root
    description = read_description(root)
    known = content_of(description)
    if known == "passed" or (known.startswith(ACCEPTED) and accepted is None):
        return Verdict(known)
    splits = scan_splits(settings)
    findings = check_content(splits, description, settings.scan.num_bins, settings.workers)
    findings.notes = merged([*findings.notes, *_without_bits(splits)])
    content = "passed"
    if findings.problems:
        content = "failed" if accepted is None else f"{ACCEPTED}{accepted}"
    if content != known:
        write_content(root, content)
    return Verdict(content, findings)


def content_problems(description: DataDescription | None, where: str) -> list[str]:
    """Return what keeps a training from data whose content failed or was never looked at.

    Problems that a person accepted are logged as a warning.
    """
    content = "unknown" if description is None else content_of(description)
    if content == "failed":
        return [
            f"{where}/{FILE_NAME}: blur, sharp and spikes do not belong together; "
            "scripts/prepare_data.py --check_only says where; if you know better, run it with "
            '--accept "REASON" in place of --check_only'
        ]
    if content == "unknown":
        return [
            f"{where}/{FILE_NAME}: nobody looked whether blur, sharp and spikes belong together; "
            "run scripts/prepare_data.py once, it takes seconds"
        ]
    if content.startswith(ACCEPTED):
        logger.warning("%s: problems of the data were %s", where, content)
    return []


def _without_bits(splits: list[PreparedSplit]) -> list[str]:
    return [
        f"{split.split}/{scan.name}: voxels without bits, so bit order, flip, threshold and ticks "
        "are not checked"
        for split in splits
        for scan in split.scans
        if any(frame.spikes.geometry is None for frame in scan.frames)
    ]
