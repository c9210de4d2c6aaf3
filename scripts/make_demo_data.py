"""Make the demo data: moving photographs with blurry frames, sharp frames and spikes.

    python scripts/make_demo_data.py [--output data/demo] [--seed 123] [--workers N]

Needs no network: the photographs lie inside the scikit-image package.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.data.description import DescriptionError
from src.data.errors import DataSetError
from src.paths import folder_problem, resolve
from src.prepare.demo import demo_plan, make_demo_data


def main() -> int:
    """Parse the command line, make the data, print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="data/demo", help="data root to make")
    parser.add_argument("--seed", type=int, default=123, help="same seed, same bytes")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: it must not be negative")
    if problem := folder_problem(resolve(arguments.output)):
        parser.error(f"--output {arguments.output}: {problem}")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")

    output, plan = resolve(arguments.output), demo_plan()
    start = time.perf_counter()
    try:
        reports = make_demo_data(output, arguments.seed, plan, arguments.workers)
    except (DataSetError, DescriptionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not reports:
        print(f"{output}: complete already, nothing to do")
        return 0
    print("sequence       background            n  blurry PSNR  spike rate")
    for report in reports:
        sequence = report.plan
        name = f"{sequence.split}/{sequence.name}"
        print(
            f"{name:<14} {sequence.background:<20} {sequence.num_averaged:>2}  "
            f"{report.blurry_psnr_db:8.2f} dB  {report.spike_rate:10.3f}"
        )
    print(f"{output}: {plan.source(arguments.seed)}; {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
