"""Make training scenes: photographs in random motion, seen by random RGB and spike cameras.

    python scripts/make_training_scenes.py --scenes N [--val_scenes M] [--seed S]
                                           [--output data/scenes] [--spike_scale mixed|half|full]
                                           [--threshold T] [--workers N]

Needs no network: the photographs lie inside the packages scikit-image and scikit-learn. The same
command again, with the same or more scenes, adds what is missing.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from src.data.description import DescriptionError
from src.data.errors import DataSetError
from src.paths import folder_problem, resolve
from src.prepare.demo import SequenceReport
from src.prepare.training_scenes import SPIKE_SCALES, make_training_scenes


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, make the scenes, print what came out; return the exit status."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    output, counts = resolve(options.output), {"train": options.scenes, "val": options.val_scenes}
    start = time.perf_counter()
    try:
        reports = make_training_scenes(
            output,
            options.seed,
            counts,
            options.spike_scale,
            options.threshold,
            options.workers,
        )
    except (DataSetError, DescriptionError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{output}: {len(reports)} scenes made, {sum(counts.values()) - len(reports)} were there")
    if reports:
        print("\n".join(summary(reports, time.perf_counter() - start, output)))
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, required=True, help="sequences of the train split")
    parser.add_argument("--val_scenes", type=int, default=20, help="sequences of the val split")
    parser.add_argument("--seed", type=int, default=123, help="same seed, same bytes")
    parser.add_argument("--output", default="data/scenes", help="data root to make")
    parser.add_argument(
        "--spike_scale",
        choices=list(SPIKE_SCALES),
        default="mixed",
        help="spike resolution over RGB's",
    )
    parser.add_argument("--threshold", type=float, help="of all spike cameras; default: 1 to 4")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args(arguments)
    if options.threshold is not None and not options.threshold >= 1:
        parser.error(f"--threshold {options.threshold}: at least 1, as a pixel fires once per tick")
    for name, least in {"scenes": 1, "val_scenes": 1, "seed": 0, "workers": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name} {getattr(options, name)}: at least {least} is needed")
    if problem := folder_problem(resolve(options.output)):
        parser.error(f"--output {options.output}: {problem}")
    return options


def summary(reports: list[SequenceReport], seconds: float, output: Path) -> list[str]:
    """Return the rate, the size, and the range of what was made, in lines."""
    folders = [output / r.plan.name for r in reports]
    total = sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())
    count, frames = len(reports), sum(report.plan.num_frames for report in reports)
    lines = [
        f"{count / seconds:.2f} scenes per second, {frames / count:.1f} frames and "
        f"{total / count / 1e6:.2f} MB per scene"
    ]
    rows = {
        "blurry PSNR [dB]": [report.blurry_psnr_db for report in reports],
        "spike rate": [report.spike_rate for report in reports],
    }
    for name, values in rows.items():
        low, middle, high = np.quantile(values, [0, 0.5, 1], method="nearest")
        lines.append(f"{name:<17} median {middle:.3g}, from {low:.3g} to {high:.3g}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
