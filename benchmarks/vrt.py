"""Compare VRT with its slow twin (the obvious form, tests/vrt_twin.py) on this machine.

    python benchmarks/vrt.py [--clip 6x64x64] [--options vrt_base|vrt_tiny] [--train]
                             [--rounds 3] [--threads 1]

Both forms have the same weights and input and run in turn (A B A B ...) in one process, in
float32. Printed are the machine (allocator, instruction set, threads, rate of a large product), the
medians of CPU time, the peak of memory above what was in use before the call, and the share of the
machine's rate that the arithmetic of a forward pass reaches. With --train: forward and backward;
ours as the options say (vrt_base computes intermediates again in backward), the twin with attention
and MLPs computed again, too. --options demo measures a training step of configs/deblur/demo.yaml.

Memory is right with glibc's default allocator, and CPU time is best with that of the launcher:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483648 python benchmarks/vrt.py
"""

import argparse
import ctypes
import gc
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from tests import vrt_twin
from tests.vrt_cases import fill, smooth_clip
from third_party.VRT.models.network_vrt import VRT

OPTIONS = Path(__file__).resolve().parents[1] / "configs/vrt"
POLL_S = 0.002
PRODUCT_SIDE = 2048


def resident_mb() -> float:
    """Return the resident memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class PeakMemory:
    """Watches the resident memory while a call runs."""

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the other form used goes back first
        self.start_mb = self.peak_mb = resident_mb()
        self.is_done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.is_done.wait(POLL_S):
            self.peak_mb = max(self.peak_mb, resident_mb())

    def __exit__(self, *error: object) -> None:
        self.is_done.set()
        self.thread.join()

    @property
    def grown_mb(self) -> float:
        """Peak above the memory in use at the start."""
        return self.peak_mb - self.start_mb


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Return CPU seconds and growth of memory of one call."""
    with PeakMemory() as memory:
        start = time.process_time()
        run()
        seconds = time.process_time() - start
    return seconds, memory.grown_mb


def describe_machine() -> str:
    """Name what decides how fast a CPU is besides the program."""
    allocator = os.environ.get("MALLOC_MMAP_MAX_")
    kind = "glibc default" if allocator is None else f"MALLOC_MMAP_MAX_={allocator}"
    return (
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} thread(s), allocator: {kind}"
    )


def product_rate() -> float:
    """Return the GFLOP per CPU second of a large float32 product."""
    a, b = torch.randn(2, PRODUCT_SIDE, PRODUCT_SIDE).unbind(0)
    start = time.process_time()
    torch.mm(a, b)
    return 2 * PRODUCT_SIDE**3 / (time.process_time() - start) / 1e9


def forward_gflop(net: VRT, clip: torch.Tensor) -> float:
    """Count the products, convolutions and explicit attention of the obvious form."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vrt_twin.restore(net, clip)
    return counter.get_total_flops() / 1e9


def train_step(net: VRT, form: Callable[[torch.Tensor], torch.Tensor], clip: torch.Tensor) -> None:
    """One forward and backward pass."""
    net.zero_grad(set_to_none=True)
    (form(clip) - clip).abs().mean().backward()


def forms(net: VRT, clip: torch.Tensor, is_training: bool) -> dict[str, Callable[[], object]]:
    """Name what is compared."""
    if not is_training:
        with torch.no_grad():
            error = (net(clip) - vrt_twin.restore(net, clip)).abs().max()
        print(f"largest difference of the outputs {float(error):.1e}")
        quiet = torch.no_grad()
        return {
            "twin": lambda: quiet(lambda: vrt_twin.restore(net, clip))(),
            "ours": lambda: quiet(lambda: net(clip))(),
        }
    return {
        "twin, recomputing": lambda: train_step(
            net, lambda x: vrt_twin.restore(net, x, recompute=True), clip
        ),
        "ours": lambda: train_step(net, net, clip),
    }


def demo_step() -> Callable[[], object]:
    """Return a training step of the demo: one clip of 3 frames, 64 x 64, spikes 32 x 32."""
    from src.config import load_config
    from src.models.build import build_model

    cfg = load_config("configs/deblur/demo.yaml", [])
    model = build_model(cfg).train()
    torch.manual_seed(0)
    frames, side = cfg.DATA.CLIP_LEN, cfg.DATA.CROP_SIZE
    clip, sharp = torch.rand(2, 1, frames, 3, side, side).unbind(0)
    voxels = torch.randn(1, frames, cfg.DATA.K, side // 2, side // 2)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)

    def step() -> None:
        (model(clip, voxels) - sharp).abs().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, cfg.TRAIN.GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="6x64x64", help="frames x height x width")
    parser.add_argument("--options", default="vrt_base", choices=["vrt_base", "vrt_tiny", "demo"])
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Measure and print a table."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    print(describe_machine())
    if args.options == "demo":
        runs, gflop, what = {"ours": demo_step()}, None, "training step"
    else:
        options = yaml.safe_load((OPTIONS / f"{args.options}.yaml").read_text())
        net = fill(VRT(**options))
        clip = smooth_clip(*(int(side) for side in args.clip.split("x")))
        runs = forms(net, clip, args.train)
        gflop = None if args.train else forward_gflop(net, clip)
        what = f"{args.clip} {'forward + backward' if args.train else 'forward'}"
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    rates = []
    for _ in range(args.rounds + 1):  # the first round warms up
        rates.append(product_rate())
        for name, run in runs.items():
            found[name].append(measure(run))
    rate = statistics.median(rates[1:])
    print(f"{args.options} {what}; a product of {PRODUCT_SIDE}: {rate:.0f} GFLOP per CPU second")
    base = statistics.median(seconds for seconds, _ in found["ours"][1:])
    for name, values in found.items():
        seconds = statistics.median(seconds for seconds, _ in values[1:])
        peak = max(grown for _, grown in values)
        share = "" if gflop is None else f"  {gflop / seconds / rate:4.0%} of {gflop:.0f} GFLOP"
        print(
            f"{name:20s} {seconds:8.2f} s CPU  {seconds / base:5.2f} x  {peak:6.0f} MB more{share}"
        )


if __name__ == "__main__":
    main()
