"""Say what a training needs before it is started: memory, seconds per step, days, what fits.

    python scripts/plan.py --config FILE [--gpu_memory GB] [KEY VALUE ...]

On a machine with a CUDA device one micro-batch is run and measured at the configured sizes. Without
one the memory is counted on tensors without values and the time follows from counted operations
and assumed rates; every such number is called an estimate. Counting the full model took 6 min 18 s
on two cores that had other work to do (3 minutes of processor time); stderr says how far it is.
"""

import argparse
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from yacs.config import CfgNode

from src.config import ConfigError, load_config
from src.engine.distributed import choose_device
from src.engine.parameter_groups import freeze
from src.engine.planning import (
    GB,
    GPU_TFLOPS,
    MEMORIES_GB,
    RESERVE,
    RESERVE_ESTIMATED,
    SMALL_CROPS_PX,
    MemoryLaw,
    Search,
    StateBytes,
    days,
    fit_law,
    settings_for,
    state_bytes,
    step_flops,
    steps_of,
    with_recomputation,
)
from src.engine.precision import Precision, choose_precision
from src.engine.step_cost import (
    MicroBatchSize,
    count_activations,
    count_flops,
    measure_on_gpu,
)
from src.models.build import build_model


@dataclass(frozen=True)
class Costs:
    """What was measured or counted.

    Attributes:
        activations: Bytes at the configured size; None where it did not fit into the GPU.
        seconds: Of one micro-batch; None without a GPU.
        flops: Of one forward pass at the configured size; None on a GPU.
        laws: Memory by whether intermediates are computed again.
    """

    activations: float | None
    seconds: float | None
    flops: float | None
    laws: dict[bool, MemoryLaw]


