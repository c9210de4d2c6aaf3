"""Compare a trained VRT+Spike with its RGB-only twin, on the same validation frames.

    python scripts/compare_baseline.py --config FILE [KEY VALUE ...]

Both must have been trained: `launch_train.sh` does so where TRAIN.RGB_TWIN is true. Prints a table
of means over all frames, writes it to outputs/metrics/compare_<exp>.json, and draws a picture.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.config import ConfigError, load_config
from src.data.build import build_val_recordings
from src.engine.comparison import (
    check_comparable,
    means_of,
    scored_run,
    twin_overrides,
    write_picture,
)
from src.engine.run_directory import RunDirectory, git_commit
from src.metrics.report import format_table, json_safe
from src.paths import atomic_write


def main() -> int:
    """Read the scores of both runs, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML file of the VRT+Spike run")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="dotted keys")
    args = parser.parse_intermixed_args()
    try:
        cfg = load_config(args.config, args.overrides)
        twin_cfg = load_config(args.config, [*args.overrides, *twin_overrides(cfg)])
        spike, twin = scored_run(cfg), scored_run(twin_cfg)
        check_comparable(twin, spike)
        recordings = build_val_recordings(cfg)
    except (ConfigError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    run = RunDirectory.of(cfg)
    rows = [
        ("blurry input", means_of(spike.validation["blurry"])),
        ("RGB-only twin", twin.means),
        ("VRT+Spike", spike.means),
    ]
    content = {
        "commit": git_commit(),
        "protocol": spike.validation["protocol"],
        "num_frames": spike.validation["num_frames"],
        "mean_over_frames": json_safe(dict(rows)),
    }
    table = run.metrics / f"compare_{run.name}.json"
    with atomic_write(table) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    picture = run.visuals / "comparison.png"
    write_picture(picture, twin, spike, recordings)
    print(f"\n{cfg.EXP_NAME}: means over {content['num_frames']} validation frames")
    print(format_table(rows))
    print(f"table   {table}\npicture {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
