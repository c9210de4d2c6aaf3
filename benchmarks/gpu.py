"""Show in nine minutes what only a GPU can show, the most important first.

    python benchmarks/gpu.py [--output DIR] [--miniature]

1. the tests marked `gpu`
2. VRT of configs/vrt/vrt_base.yaml, forward and training step in float32, bfloat16 and float16,
   with and without recomputation and compilation, beside the slow twin: seconds and peak memory
3. the demo: VRT+Spike, its RGB-only baseline and the plain U-Net
4. `--dry_run` of every configuration
5. a clip of 720 x 1280 pixels, restored with the demo's weights

Each step has a limit of seconds, all together one of nine minutes, and a log of its own in DIR;
`gpu.json` there holds the exit status and seconds of every step, and is written after each,
`vrt.jsonl` the measurements of 2. A step that fails does not keep the others from running. With
--miniature every step is so small that it runs on a CPU in a minute or two, without limits that
matter and without compiling: a test calls it, so that a typing error is found before a GPU is
there.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FAILED_LIMIT = 124  # exit status of a step that ran past its limit
WHOLE_LIMIT_S = 540.0  # of all steps together
CONFIGS = ("vrt_spike_baseline", "vrt_spike_12gb", "vrt_spike_finetune", "vrt_rgb_baseline", "demo")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/metrics/gpu")
    parser.add_argument("--miniature", action="store_true", help="small enough for a CPU")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # measure, clip: steps in this file
    return parser.parse_args()


@dataclass(frozen=True)
class Step:
    """A command and the seconds that it may take."""

    name: str
    command: list[str]
    limit_s: float


def steps(output: Path, *, miniature: bool) -> list[Step]:
    """List what is run."""
    python, small = sys.executable, ["--miniature"] if miniature else []
    here = [python, str(Path(__file__)), "--output", str(output), *small, "--only"]
    data = str(output / "data/demo")
    saved = ["LOG.SAVE_DIR", str(output / "run"), "DATA.ROOT", data]
    tests = [python, "-m", "pytest", "tests/test_gpu.py", "-q", "-m", "gpu"]
    demo = [python, "scripts/launch.py", "--config", "configs/deblur/demo.yaml", *saved]
    configs = CONFIGS
    if miniature:
        tests.append("--collect-only")
        configs = ("demo",)
        demo += ["TRAIN.MAX_STEPS", "2", "TRAIN.GROUPS.REFINEMENT.FREEZE_STEPS", "1"]
        demo += ["TRAIN.RGB_TWIN", "false", "TRAIN.RIVAL_UNET", "false", "TRAIN.VAL_EVERY", "2"]
    dry_runs = [
        Step(
            f"dry_run_{name}",
            [python, "src/train.py", "--config", f"configs/deblur/{name}.yaml", "--dry_run"]
            + ["LOSS.VGG_PERCEPTUAL.WEIGHT", "0", "MODEL.SPYNET", "none"]
            + ["MODEL.PRETRAINED", "", *saved],
            60,
        )
        for name in configs
    ]
    restore = [python, "src/test.py", "--output", str(output / "restored"), "--overwrite"]
    restore += [
        "--input_blur",
        str(output / "clip/blur"),
        "--input_spike_vox",
        str(output / "clip/spike_vox"),
    ]
    best = output / "run/ckpts/demo/best.pth"
    return [
        Step("tests", tests, 120),
        Step("vrt", [*here, "measure"], 150),
        Step("demo", demo, 180),
        *dry_runs,
        Step("clip", [*here, "clip"], 30),
        Step("restore", [*restore, "--ckpt", str(best)], 60),
    ]


def run_step(step: Step, log: Path, limit_s: float) -> tuple[int, float]:
    """Run a command in a process group of its own; return its exit status and seconds."""
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = FAILED_LIMIT
    return code, time.monotonic() - began


def run_all(output: Path, *, miniature: bool) -> int:
    """Run the steps in their order; return 1 where one failed."""
    output.mkdir(parents=True, exist_ok=True)
    results, began = {}, time.monotonic()
    for step in steps(output, miniature=miniature):
        limit_s = min(step.limit_s, WHOLE_LIMIT_S - (time.monotonic() - began))
        if miniature:
            limit_s = 3 * step.limit_s  # the machine may have other work
        code, seconds = run_step(step, output / f"{step.name}.log", limit_s)
        results[step.name] = {"exit": code, "seconds": round(seconds, 1)}
        (output / "gpu.json").write_text(json.dumps(results, indent=1))
        print(f"{step.name:28s} exit {code:3d} {seconds:7.1f} s", flush=True)
    return int(any(result["exit"] for result in results.values()))


def cases(*, miniature: bool) -> Iterator[dict[str, object]]:
    """Yield what is measured of VRT, the most important first."""
    clips = ("2x16x16",) if miniature else ("6x192x192", "5x256x256")
    precisions = ("fp32", "bf16") if miniature else ("bf16", "fp32", "fp16")
    for clip in clips:
        for precision in precisions:
            for is_training in (False, True):
                for recomputes in (True, False) if is_training else (False,):
                    yield {
                        "clip": clip,
                        "precision": precision,
                        "pass": "training" if is_training else "forward",
                        "recomputes": recomputes,
                    }
    for precision in precisions[:2]:
        yield {"clip": clips[0], "precision": precision, "pass": "forward", "form": "twin"}
    yield {"clip": clips[0], "precision": "bf16", "pass": "forward", "compiled": True}


def measure(case: dict[str, object], *, miniature: bool) -> dict[str, object]:
    """Return seconds and peak memory of one case, or the error that ended it."""
    import torch
    import yaml

    from tests import vrt_twin
    from tests.vrt_cases import fill, smooth_clip
    from third_party.VRT.models.network_vrt import VRT

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = "tiny" if miniature else "base"
    options = yaml.safe_load((ROOT / f"configs/vrt/vrt_{name}.yaml").read_text())
    recomputes = bool(case.get("recomputes"))
    options |= {"use_checkpoint_attn": recomputes, "use_checkpoint_ffn": recomputes}
    net = fill(VRT(**options)).to(device)
    clip = smooth_clip(*(int(side) for side in str(case["clip"]).split("x"))).to(device)
    form: Callable = net
    if case.get("form") == "twin":
        form = lambda x: vrt_twin.restore(net, x)  # noqa: E731
    if case.get("compiled"):
        form = torch.compile(net, disable=miniature)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[str(case["precision"])]

    def once() -> None:
        autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        with autocast, torch.no_grad() if case["pass"] == "forward" else nullcontext():
            restored = form(clip)
        if case["pass"] == "training":
            net.zero_grad(set_to_none=True)
            (restored.float() - clip).abs().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    on_gpu = device.type == "cuda"
    try:
        began = time.perf_counter()
        once()  # warms up
        first_s = time.perf_counter() - began
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(1 if miniature else 3):
            began = time.perf_counter()
            once()
            times.append(time.perf_counter() - began)
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        return case | {"error": str(error).splitlines()[0]}
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    return case | {"first_s": first_s, "seconds": min(times), "peak_gib": peak}


def measure_all(output: Path, *, miniature: bool) -> None:
    """Measure VRT case by case, and write a line for each."""
    with (output / "vrt.jsonl").open("w") as file:
        for case in cases(miniature=miniature):
            line = json.dumps(measure(case, miniature=miniature))
            print(line, flush=True)
            file.write(line + "\n")
            file.flush()


def write_clip(output: Path, *, miniature: bool) -> None:
    """Write a clip of 720 x 1280 pixels with voxels of half the resolution."""
    import cv2
    import numpy as np

    frames, height, width = (2, 48, 64) if miniature else (6, 720, 1280)
    rng = np.random.default_rng(0)
    folders = [output / "clip" / name for name in ("blur", "spike_vox")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    scene = cv2.resize(rng.integers(0, 255, (45, 80, 3), np.uint8), (width, height))
    for frame in range(frames):
        cv2.imwrite(str(folders[0] / f"{frame:06d}.png"), np.roll(scene, 4 * frame, 1))
        counts = rng.integers(0, 3, (32, height // 2, width // 2), np.uint8)
        np.save(folders[1] / f"{frame:06d}.npy", counts)


def main() -> int:
    """Run everything, or one of the steps in this file."""
    args = parse_arguments()
    output, small = args.output.resolve(), args.miniature
    if args.only == "measure":
        measure_all(output, miniature=small)
    elif args.only == "clip":
        write_clip(output, miniature=small)
    else:
        return run_all(output, miniature=small)
    return 0


if __name__ == "__main__":
    sys.exit(main())
