"""Compare VRT with its slow twin (the obvious form, tests/vrt_twin.py) on this machine.

    python benchmarks/vrt.py [--clip 6x64x64] [--options vrt_base|vrt_tiny] [--train]
                             [--rounds 3] [--threads 1]

Both forms have the same weights and input and run in turn (A B A B ...) in one process, in
float32. Printed are the medians of CPU time and the peak of memory above what was in use before
the call. With --train: forward and backward; ours as the options say (vrt_base computes
intermediates again in backward), the twin with attention and MLPs computed again, too.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

from tests import vrt_twin
from tests.vrt_cases import fill, smooth_clip
from third_party.VRT.models.network_vrt import VRT

OPTIONS = Path(__file__).resolve().parents[1] / "configs/vrt"
POLL_S = 0.002


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


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="6x64x64", help="frames x height x width")
    parser.add_argument("--options", default="vrt_base", choices=["vrt_base", "vrt_tiny"])
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = yaml.safe_load((OPTIONS / f"{args.options}.yaml").read_text())
    net = fill(VRT(**options))
    clip = smooth_clip(*(int(side) for side in args.clip.split("x")))
    runs = forms(net, clip, args.train)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(args.rounds + 1):
        for name, run in runs.items():
            found[name].append(measure(run))
    what = "forward + backward" if args.train else "forward"
    print(f"{args.options} {args.clip} {what}, {args.threads} thread(s), torch {torch.__version__}")
    base = statistics.median(seconds for seconds, _ in found["ours"][1:])
    for name, values in found.items():  # the first round warms up
        seconds = statistics.median(seconds for seconds, _ in values[1:])
        peak = max(grown for _, grown in values)
        print(f"{name:20s} {seconds:8.2f} s CPU  {seconds / base:5.2f} x  {peak:8.0f} MB more")


if __name__ == "__main__":
    main()
