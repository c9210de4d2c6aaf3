"""The options of `scripts/prepare_data.py` that belong to raw sources."""

import argparse
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from yacs.config import CfgNode

from src.data.errors import DataSetError
from src.data.scanning import scan_settings
from src.data.simulation.simulator import TRANSFERS
from src.prepare.sources import gopro, own, spk_gopro, x4k1000fps
from src.prepare.sources.plan import BLUR_GAMMAS, INTERPOLATORS, SourceOptions, SourcePlan
from src.prepare.sources.run import Caches, run_plan

SOURCES: Mapping[str, Callable[[SourceOptions], SourcePlan]] = {
    "folders": own.plan,
    "gopro": gopro.plan,
    "spk_gopro": spk_gopro.plan,
    "x4k1000fps": x4k1000fps.plan,
}
WHOLE = (0, 1)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--source`, `--input`, `--shard` and the fields of `SourceOptions`."""
    group = parser.add_argument_group(
        "sources", "make DATA.ROOT from a data set as it was downloaded, then prepare it"
    )
    group.add_argument("--source", choices=sorted(SOURCES), help="which data set it is")
    group.add_argument("--input", type=Path, metavar="DIR", help="where it was unpacked")
    group.add_argument("--shard", type=_shard, default=WHOLE, metavar="I/N", help="part I of N")
    group.add_argument("--blur_kind", choices=tuple(BLUR_GAMMAS), help="mean of values or light")
    group.add_argument("--threshold", type=float, help="of the simulated spike camera; 2.0")
    group.add_argument("--transfer", choices=TRANSFERS, help="what it integrates; encoded")
    group.add_argument("--downscale", type=int, metavar="N", help="RGB per spike pixel; 2")
    group.add_argument("--interpolator", choices=INTERPOLATORS, help="of light between frames")
    group.add_argument("--ticks_per_frame", type=int, metavar="N", help="readouts per frame")
    group.add_argument("--frames_averaged", type=int, metavar="N", help="in a blurry frame")
    group.add_argument("--stride", type=int, metavar="N", help="from exposure to exposure")
    group.add_argument("--frames_per_second", type=float, metavar="F", help="of the source")
    group.add_argument("--seed", type=int, help="of the simulated spike camera; 0")
    group.add_argument("--axes", help="order of the axes of spike arrays, such as THW")
    group.add_argument("--key", help="name of the spike array in its container")
    group.add_argument("--columns", help="order of the columns of event lists; tyxp")


def source_options(given: argparse.Namespace) -> SourceOptions | None:
    """Return what the command line says of a source; None without `--source`.

    Raises:
        DataSetError: options of sources without one, a source without a folder, or bad values.
    """
    names = [field.name for field in dataclasses.fields(SourceOptions)]
    values = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.source is None:
        lonely = [f"--{name}" for name in values if name != "accept"]  # which preparation has, too
        lonely += ["--shard"] * (given.shard != WHOLE)
        if lonely:
            raise DataSetError("options", [f"{', '.join(lonely)}: only with --source"])
        return None
    if "input" not in values:
        raise DataSetError("options", ["--source needs --input, the folder that was downloaded"])
    if not given.input.is_dir():
        raise DataSetError("options", [f"--input {given.input}: no such folder"])
    # Folders are known by their names, also where "." was given; links keep theirs.
    values["input"] = Path(os.path.abspath(given.input))  # noqa: PTH100
    return SourceOptions(**values)


def make_from_source(
    name: str, options: SourceOptions, cfg: CfgNode, shard: tuple[int, int], workers: int
) -> list[str]:
    """Make the sequences of DATA.ROOT; return what was done.

    Raises:
        DataSetError, BadFileError: what cannot be made, and why.
    """
    if (cfg.DATA.TRAIN_SPLIT, cfg.DATA.VAL_SPLIT) != ("train", "val"):
        raise DataSetError(
            "DATA.TRAIN_SPLIT, DATA.VAL_SPLIT", ["sources write train and val; name them so"]
        )
    settings = scan_settings(cfg)
    if settings.root.resolve() == options.input.resolve():
        raise DataSetError(
            str(settings.root),
            [
                "is DATA.ROOT and --input at the same time; what is there stays as it is, give "
                "another DATA.ROOT to write to. A folder in our layout needs no --source"
            ],
        )
    has_frame_cache = cfg.DATA.FRAME_CACHE and not cfg.DATA.USE_RAM_CACHE
    caches = Caches(
        settings.num_bins if settings.use_voxel_cache else None,
        options.downscale if has_frame_cache else None,
    )
    plan = SOURCES[name](options)
    return run_plan(plan, settings.root, workers=workers, shard=shard, caches=caches)


def after_shard(shard: tuple[int, int]) -> str | None:
    """Return the sentence that ends a part of the work; None where it is all of it."""
    number, count = shard
    if shard == WHOLE:
        return None
    return (
        f"part {number} of {count} is done; when parts 0 to {count - 1} all are, run the same "
        "command without --shard: it makes what is missing and prepares the data"
    )


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: parts of 4 are 0/4, 1/4, 2/4 and 3/4")
    return int(match[1]), int(match[2])
