"""Restore folders of blurry frames with a trained model, and score them against sharp frames.

    python src/test.py --input_blur DIR|VIDEO --input_spike_vox DIR --output DIR
                       [--ckpt FILE] [--input_sharp DIR] [--config FILE] [KEY VALUE ...]

A folder is one sequence, or holds one folder per sequence; `SEQ/blur`, `SEQ/spike_vox`, `SEQ/spike`
and `SEQ/sharp` are found too. Frames, spikes and sharp frames are joined by name; the frames of a
video are named 000000, 000001 and so on. PNG files are written; scripts/visualize.py makes videos.

Exit codes: 0 done, 2 an input that cannot be used, 130 stopped by Ctrl-C, with a report so far.
"""

import argparse
import json
import logging
import shlex
import signal
import sys
import time
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STOPPED = "stopped by Ctrl-C"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--input_blur", type=Path, required=True, metavar="DIR|VIDEO", help="blurry frames")
    add("--input_spike_vox", type=Path, metavar="DIR", help=".npy counts [K, H, W], or .dat spikes")
    add("--output", type=Path, required=True, metavar="DIR", help="where the PNG files go")
    add("--overwrite", action="store_true", help="into a folder that holds pictures already")
    add("--input_sharp", type=Path, metavar="DIR", help="sharp frames, to compute metrics")
    add("--ckpt", type=Path, metavar="FILE", help="default: best.pth of the run of --config")
    add("--config", type=Path, metavar="FILE", help="needed without --ckpt or for plain weights")
    add("--weights", choices=("auto", "ema", "model"), default="auto", help="auto: ema if there")
    add("--tile", type=int, nargs=2, metavar=("FRAMES", "PIXELS"), help="tile; 0 is the whole")
    add("--tile_overlap", type=int, nargs=2, metavar=("FRAMES", "PIXELS"), help="what tiles share")
    add("--spike_size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of .dat files")
    add("--device", choices=("auto", "cuda", "cpu"), help="default: DEVICE of the configuration")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the network")
    add("--compile", action="store_true", help="compile parts of the network; the first tile waits")
    add(
        "overrides", nargs="*", metavar="KEY VALUE", help="dotted keys, such as VAL.BLEND reference"
    )
    return parser.parse_args(arguments)


