"""Turn a checkpoint into one .safetensors file that src/test.py restores with.

    python scripts/export_weights.py CHECKPOINT OUTPUT.safetensors [--merge] [--name NAME]
                                     [--licence TEXT] [--report FILE ...]

The file holds the weights, and as metadata the configuration, VRT's arguments, the description of
the training data, the step, the scores and the licence; no state of the training. A checkpoint with
averaged weights keeps both sets; --merge keeps the averaged ones alone, which were validated.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="best.pth or last.pth of a run")
    parser.add_argument("output", type=Path, help="file to write, NAME.safetensors")
    parser.add_argument("--merge", action="store_true", help="only the averaged weights (EMA)")
    parser.add_argument("--name", help="of the model (EXP_NAME); default: that of the file")
    parser.add_argument("--licence", default="not stated", help="under which others may use it")
    parser.add_argument(
        "--report", type=Path, action="append", default=[], help="of src/test.py, for the scores"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # --help and wrong arguments end here; the imports below take seconds

from src.config import config_from_text, config_to_text
from src.data.errors import naming_record
from src.engine.checkpoint import load_checkpoint
from src.models.weights import write_exported
from src.paths import atomic_write


def main(arguments: list[str] | None = None) -> int:
    """Write the file; return 1 where the checkpoint or a report cannot be used."""
    args = parse_arguments(arguments)
    try:
        if args.output.suffix != ".safetensors":
            raise ValueError(f"{args.output}: a name that ends in .safetensors is needed")
        export(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {size:.2f} MB; python src/test.py --ckpt {args.output} reads it")
    return 0


def export(args: argparse.Namespace) -> None:
    """Write the weights of `args.checkpoint` to `args.output`."""
    state = load_checkpoint(args.checkpoint)
    for key, kind in {"config": str, "model": dict}.items():
        if not isinstance(state.get(key), kind):
            raise ValueError(f"{args.checkpoint} lacks {key}: it is damaged, give another one")
    if args.merge:
        if "ema" not in state:
            raise ValueError(
                f"{args.checkpoint} has no averaged weights (TRAIN.EMA_DECAY was 0); leave --merge"
            )
        state["model"] = state.pop("ema")
    name = args.name or args.output.stem
    where = f"configuration in {args.checkpoint}"
    state["config"] = config_to_text(config_from_text(state["config"], where, ["EXP_NAME", name]))
    progress = state["progress"]
    scores = {}
    if progress.get("best_step") == progress["step"]:  # else the score is that of other weights
        scores["validation"] = {"psnr_rgb": progress["best_psnr"]}
    scores |= {str(path): scores_of(path) for path in args.report}
    facts = {"licence": args.licence, "scores": scores, "compute_s": progress.get("compute_s")}
    with atomic_write(args.output) as partial:
        write_exported(partial, state, facts)


def scores_of(path: Path) -> dict[str, float | None]:
    """Return the means over frames in a report of src/test.py.

    Raises:
        ValueError: The file has none.
    """
    with naming_record(path, "report of src/test.py with --input_sharp"):
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
        return scores["restored"]["mean_over_frames"]


if __name__ == "__main__":
    sys.exit(main())
