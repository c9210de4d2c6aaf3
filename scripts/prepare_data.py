"""Prepare a data set for training, or verify that it is prepared.

    python scripts/prepare_data.py [--config FILE] [--check_only | --accept REASON]
                                   [--workers N] [--overlay N]
                                   [--source NAME --input DIR [--shard I/N] ...] [KEY VALUE ...]

Counts the spikes of every exposure into voxels, writes the alignment log, and writes mean and
deviation of log1p(count) over the training split into the configuration file, whose comments stay.
Then a sample of every sequence is looked at: do blur, sharp and spikes belong together? If not, it
exits with 1, and training refuses the data until they are fixed or `--accept` says why they are
right. A second run does nothing.
`--check_only` writes nothing, lists what is wrong and then exits with 1.
`--overlay 20` draws 20 random frames with their spikes on top of them, for a look at the alignment.
`--source` first makes DATA.ROOT from a data set as it was downloaded; see docs/DATA_SOURCES.md.
"""

import argparse
import errno
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yacs.config import CfgNode

from src.config import ConfigError, load_config
from src.data.description import DescriptionError
from src.data.errors import BadFileError, DataSetError
from src.data.scanning import alignment_paths, scan_settings
from src.paths import resolve
from src.prepare.checks import check
from src.prepare.frame_checks import Findings
from src.prepare.overlay import overlay_splits
from src.prepare.prepare import (
    PrepareSettings,
    check_prepared_content,
    default_workers,
    prepare,
)
from src.prepare.sources.run import (
    add_source_arguments,
    after_shard,
    make_from_source,
    source_options,
)

NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
DEFAULT_CONFIG = "configs/deblur/vrt_spike_baseline.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, prepare or check; return the exit status."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        is_made = options.source is not None  # then DATA.ROOT need not exist yet
        cfg = load_config(options.config, options.overrides, check_paths=not is_made)
        settings = settings_of(cfg, options.config, options.workers)
        source, status = source_options(options), 0
        if source is not None:
            lines = make_from_source(options.source, source, cfg, options.shard, options.workers)
            print("\n".join(lines))
            if (part_done := after_shard(options.shard)) is not None:
                print(part_done)
                return 0
        if options.check_only:
            status = report_check(settings, cfg)
        else:
            print("\n".join(prepare(settings) + other_root(settings, options)))
            status = report_content(settings, options.accept)
        if options.overlay:
            status = max(status, draw_overlays(settings, options.overlay, cfg))
    except (BadFileError, ConfigError, DataSetError, DescriptionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, or a folder that must not be written to
        print(f"error: {system_problem(error)}", file=sys.stderr)
        return 1
    return status


def system_problem(error: OSError) -> str:
    """Say which file the system refused, and what to do about it."""
    if error.filename is None:
        return str(error)
    advice = ""
    if error.errno in NOT_ALLOWED:
        advice = "; this command writes beside the data and into the configuration: get the right "
        advice += "to write there, or work on a copy"
    return f"{error.filename}: {error.strerror}{advice}"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file of the training")
    parser.add_argument("--check_only", action="store_true", help="verify, write nothing")
    parser.add_argument("--workers", type=int, default=default_workers(), help="processes")
    parser.add_argument("--overlay", type=int, default=0, metavar="N", help="draw N random frames")
    parser.add_argument(
        "--accept", metavar="REASON", help="train although blur, sharp and spikes disagree; why"
    )
    add_source_arguments(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="configuration keys")
    options = parser.parse_intermixed_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: at least 1 is needed")
    if options.check_only and options.source is not None:
        parser.error("--check_only writes nothing, --source does: give one of them")
    if options.accept is not None and (options.check_only or not options.accept.strip()):
        parser.error("--accept needs a reason, and --check_only writes none: leave one of them")
    if options.overlay < 0:
        parser.error(f"--overlay {options.overlay}: a number of frames is needed")
    return options


def settings_of(cfg: CfgNode, config: str, workers: int) -> PrepareSettings:
    """Return what to prepare.

    Raises:
        DataSetError: several alignment logs are configured; which to write is not clear.
    """
    logs = alignment_paths(cfg)
    if len(logs) > 1:
        raise DataSetError(
            "DATA.ALIGN_LOG_PATHS",
            [f"{len(logs)} logs; this command writes one: name one, or none for the default path"],
        )
    path = Path(config)
    return PrepareSettings(
        scan=scan_settings(cfg),
        train_split=cfg.DATA.TRAIN_SPLIT,
        val_split=cfg.DATA.VAL_SPLIT,
        alignment_log=logs[0],
        config=path if path.exists() else resolve(path),  # as load_config finds it
        workers=workers,
        frame_cache=cfg.DATA.FRAME_CACHE and not cfg.DATA.USE_RAM_CACHE,
        measures_norm=not cfg.DATA.MATCH_LIGHT,
        gain=cfg.DATA.GAIN,
        bin_normalize=cfg.DATA.BIN_NORMALIZE,
    )


def other_root(settings: PrepareSettings, options: argparse.Namespace) -> list[str]:
    """Say so where the configuration got the numbers of another root than the one it names."""
    pairs = list(zip(options.overrides[::2], options.overrides[1::2], strict=True))
    rest = [text for pair in pairs if pair[0] != "DATA.ROOT" for text in pair]
    if len(rest) == len(options.overrides):
        return []
    named = resolve(load_config(options.config, rest, check_paths=False).DATA.ROOT)
    if named == settings.scan.root:
        return []
    return [
        f"note: {settings.config} now has the mean and deviation of {settings.scan.root}, which "
        f"was given on the command line, but names DATA.ROOT {named}; write the new root into it, "
        "or keep one configuration per root"
    ]


def report_check(settings: PrepareSettings, cfg: CfgNode) -> int:
    """Check, print what was seen, what to know and what is wrong; return the exit status."""
    findings = check(cfg, settings.workers)
    print("\n".join(findings.seen + _notes(findings)))
    if not findings.problems:
        print(f"{settings.scan.root}: no problem found")
    return print_problems(settings, findings)


def report_content(settings: PrepareSettings, accepted: str | None) -> int:
    """Look at samples of blur, sharp and spikes where that is to do; return the exit status."""
    content, findings = check_prepared_content(settings, accepted)
    print("\n".join([f"content: {content}", *_notes(findings)]))
    if not findings.problems:
        return 0
    print_problems(settings, findings)
    if accepted is not None:
        return 0
    print('if you know better, give the same command with --accept "REASON"')
    return 1


def draw_overlays(settings: PrepareSettings, count: int, cfg: CfgNode) -> int:
    """Draw random frames with their spikes, say which frames they fit; return the exit status."""
    folder = resolve(cfg.LOG.SAVE_DIR) / "visuals" / f"overlay_{settings.scan.root.name}"
    findings = overlay_splits(
        settings.scan, settings.splits, settings.alignment_log, count, folder, cfg.SEED
    )
    print("\n".join(findings.seen + _notes(findings)))
    return print_problems(settings, findings)


def print_problems(settings: PrepareSettings, findings: Findings) -> int:
    """Print what is wrong, if anything is; return the exit status."""
    if not findings.problems:
        return 0
    print(f"{settings.scan.root}: {len(findings.problems)} problem(s)")
    print("\n".join(f"  {problem}" for problem in findings.problems))
    return 1


def _notes(findings: Findings) -> list[str]:
    return [f"note: {note}" for note in findings.notes]


if __name__ == "__main__":
    sys.exit(main())
