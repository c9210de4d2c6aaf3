"""Train VRT+Spike and its RGB-only baseline alike, compare them on the same frames, write a page.

    python scripts/compare_baseline.py --config FILE [--take] [--on ROOT] [KEY VALUE ...]

The baseline has the same data, steps, seed, augmentation and initial VRT weights. Runs that were
trained before are used, unfinished ones resume; --take trains nothing. The table also has the best
image without learning, a bound, and a plain U-Net where TRAIN.RIVAL_UNET trains one. Besides the
table, the result is an HTML page that opens from disk (outputs/metrics/compare_<exp>.html), its
numbers as JSON and a picture. --on compares on the validation split of another data root.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML file of the VRT+Spike run")
    parser.add_argument("--take", action="store_true", help="train nothing, take what there is")
    parser.add_argument(
        "--on", type=Path, metavar="ROOT", help="with --take: data root to compare on"
    )
    parser.add_argument("--num_processes", type=int, help="default: one per GPU, else one")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="dotted keys")
    args = parser.parse_intermixed_args()
    if args.on is not None and not args.take:
        parser.error("--on compares trained runs: give --take too")
    return args


if __name__ == "__main__":
    parse_arguments()  # --help and wrong arguments end here; the imports below take seconds

from yacs.config import CfgNode

from benchmarks.plain_unet import load_trained, weights_path
from src.comparison.compare import Comparison, compare_runs, overall
from src.comparison.examples import write_example
from src.comparison.page import render_page
from src.comparison.runs import OtherNetwork, trained_run
from src.comparison.scores import UNET
from src.config import ConfigError, load_config, rgb_only_overrides
from src.data.build import build_recordings, build_val_recordings
from src.data.inputs import InputFolders, scan_inputs
from src.data.recordings import Recording
from src.data.scanning import scan_settings
from src.inference.restore import NonFiniteOutputError, TileMemoryError
from src.metrics.report import format_table
from src.paths import REPO_ROOT, atomic_write, resolve


def main() -> int:
    """Train if asked to, compare, write and print; return 1 where that cannot be done."""
    args = parse_arguments()
    if not args.take:
        return train_and_compare(args)
    try:
        cfg = load_config(args.config, args.overrides)
        rgb_only_cfg = load_config(args.config, [*args.overrides, *rgb_only_overrides(cfg)])
        comparison = compare_runs(
            cfg,
            trained_run(rgb_only_cfg),
            trained_run(cfg),
            find_frames(cfg, args.on),
            training=build_recordings(cfg, cfg.DATA.TRAIN_SPLIT),
            others=find_others(cfg),
        )
        write(comparison, "" if args.on is None else f"_on_{resolve(args.on).name}")
    except (ConfigError, OSError, ValueError, NonFiniteOutputError, TileMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def train_and_compare(args: argparse.Namespace) -> int:
    """Let the launcher train both on all GPUs; it ends with this script and --take.

    It takes the place of this process, so that signals come to it and its exit code is ours.
    """
    command = [sys.executable, str(REPO_ROOT / "scripts/launch.py"), "--config", args.config]
    if args.num_processes is not None:
        command += ["--num_processes", str(args.num_processes)]
    command += [*args.overrides, "TRAIN.RGB_TWIN", "true"]
    if sys.platform == "win32":  # where the caller would not wait for what takes the place
        return subprocess.run(command, check=False).returncode  # noqa: S603 (our own script)
    return os.execv(command[0], command)  # noqa: S606 (our own script)


def find_frames(cfg: CfgNode, root: Path | None) -> list[Recording]:
    """Return what to compare on: the validation split of the run, or of another data root."""
    if root is None:
        return build_val_recordings(cfg)
    split = resolve(root) / cfg.DATA.VAL_SPLIT
    return scan_inputs(InputFolders(split, split, split), scan_settings(cfg))


def find_others(cfg: CfgNode) -> dict[str, OtherNetwork]:
    """Return the U-Net that was trained beside the run, by its name in the table."""
    other = load_trained(cfg)
    if other is not None:
        return {UNET: other}
    if cfg.TRAIN.RIVAL_UNET:
        print(
            f"no {UNET}: {weights_path(cfg)} is not there, not trained to its end, or of other "
            "data or settings; benchmarks/plain_unet.py trains it",
            file=sys.stderr,
        )
    return {}


def write(comparison: Comparison, suffix: str) -> None:
    """Write page, numbers and picture; print the table, the result and where they lie."""
    run, frames = comparison.spike.run, comparison.frames
    page = run.metrics / f"compare_{run.name}{suffix}.html"
    picture = run.visuals / f"comparison{suffix}.png"
    numbers = page.with_suffix(".json")
    texts = json.dumps(comparison.to_json(), indent=1, allow_nan=False), render_page(comparison)
    for path, text in zip((numbers, page), texts, strict=True):
        with atomic_write(path) as partial:
            partial.write_text(text, encoding="utf-8")
    write_example(picture, comparison.examples[0])
    print(f"\n{run.name}: means over {len(frames.frames)} validation frames")
    print(format_table([(name, frames.means(name)) for name in frames.methods]))
    for rule in comparison.rules:
        print(f"{rule.outcome:<11} {rule.rule}: {rule.found}")
        if rule.reason:
            print(f"{'':<11} {rule.reason}")
    reasons = {rule.reason for rule in comparison.rules}
    for note in (note for note in frames.notes if note not in reasons):
        print(f"{'note':<11} {note}")
    print(f"result  {overall(comparison.rules)}")
    print(f"page    {page}\ntable   {numbers}\npicture {picture}")


if __name__ == "__main__":
    sys.exit(main())
