"""Find out which size, bit order and flip a spike file has, and draw what it shows.

    python scripts/inspect_spikes.py FILE [--height H --width W] [--bit_order little|big]
        [--flip true|false] [--axes THW] [--key NAME] [--threshold T] [--reference IMAGE]
        [--output DIR]

FILE is packed bits (`.dat`, at most samples of which are read), or dense spikes or a list of events
in `.npy`, `.npz` or `.h5`. Nothing has to be given: what is given is tested. `--reference` is an
image of the same scene and decides bit order and flip. Exits with 1 where what was given cannot be
right, or the file is unfit.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from src.data.errors import BadFileError
from src.data.spikes.spike_dat import BIT_ORDERS
from src.paths import folder_problem, resolve
from src.pictures.panels import write_page
from src.pictures.spike_page import draw_spike_page
from src.prepare.inspect_file import inspect_file
from src.prepare.inspect_packed import Inspection, Question


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, inspect, draw; return the exit status."""
    options = parse_arguments(arguments)
    question = Question(
        path=options.file,
        size=None if options.height is None else (options.height, options.width),
        bit_order=options.bit_order,
        flip_rows=None if options.flip is None else options.flip == "true",
        axes=options.axes,
        key=options.key,
        reference=options.reference,
    )
    try:
        found = inspect_file(question)
    except (BadFileError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lines = [f"{options.file}: {found.answer}", *(f"  {line}" for line in found.measured)]
    print("\n".join([*lines, *(f"  note: {line}" for line in found.warnings)]))
    if found.block is not None:
        path = resolve(options.output) / f"{options.file.stem}.png"
        write_page(path, draw(found, options))
        print(f"picture: {path}")
    return 0 if found.is_right else 1


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--height", type=int, help="rows of the sensor")
    parser.add_argument("--width", type=int, help="columns of the sensor")
    parser.add_argument("--bit_order", choices=BIT_ORDERS, help="little: first pixel in bit 0")
    parser.add_argument("--flip", choices=("true", "false"), help="bottom row stored first")
    parser.add_argument("--axes", help="of an array, like THW; of a list, like tyxp")
    parser.add_argument("--key", help="array in an .npz or .h5")
    parser.add_argument("--threshold", type=float, help="gain of the pictures")
    parser.add_argument("--reference", type=Path, metavar="IMAGE", help="image of the same scene")
    parser.add_argument("--output", default="outputs/visuals/spikes", metavar="DIR")
    options = parser.parse_args(arguments)
    if (options.height is None) != (options.width is None):
        parser.error("--height and --width: give both or none")
    if options.height is not None and min(options.height, options.width) < 1:
        parser.error("--height and --width must be at least 1")
    if options.threshold is not None and not options.threshold > 0:
        parser.error(f"--threshold {options.threshold}: a number above 0 is needed")
    if problem := folder_problem(resolve(options.output)):
        parser.error(f"--output {options.output}: {problem}")
    return options


def draw(found: Inspection, options: argparse.Namespace) -> np.ndarray:
    """Return the page about the file."""
    block = found.block
    lines = [str(options.file.name), ("" if found.is_right else "! ") + found.answer]
    return draw_spike_page(
        block.spikes, block.first_tick, block.num_ticks, options.threshold, lines
    )


if __name__ == "__main__":
    sys.exit(main())
