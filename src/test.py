"""Restore folders of blurry frames with a trained model, and score them against sharp frames.

    python src/test.py --input_blur DIR --input_spike_vox DIR --output DIR
                       [--ckpt FILE] [--input_sharp DIR] [--config FILE] [KEY VALUE ...]

A folder is one sequence, or holds one folder per sequence; `SEQ/blur`, `SEQ/spike_vox`, `SEQ/spike`
and `SEQ/sharp` are found too. Frames, spikes and sharp frames are joined by name.
"""

import argparse
import json
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--input_blur", type=Path, required=True, metavar="DIR", help="blurry frames")
    add("--input_spike_vox", type=Path, metavar="DIR", help=".npy counts [K, H, W], or .dat spikes")
    add("--output", type=Path, required=True, metavar="DIR", help="where the PNG files go")
    add("--input_sharp", type=Path, metavar="DIR", help="sharp frames, to compute metrics")
    add("--ckpt", type=Path, metavar="FILE", help="default: best.pth of the run of --config")
    add("--config", type=Path, metavar="FILE", help="needed without --ckpt or for plain weights")
    add("--weights", choices=("auto", "ema", "model"), default="auto", help="auto: ema if there")
    add("--tile", type=int, nargs=2, metavar=("FRAMES", "PIXELS"), help="tile; 0 is the whole")
    add("--tile_overlap", type=int, nargs=2, metavar=("FRAMES", "PIXELS"), help="what tiles share")
    add("--spike_size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of .dat files")
    add("--device", choices=("auto", "cuda", "cpu"), help="default: DEVICE of the configuration")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the network")
    add(
        "overrides", nargs="*", metavar="KEY VALUE", help="dotted keys, such as VAL.BLEND reference"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # --help and wrong arguments end here; the imports below take seconds

import numpy as np
import torch
from tqdm import tqdm
from yacs.config import CfgNode

from src.config import config_to_text
from src.data.description import find_description
from src.data.frames import write_png
from src.data.inputs import InputFolders, scan_inputs
from src.data.recordings import Recording, require_known_ticks
from src.data.scanning import scan_settings
from src.engine.log import start_logging
from src.engine.processes import choose_device, choose_precision
from src.inference.evaluate import build_lpips, evaluate_recordings, peak_memory_gib
from src.inference.load import LoadedModel, compare_data, load_model
from src.inference.restore import NonFiniteOutputError, Restorer, TileMemoryError, build_restorer
from src.metrics.report import BLURRY, Report, format_table
from src.paths import atomic_write, free_name
from src.run_directory import RunDirectory, git_commit

logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    """Restore, score, report; return 2 where the input cannot be used."""
    args = parse_arguments(arguments)
    start_logging(None)
    try:
        run_test(args)
    except (ValueError, OSError, NonFiniteOutputError, TileMemoryError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def run_test(args: argparse.Namespace) -> Path:
    """Restore and score as the command line states; return the path of the report."""
    loaded = load_model(args.ckpt, args.config, _overrides(args), weights=args.weights)
    cfg, file = loaded.cfg, loaded.identity["file"]
    if cfg.MODEL.USE_SPIKE and args.input_spike_vox is None:
        raise ValueError(f"{file} needs spikes; give --input_spike_vox DIR")
    logger.info("%s: %s weights", file, loaded.identity["weights"] or "plain")
    sequences = _find_sequences(args, loaded)
    targets = _output_folders(args.output, sequences)
    device = choose_device(cfg.DEVICE)
    precision = choose_precision(args.precision, device)
    restorer = build_restorer(cfg, loaded.model.to(device), device, precision.autocast_dtype)
    data = compare_data(loaded.data, find_description(args.input_blur))
    num_frames, started = sum(map(len, sequences)), time.perf_counter()
    logger.info("%d frames of %d sequences, %s", num_frames, len(sequences), device)
    report = _restore_all(restorer, sequences, targets, args, cfg)
    gib, owner = peak_memory_gib(device)
    costs = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        # With reading, scoring and writing.
        "seconds_per_frame": (time.perf_counter() - started) / num_frames,
        "model_seconds_per_frame": restorer.seconds / num_frames,
        "peak_memory_gib": gib,
        "peak_memory_of": owner,
    }
    content = {
        "command": shlex.join([sys.executable, *sys.argv]),
        "commit": git_commit(),
        "checkpoint": loaded.identity,
        "data": data,
        "output": str(args.output),
        "frames": {sequence.name: len(sequence) for sequence in sequences},
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
    return path


def _restore_all(
    restorer: Restorer,
    sequences: list[Recording],
    targets: dict[str, Path],
    args: argparse.Namespace,
    cfg: CfgNode,
) -> Report:
    """Restore and write every frame; score it if sharp frames were given."""
    has_sharp = args.input_sharp is not None
    lpips, notes = build_lpips(cfg, restorer.device) if has_sharp else (None, [])
    num_frames = sum(map(len, sequences))
    with tqdm(total=num_frames, unit="frame", disable=not sys.stderr.isatty()) as bar:

        def on_frame(sequence: Recording, i: int, image: np.ndarray, _: object) -> None:
            write_png(targets[sequence.name] / f"{sequence.frames[i].name}.png", image)
            bar.update()

        return evaluate_recordings(
            restorer,
            sequences,
            score=has_sharp,
            score_blurry=True,
            lpips=lpips,
            on_frame=on_frame,
            notes=notes,
        )


def _overrides(args: argparse.Namespace) -> list[str]:
    """Return the options that change the configuration as KEY VALUE pairs."""
    overrides = list(args.overrides)
    if args.device is not None:
        overrides += ["DEVICE", args.device]
    for values, keys in (
        (args.tile, ("VAL.TILE_FRAMES", "VAL.TILE_SIZE")),
        (args.tile_overlap, ("VAL.OVERLAP_FRAMES", "VAL.OVERLAP_SIZE")),
    ):
        if values is not None:
            overrides += [keys[0], str(values[0]), keys[1], str(values[1])]
    return overrides


def _find_sequences(args: argparse.Namespace, loaded: LoadedModel) -> list[Recording]:
    """Return all that is to be restored; every file is read once, so that none fails later."""
    cfg, spikes = loaded.cfg, args.input_spike_vox
    if spikes is not None and not cfg.MODEL.USE_SPIKE:
        logger.info("%s is an RGB-only model: spikes are not read", loaded.identity["file"])
        spikes = None
    size = None if args.spike_size is None else tuple(args.spike_size)
    inputs = InputFolders(args.input_blur, spikes, args.input_sharp, size)
    sequences = scan_inputs(inputs, scan_settings(cfg))
    if cfg.MODEL.USE_SPIKE and cfg.DATA.BIN_NORMALIZE:
        require_known_ticks(sequences)
    for sequence in sequences:
        sequence.check(any_shape=not cfg.DATA.AUGMENT.TRANSPOSE)
    return sequences


def _output_folders(output: Path, sequences: list[Recording]) -> dict[str, Path]:
    """Return the folder of each sequence's frames, `output` itself for a single sequence.

    Raises:
        ValueError: The results would replace the input.
    """
    single = len(sequences) == 1
    targets = {s.name: output if single else output / s.name for s in sequences}
    for sequence in sequences:
        used = {
            path.resolve().parent
            for frame in sequence.frames
            for path in (frame.blurry, frame.sharp)
            if path is not None
        }
        if targets[sequence.name].resolve() in used:
            raise ValueError(f"--output {output} is an input folder; its frames would be replaced")
    return targets


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
