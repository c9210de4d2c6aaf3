"""Verify within seconds, before a training, that the data are still what they were prepared as.

Names, sizes, times of change and what preparation wrote down are compared, the result of its check
of the content included; no picture is decoded and no spike is counted. `scripts/prepare_data.py
--check_only` looks into the files as well.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from yacs.config import CfgNode

from src.data.description import (
    ACCEPTED,
    FILE_NAME,
    DataDescription,
    DescriptionError,
    content_of,
    read_description,
)
from src.data.errors import listed
from src.data.frames import is_cut_short
from src.data.scanning import alignment_paths, scan_folders, scan_settings
from src.prepare.checks import (
    check_description,
    check_log_names,
    check_normalization,
    check_rates,
    check_stored,
    check_windows,
    read_log,
)
from src.prepare.counting import PreparedSplit

logger = logging.getLogger(__name__)

READERS = 16  # a network drive answers many at the same time


def quick_check(cfg: CfgNode) -> list[str]:
    """Return what would make a training wrong, each with the way out; an empty list is good.

    Frames that are left out because something of them is missing are no problem here: the line
    that scanning logs about each split counts and names them.
    """
    settings, data = scan_settings(cfg), cfg.DATA
    splits = tuple(dict.fromkeys((data.TRAIN_SPLIT, data.VAL_SPLIT)))
    try:
        description = read_description(settings.root)
    except DescriptionError as error:
        return [str(error)]
    problems: list[str] = []
    log = read_log(alignment_paths(cfg), problems)
    prepared, is_whole = [], True
    for name in splits:
        scans, found = scan_folders(settings, name, description)
        problems += found
        is_whole = is_whole and not (found and name == data.TRAIN_SPLIT)
        prepared.append(PreparedSplit(name, scans))
        for scan in scans:
            where = f"{name}/{scan.name}"
            problems += [f"{where}: {line}" for line in check_windows(scan)]
            problems += check_stored(prepared[-1], scan, settings, log)
            problems += check_rates(where, scan.frames, prepared[-1].entries[scan.name]).problems
    problems += _cut_short(prepared)
    if log is not None:
        problems += check_log_names(log, settings.root, splits)
    if is_whole:  # else mean and deviation are of the rest
        problems += check_normalization(prepared, cfg)
    changes = list(check_description(settings, splits, description))
    return problems + (changes or content_problems(description, str(settings.root)))


def content_problems(description: DataDescription | None, where: str) -> list[str]:
    """Return what keeps a training from data whose content failed its check or was never checked.

    Problems that a person accepted are logged as a warning.
    """
    content = "unknown" if description is None else content_of(description)
    if content == "failed":
        return [
            f"{where}/{FILE_NAME}: blur, sharp and spikes do not belong together; "
            "scripts/prepare_data.py --check_only says where; to train on them nevertheless, run "
            'it with --accept "REASON" in place of --check_only'
        ]
    if content == "unknown":
        return [
            f"{where}/{FILE_NAME}: not checked yet whether blur, sharp and spikes belong together; "
            "run scripts/prepare_data.py once, it takes seconds"
        ]
    if content.startswith(ACCEPTED):
        logger.warning("%s: problems of the data were %s", where, content)
    return []


def _cut_short(splits: list[PreparedSplit]) -> Iterable[str]:
    """Find images whose end is missing, by their last bytes."""
    paths = [path for split in splits for scan in split.scans for path in scan.files]
    with ThreadPoolExecutor(READERS) as pool:
        broken = [
            str(path)
            for path, is_broken in zip(paths, pool.map(is_cut_short, paths), strict=True)
            if is_broken
        ]
    if broken:
        yield f"images that are cut short or cannot be read: {listed(broken)}; copy them again"
