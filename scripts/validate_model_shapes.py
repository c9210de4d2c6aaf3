"""Build the configured model, run it once, print shapes at every stage and parameters per part.

    python scripts/validate_model_shapes.py [--config FILE] [--size H W] [--spike_size H W]
                                            [--frames T] [KEY VALUE ...]

No data and no weight files are needed. The last three lines say whether the forward pass, the
shapes per scale and the channels are right; the exit code is 1 where one of them is not.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DEFAULT_CONFIG = "configs/deblur/vrt_spike_baseline.yaml"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the spikes have half the resolution unless stated."""
    parser = argparse.ArgumentParser(description="Print the shapes of the configured model.")
    parser.add_argument("--config", default=DEFAULT_CONFIG)
    parser.add_argument("--size", type=int, nargs=2, default=[64, 64], metavar=("H", "W"))
    parser.add_argument("--spike_size", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--frames", type=int, help="default: DATA.CLIP_LEN")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    options = parser.parse_intermixed_args(arguments)
    if options.spike_size is None:
        options.spike_size = [max(1, side // 2) for side in options.size]
    if min(*options.size, *options.spike_size, options.frames or 1) < 1:
        parser.error("sizes and frames must be at least 1")
    return options


if __name__ == "__main__":
    parse_arguments()  # --help and wrong arguments end here; the imports below take seconds

import torch
from torch import nn
from yacs.config import CfgNode

from src.config import ConfigError, load_config
from src.models.build import build_model
from src.models.integrate_vrt import VRTWithSpike


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, print; return the exit status."""
    options = parse_arguments(arguments)
    try:
        cfg = load_config(options.config, options.overrides, check_paths=False)
        model = build_model(cfg, read_weights=False).eval()
    except (ConfigError, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    rows, results = record_shapes(model, cfg, options)
    print_table(("part", "what", "output"), rows)
    print()
    print_table(("part", "parameters", "share"), count_parameters(model))
    print()
    for what, problems in results.items():
        print(f"{what}: {'passed' if not problems else 'FAILED, ' + '; '.join(problems)}")
    return int(any(results.values()))


def record_shapes(
    model: nn.Module, cfg: CfgNode, options: argparse.Namespace
) -> tuple[list[tuple[str, str, str]], dict[str, list[str]]]:
    """Run a random clip; return a row per stage, in order, and what is wrong by kind of check."""
    frames = options.frames or cfg.DATA.CLIP_LEN
    rgb = torch.rand(1, frames, 3, *options.size)
    voxels = torch.randn(1, frames, cfg.DATA.K, *options.spike_size)
    rows = [("input", "blurry frames [B, T, 3, H, W]", shape_of(rgb))]
    if isinstance(model, VRTWithSpike):
        rows.append(("input", "voxel grids [B, T, K, Hs, Ws]", shape_of(voxels)))
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str, what: str, out: torch.Tensor) -> None:
        rows.append((name, what, shape_of(out)))
        shapes[name] = tuple(out.shape)

    handles = [
        module.register_forward_hook(
            lambda _, inputs, out, name=name, what=what: record(name, what, out)
        )
        for name, what, module in watched(model)
    ]
    with torch.no_grad():
        restored = model(rgb, voxels)
    for handle in handles:
        handle.remove()
    rows.append(("output", "restored frames [B, T, 3, H, W]", shape_of(restored)))
    forward = [] if restored.shape == rgb.shape else [f"{shape_of(restored)} is restored"]
    forward += [] if bool(torch.isfinite(restored).all()) else ["values are not finite"]
    return rows, {"forward pass": forward, **check_scales(shapes, cfg, frames)}


def check_scales(
    shapes: dict[str, tuple[int, ...]], cfg: CfgNode, frames: int
) -> dict[str, list[str]]:
    """Compare what is fused with the RGB features that it replaces."""
    sizes, channels = [], []
    for i, width in enumerate(cfg.MODEL.CHANNELS_PER_SCALE, 1):
        stage = shapes[f"vrt.stage{i}"]  # [B, C, T, h, w]
        if (fused := shapes.get(f"cross_attn_fuse.fuse_blocks.{i - 1}")) is None:
            continue
        batch, length, found, *pixels = fused
        spikes = shapes[f"spike_encoder.scales.{i - 1}"]
        if (batch, length, *pixels) != (stage[0], *stage[2:]):
            sizes.append(f"scale {i}: {fused} is fused into {stage}")
        if not found == spikes[1] == stage[1] == width:
            channels.append(f"scale {i}: RGB {stage[1]}, spikes {spikes[1]}, not {width}")
        if spikes[2] < frames:
            print(f"note: TEMPORAL_STRIDES leave {spikes[2]} of {frames} times at scale {i}")
    return {"shapes per scale": sizes, "channels": channels}


def watched(model: nn.Module) -> list[tuple[str, str, nn.Module]]:
    """Return name, meaning and module of everything whose output is shown."""
    parts = [(f"vrt.stage{i}", "RGB features [B, C, T, h, w]") for i in range(1, 8)]
    parts += [(f"vrt.stage8.{i}", "features") for i in range(len(model.vrt.stage8))]
    if isinstance(model, VRTWithSpike):
        attended, fused = "attended [B, T', C, h', w']", "fused [B, T, C, h, w], replaces"
        for i in range(len(model.cross_attn_fuse.fuse_blocks)):
            parts.append((f"spike_encoder.scales.{i}", "spike features [B, C, T', h', w']"))
            parts.append((f"spike_temporal_sa.blocks.{i}", attended))
            parts.append((f"cross_attn_fuse.fuse_blocks.{i}", f"{fused} vrt.stage{i + 1}"))
    return [(name, what, model.get_submodule(name)) for name, what in parts]


def count_parameters(model: nn.Module) -> list[tuple[str, str, str]]:
    """Return a row per part of the model and one for all."""
    count = {name: sum(p.numel() for p in m.parameters()) for name, m in model.named_children()}
    total = sum(count.values())
    rows = [(name, f"{n:,}", f"{n / total:.1%}") for name, n in count.items()]
    return [*rows, ("all", f"{total:,}", "100.0%")]


def shape_of(tensor: torch.Tensor) -> str:
    """Return a shape as text, e.g. 1 x 5 x 3 x 64 x 64."""
    return " x ".join(str(n) for n in tensor.shape)


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows in columns as wide as their longest entry."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = tuple("-" * width for width in widths)
    for row in [header, rule, *rows]:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    sys.exit(main())
