"""Verify a prepared data set: everything that would make training wrong, all at once."""

from pathlib import Path

from src.data.description import DescriptionError, read_description
from src.data.errors import BadFileError
from src.data.exposures import AlignmentLog, read_alignment
from src.data.scanning import summarize
from src.prepare.check_cache import (
    check_completeness,
    check_stored,
    check_windows,
    recount_sample,
)
from src.prepare.check_content import check_content
from src.prepare.check_files import check_files
from src.prepare.check_reading import check_rates
from src.prepare.check_setup import (
    Expected,
    check_crops,
    check_description,
    check_log_names,
    check_normalization,
)
from src.prepare.counting import PreparedSplit
from src.prepare.findings import Findings, merged
from src.prepare.prepare import PrepareSettings, scan_folders


def check(settings: PrepareSettings, expected: Expected) -> Findings:
    """Verify the data set; nothing is written."""
    try:
        description = read_description(settings.scan.root)
    except DescriptionError as error:
        return Findings(problems=[str(error)])
    findings = Findings()
    log = _read_log(settings.alignment_log, findings)
    splits, is_whole = [], True
    for split in settings.splits:
        scans, problems = scan_folders(settings.scan, split, description)
        splits.append(PreparedSplit(split, scans))
        findings.problems += problems
        is_whole = is_whole and not (problems and split == settings.train_split)
        findings.seen.append(summarize(split, scans))
    findings.include(check_files(splits, settings.workers))
    for split in splits:
        findings.include(_check_split(split, settings, expected, log))
    findings.include(check_content(splits, description, settings.scan.num_bins, settings.workers))
    if log is not None:
        findings.problems += check_log_names(log, settings.scan.root, settings.splits)
    if is_whole:  # else mean and deviation are of the rest
        findings.problems += check_normalization(splits, settings.train_split, expected)
    findings.problems += check_description(settings.scan.root, settings.splits, description)
    findings.notes = merged(findings.notes)
    return findings


def _check_split(
    split: PreparedSplit, settings: PrepareSettings, expected: Expected, log: AlignmentLog | None
) -> Findings:
    findings = Findings()
    for scan in split.scans:
        where = f"{split.split}/{scan.name}"
        findings.problems += check_completeness(where, scan)
        findings.problems += [f"{where}: {line}" for line in check_windows(scan)]
        findings.problems += check_stored(split, scan, settings.scan, log)
        recounted = recount_sample(split, scan, settings.scan)
        findings.problems += [f"{where}: {line}" for line in recounted]
        findings.include(check_rates(where, scan.frames, split.entries[scan.name]))
        if split.split == settings.train_split:
            findings.problems += check_crops(scan, settings.scan.num_bins, expected)
    return findings


def _read_log(path: Path, findings: Findings) -> AlignmentLog | None:
    try:
        return read_alignment([path])
    except BadFileError as error:
        findings.problems.append(str(error))
        return None