def stop(*_: object) -> None:
    """Exit on Ctrl-C without a traceback, in the middle of an import, too."""
    sys.stderr.write(f"{STOPPED}\n")
    sys.exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, stop)
    parse_arguments()  # --help and wrong arguments end here; the imports below take seconds

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from src.config import config_to_text
from src.data.description import find_description
from src.data.errors import listed
from src.data.frames import write_png
from src.data.inputs import find_inputs, scan_inputs
from src.data.recordings import Recording, require_known_ticks
from src.data.scanning import scan_settings
from src.engine.log import start_logging
from src.engine.processes import choose_device, choose_precision
from src.inference.load import LoadedModel, compare_data, load_model
from src.inference.restore import (
    Restorer,
    build_lpips,
    build_restorer,
    evaluate,
    peak_memory_gib,
    report_on,
)
from src.metrics.report import BLURRY, Report, format_table, notes_on_sizes
from src.models.compiled import compile_and_time
from src.paths import atomic_write, folder_problem, free_name
from src.run_directory import RunDirectory, git_commit

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Restore, score, report; return the exit code."""
    args = parse_arguments(arguments)
    start_logging(None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run_test(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        stop()


def run_test(args: argparse.Namespace) -> int:
    """Restore and score as the command line states, write the report; return the exit code."""
    check_output(args)
    loaded = load_model(args.ckpt, args.config, _overrides(args), weights=args.weights)
    cfg, file = loaded.cfg, loaded.identity["file"]
    if cfg.MODEL.USE_SPIKE and args.input_spike_vox is None:
        raise ValueError(f"{file} needs spikes; give --input_spike_vox DIR")
    logger.info("%s: %s weights", file, loaded.identity["weights"] or "plain")
    sequences = _find_sequences(args, loaded)
    single = len(sequences) == 1
    targets = {s.name: args.output if single else args.output / s.name for s in sequences}
    notes = [*check_targets(args, sequences, targets), *find_gaps(sequences)]
    for note in notes:
        logger.warning("%s", note)
    device = choose_device(cfg.DEVICE)
    precision = choose_precision(args.precision, device)
    restorer = build_restorer(cfg, loaded.model.to(device), device, precision.autocast_dtype)
    if args.compile:
        first = sequences[0]
        compile_and_time([loaded.model], lambda: next(restorer.restore(first)), "--compile")
        restorer.seconds = 0.0
    data = compare_data(loaded.data, find_description(args.input_blur))
    num_frames, started = sum(map(len, sequences)), time.perf_counter()
    logger.info("%d frames of %d sequences, %s", num_frames, len(sequences), device)
    report, done = _restore_all(restorer, sequences, targets, args.input_sharp is not None, cfg)
    report.notes += notes
    costs = _costs(restorer, time.perf_counter() - started, max(1, done.total()))
    content = {
        "command": shlex.join([sys.executable, *sys.argv]),
        "commit": git_commit(),
        "checkpoint": loaded.identity,
        "data": data,
        "inputs": {
            name: None if path is None else str(path.resolve())
            for name, path in (("blurry", args.input_blur), ("sharp", args.input_sharp))
        },
        "output": str(args.output.resolve()),
        "frames": dict(done),
        **costs,
        "protocol": report.protocol,
        "notes": report.notes,
        "scores": report.to_json() if report.frames else None,
        "config": config_to_text(cfg),
    }
    name = f"test_{time.strftime('%Y%m%d-%H%M%S')}.json"
    path = free_name(RunDirectory.of(cfg).metrics / name)
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    _show(costs, report, args.output, path)
    return 0 if done.total() == num_frames else 130


def _costs(restorer: Restorer, seconds: float, num_frames: int) -> dict[str, Any]:
    """Return what restoring took, in all with reading, scoring and writing."""
    device = restorer.device
    gib, owner = peak_memory_gib(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "seconds_per_frame": seconds / num_frames,
        "model_seconds_per_frame": restorer.seconds / num_frames,
        "peak_memory_gib": gib,
        "peak_memory_of": owner,
    }


def _restore_all(
    restorer: Restorer,
    sequences: list[Recording],
    targets: dict[str, Path],
    has_sharp: bool,
    cfg: CfgNode,
) -> tuple[Report, Counter[str]]:
    """Restore and write every frame; score it if there are sharp ones; count those of a sequence.

    Ctrl-C ends it early, with a note in the report.
    """
    lpips, notes = build_lpips(cfg, restorer.device) if has_sharp else (None, [])
    num_frames, rows, done = sum(map(len, sequences)), [], Counter[str]()
    frames = evaluate(restorer, sequences, score=has_sharp, score_blurry=True, lpips=lpips)
    try:
        for sequence, i, image, scores in tqdm(
            frames, total=num_frames, unit="frame", disable=not sys.stderr.isatty()
        ):
            write_png(targets[sequence.name] / f"{sequence.frames[i].name}.png", image)
            done[sequence.name] += 1
            rows += [] if scores is None else [scores]
    except KeyboardInterrupt:
        notes.append(f"{STOPPED} after {done.total()} of {num_frames} frames")
    notes += notes_on_sizes(rows, has_lpips=lpips is not None)
    return report_on(restorer, rows, notes), done


def _overrides(args: argparse.Namespace) -> list[str]:
    """Return the options that change the configuration as KEY VALUE pairs."""
    given = [("DEVICE", args.device)]
    given += zip(("VAL.TILE_FRAMES", "VAL.TILE_SIZE"), args.tile or (), strict=False)
    given += zip(("VAL.OVERLAP_FRAMES", "VAL.OVERLAP_SIZE"), args.tile_overlap or (), strict=False)
    pairs = [(key, str(value)) for key, value in given if value is not None]
    return [*args.overrides, *chain.from_iterable(pairs)]


def _find_sequences(args: argparse.Namespace, loaded: LoadedModel) -> list[Recording]:
    """Return all that is to be restored; every file is read once, so that none fails later."""
    cfg, spikes = loaded.cfg, args.input_spike_vox
    if spikes is not None and not cfg.MODEL.USE_SPIKE:
        logger.info("%s is an RGB-only model: spikes are not read", loaded.identity["file"])
        spikes = None
    size = None if args.spike_size is None else tuple(args.spike_size)
    inputs = find_inputs(args.input_blur, spikes, args.input_sharp, size)
    sequences = scan_inputs(inputs, scan_settings(cfg))
    if cfg.MODEL.USE_SPIKE and cfg.DATA.BIN_NORMALIZE:
        require_known_ticks(sequences, match_light=cfg.DATA.MATCH_LIGHT)
    for sequence in sequences:
        sequence.check(any_shape=not cfg.DATA.AUGMENT.TRANSPOSE)
    return sequences


def check_output(args: argparse.Namespace) -> None:
    """Refuse an --output that is no folder, or lies in an input or in a data root.

    The next test, training or check would read the results as frames.
    """
    around = (args.output.resolve(), *args.output.resolve().parents)
    if problem := folder_problem(args.output):
        raise ValueError(f"--output {args.output}: {problem}")
    inputs = (args.input_blur, args.input_spike_vox, args.input_sharp)
    folders = {path.resolve() for path in inputs if path is not None and path.is_dir()}
    _refuse_inside(args.output, folders | {p for p in around if (p / "dataset.yaml").is_file()})


def check_targets(
    args: argparse.Namespace, sequences: list[Recording], targets: dict[str, Path]
) -> list[str]:
    """Refuse an --output in the folder of a sequence, or, without --overwrite, beside pictures.

    Return a note about pictures that stay.
    """
    paths = {path.resolve().parent for s in sequences for path in s.files if path is not None}
    _refuse_inside(args.output, paths | {p.parent for p in paths if p.name in ("blur", "sharp")})
    endings = (".png", ".jpg", ".jpeg", ".bmp")
    written = {targets[s.name] / f"{frame.name}.png" for s in sequences for frame in s.frames}
    there = [p for pattern in ("*", "*/*") for p in sorted(args.output.glob(pattern))]
    there = [path for path in there if path.suffix.lower() in endings]
    names = listed([str(p.relative_to(args.output)) for p in there if p not in written], 3)
    if there and not args.overwrite:
        raise ValueError(
            f"--output {args.output} holds {len(there)} pictures, of another run perhaps; give an "
            "empty folder, or add --overwrite: pictures of the same name are replaced, "
            + (f"others stay ({names})" if names else "there are no others")
        )
    return [f"{args.output} holds pictures that are not of this test: {names}"] if names else []


def _refuse_inside(output: Path, folders: set[Path]) -> None:
    around = (output.resolve(), *output.resolve().parents)
    for folder in folders.intersection(around):
        raise ValueError(
            f"--output {output} lies in {folder}, which holds input or data: its frames could be "
            "replaced, and results be read as frames; give another folder"
        )


def find_gaps(sequences: list[Recording]) -> list[str]:
    """Return a note about each sequence whose numbers have a gap: a frame is missing there."""
    notes = []
    for sequence in sequences:
        pairs = list(pairwise(sequence.frames))
        usual = min((b.index - a.index for a, b in pairs), default=1)
        gaps = [f"between {a.name} and {b.name}" for a, b in pairs if b.index - a.index != usual]
        if gaps:
            notes.append(
                f"{sequence.name}: frames are missing {listed(gaps, 5)}; those around are restored "
                "as if they followed each other"
            )
    return notes


def _show(costs: dict[str, Any], report: Report, output: Path, path: Path) -> None:
    logger.info(
        "%.3f s per frame, of which %.3f s in the model; peak memory %s GiB (%s)",
        *(costs["seconds_per_frame"], costs["model_seconds_per_frame"]),
        *(round(costs["peak_memory_gib"] or 0, 2) or "?", costs["peak_memory_of"]),
    )
    for note in report.notes:
        logger.info(note)
    if report.frames:
        rows = [("blurry input", report.means(BLURRY)), ("restored", report.means())]
        logger.info("mean over frames\n%s", format_table(rows))
    logger.info("frames: %s", output)
    logger.info("report: %s", path)


if __name__ == "__main__":
    sys.exit(main())