def main(arguments: list[str] | None = None) -> int:
    """Measure or count, print; return the exit status."""
    options = parse_arguments(arguments)
    try:
        cfg = load_config(options.config, options.overrides, check_paths=False)
        device = choose_device(cfg.DEVICE)
        model = build_on_meta(cfg)
        steps = steps_of(cfg)
        state, is_measured = state_bytes(model, cfg), device.type == "cuda"
        print_opening(cfg, is_measured)
        print_state(state)
        costs = measure(cfg, device) if is_measured else estimate(cfg)
    except (ConfigError, OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print_activations(state, costs)
    print_time(cfg, costs, steps)
    memories = (options.gpu_memory,) if options.gpu_memory else MEMORIES_GB
    print_settings(cfg, state, costs, memories)
    return 0


def build_on_meta(cfg: CfgNode) -> torch.nn.Module:
    """Return the model without values, for counting parameters."""
    with torch.device("meta"):
        model = build_model(cfg, read_weights=False)
    freeze(model, cfg.TRAIN.FREEZE)
    return model


def configured(cfg: CfgNode) -> MicroBatchSize:
    """Return the micro-batch of the configuration."""
    return MicroBatchSize(cfg.TRAIN.BATCH_SIZE, cfg.DATA.CLIP_LEN, cfg.DATA.CROP_SIZE)


def small_sizes(cfg: CfgNode) -> list[MicroBatchSize]:
    """Return the two sizes through which the line of memory is laid."""
    return [MicroBatchSize(1, cfg.DATA.CLIP_LEN, crop) for crop in SMALL_CROPS_PX]


def estimate(cfg: CfgNode) -> Costs:
    """Count what a step needs, without a GPU."""
    precision = Precision("fp32" if cfg.TRAIN.AMP == "fp32" else "bf16", "cpu")
    sizes, laws = small_sizes(cfg), {}
    passes = count(1)

    def activations(recomputes: bool, size: MicroBatchSize) -> int:
        kept = "computed again" if recomputes else "kept"
        tell_pass(next(passes), f"memory at {size.crop_px} px, intermediates {kept}")
        return count_activations(with_recomputation(cfg, enabled=recomputes), size, precision)

    for recomputes in (True, False):
        laws[recomputes] = fit_law({size: activations(recomputes, size) for size in sizes})
    tell_pass(next(passes), "operations")
    forward = count_flops(cfg, sizes[0], precision)
    size = configured(cfg)
    flops = forward * size.pixels / sizes[0].pixels
    return Costs(laws[recomputes_all(cfg)](size), None, flops, laws)


def tell_pass(number: int, what: str) -> None:
    """Say which pass of counting begins; each may take a minute or two."""
    print(f"counting, pass {number} of 5: {what}", file=sys.stderr, flush=True)


def measure(cfg: CfgNode, device: torch.device) -> Costs:
    """Run micro-batches on the GPU."""
    precision = choose_precision(cfg.TRAIN.AMP, device)
    laws = {}
    for recomputes in (True, False):
        changed = with_recomputation(cfg, enabled=recomputes)
        laws[recomputes] = fit_law(
            {s: measure_on_gpu(changed, s, precision, device)[0] for s in small_sizes(cfg)}
        )
    try:
        activations, seconds = measure_on_gpu(cfg, configured(cfg), precision, device)
    except torch.cuda.OutOfMemoryError:
        return Costs(None, None, None, laws)
    return Costs(activations, seconds, None, laws)


def recomputes_all(cfg: CfgNode) -> bool:
    """Whether attention and MLPs are both computed again; one of them alone counts as neither."""
    return cfg.MODEL.USE_CHECKPOINT_ATTN and cfg.MODEL.USE_CHECKPOINT_FFN


def print_opening(cfg: CfgNode, is_measured: bool) -> None:
    """Say what is planned and where the numbers come from."""
    train, data = cfg.TRAIN, cfg.DATA
    kept = "computed again" if recomputes_all(cfg) else "kept"
    print(
        f"{cfg.EXP_NAME}: {data.CLIP_LEN} frames of {data.CROP_SIZE} x {data.CROP_SIZE}, "
        f"{train.BATCH_SIZE} clip(s) x {train.GRADIENT_ACCUMULATION_STEPS} accumulated per GPU, "
        f"intermediates {kept}"
    )
    if is_measured:
        print("measured on this machine's GPU, with a plain loss and synthetic clips")
    else:
        print(
            "ESTIMATE, no GPU here: memory counted on tensors without values, for crops of "
            f"{SMALL_CROPS_PX[0]} and {SMALL_CROPS_PX[1]} pixels, and laid through by a line"
        )
        print("work spaces of kernels are not counted; on a CPU they made 1.6 times the count")
    print("not included: the VGG network of LOSS.VGG_PERCEPTUAL, DDP's buckets, data loading\n")


def print_state(state: StateBytes) -> None:
    """Print the memory that is known before anything is counted, at once also into a pipe."""
    rows = {
        "weights": state.weights,
        "gradients": state.gradients,
        "optimiser": state.optimizer,
        "averaged weights": state.average,
    }
    for name, value in rows.items():
        print(f"  {name:18s}{value / GB:8.2f} GB", flush=True)


def print_activations(state: StateBytes, costs: Costs) -> None:
    """Print the memory of one micro-batch, and that of everything."""
    if costs.activations is None:
        print(f"  {'activations':18s}does not fit into this GPU")
        return
    print(f"  {'activations':18s}{costs.activations / GB:8.2f} GB")
    print(f"  {'together':18s}{(state.total + costs.activations) / GB:8.2f} GB\n")


def print_time(cfg: CfgNode, costs: Costs, steps: int | None) -> None:
    """Print seconds per step and days of the schedule."""
    micro_batches = cfg.TRAIN.GRADIENT_ACCUMULATION_STEPS
    if steps is None:
        print(f"  TRAIN.EPOCHS needs the data at {cfg.DATA.ROOT}; days are those of 100000 steps")
        steps = 100_000
    if costs.seconds is not None:
        seconds = costs.seconds * micro_batches
        print(f"  measured: {seconds:.2f} s per step, {days(steps, seconds):.1f} days ({steps})\n")
    if costs.flops is None:
        return
    work = step_flops(costs.flops, recomputes=recomputes_all(cfg), micro_batches=micro_batches)
    print(f"  {work / 1e12:.1f} TFLOP per step; estimates at rates that are assumed, one GPU:")
    for name, rate in GPU_TFLOPS.items():
        seconds = work / (rate * 1e12)
        print(
            f"  {name:10s} {rate:5.1f} TFLOP/s {seconds:7.2f} s/step "
            f"{days(steps, seconds):7.1f} days for {steps} steps"
        )
    print()


def print_settings(
    cfg: CfgNode, state: StateBytes, costs: Costs, memories: tuple[float, ...]
) -> None:
    """Print what fits into each memory at the same effective batch."""
    train = cfg.TRAIN
    per_rank = train.BATCH_SIZE * train.GRADIENT_ACCUMULATION_STEPS
    reserve = RESERVE if costs.flops is None else RESERVE_ESTIMATED
    data = cfg.DATA
    search = Search(costs.laws, state.total, data.CLIP_LEN, data.CROP_SIZE, per_rank, reserve)
    print(f"settings for {per_rank} clips per GPU and step; {reserve:.0%} of the memory stays free")
    for memory in memories:
        found = settings_for(memory, search)
        if found is None:
            print(f"  {memory:g} GB: nothing fits; lower DATA.CLIP_LEN")
            continue
        print(f"  {memory:g} GB: {found.gb:.1f} GB with {found.overrides()}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--gpu_memory", type=float, metavar="GB", help="plan for this memory only")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="dotted keys")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
