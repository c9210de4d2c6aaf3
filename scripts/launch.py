"""Run a training from the configuration: demo data if asked for, all GPUs, the RGB-only twin.

`launch_train.sh` calls this with the interpreter of the environment:

    python scripts/launch.py --config FILE [--num_processes N] [--resume auto|PATH|never]
                             [--dry_run] [KEY VALUE ...]
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yacs.config import CfgNode

from src.config import ConfigError, load_config
from src.engine.comparison import twin_overrides
from src.paths import REPO_ROOT, resolve

DEFAULT_CONFIG = "configs/deblur/vrt_spike_baseline.yaml"

PR_SET_PDEATHSIG = 1  # linux/prctl.h

# On a CPU a training step allocates and frees large buffers all the time. Kept in the heap they
# need no new pages from the kernel; glibc reads these when the process starts. Threads that spin
# for microseconds only, then sleep, keep a machine that has other work to do from stalling.
CPU_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "GOMP_SPINCOUNT": "10000",
}


def main() -> int:
    """Run the steps one after the other; stop at the first that fails with its exit code."""
    args = _parse_arguments()
    try:
        cfg = load_config(args.config, args.overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    num_gpus = _count_gpus(cfg.DEVICE)
    if args.num_processes and args.num_processes > num_gpus > 0:
        print(
            f"--num_processes {args.num_processes}: torch sees {num_gpus} GPU(s)", file=sys.stderr
        )
        return 2
    if args.num_processes and not num_gpus:
        print(f"no GPU: {args.num_processes} process(es) train on the CPU", file=sys.stderr)
    processes = args.num_processes or num_gpus
    for command in _commands(args, cfg, processes):
        code = _run(command, _environment(cfg))
        if code != 0:
            return code
    return 0


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Run a command to its end; SIGTERM goes on to it, and it does not outlive this process."""
    process = subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent)  # noqa: S603
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has sent it to the child as well
            continue


def _ask_to_die_with_parent() -> None:
    """Let Linux send SIGTERM to this process when its parent is gone, killed for example."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


_die_with_parent = _ask_to_die_with_parent if sys.platform == "linux" else None


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file")
    parser.add_argument("--num_processes", type=int, help="default: one per GPU, else one")
    parser.add_argument("--resume", default="auto", help="auto, never, or a checkpoint")
    parser.add_argument("--dry_run", action="store_true", help="one step, one save, one tile")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    return parser.parse_intermixed_args()


def _commands(args: argparse.Namespace, cfg: CfgNode, processes: int) -> list[list[str]]:
    """Return the commands of the whole job in order."""
    python = [sys.executable]
    commands = []
    if cfg.DATA.DEMO:
        root = str(resolve(cfg.DATA.ROOT))
        commands.append([*python, _script("make_demo_data.py"), "--output", root])
        commands.append(
            [*python, _script("prepare_data.py"), "--config", args.config, *args.overrides]
        )
    train = [*_runner(processes), str(REPO_ROOT / "src/train.py"), "--config", args.config]
    train += ["--dry_run"] if args.dry_run else []
    if cfg.TRAIN.RGB_TWIN and not args.dry_run:
        twin_resume = "never" if args.resume == "never" else "auto"  # a path is the main run's
        commands.append([*train, "--resume", twin_resume, *args.overrides, *twin_overrides(cfg)])
    commands.append([*train, "--resume", args.resume, *args.overrides])
    if cfg.TRAIN.RGB_TWIN and not args.dry_run:
        take = [*python, _script("compare_baseline.py"), "--take", "--config", args.config]
        commands.append([*take, *args.overrides])
    return commands


def _runner(processes: int) -> list[str]:
    if processes <= 1:
        return [sys.executable]
    launcher = ["-m", "torch.distributed.run", "--standalone"]
    return [sys.executable, *launcher, f"--nproc_per_node={processes}"]


def _count_gpus(device: str) -> int:
    if device == "cpu":
        return 0
    import torch  # noqa: PLC0415 (two seconds that a CPU run need not wait)

    return torch.cuda.device_count()


def _environment(cfg: CfgNode) -> dict[str, str]:
    on_cpu = cfg.DEVICE == "cpu" or _count_gpus(cfg.DEVICE) == 0
    return {**(CPU_SETTINGS if on_cpu else {}), **os.environ}


def _script(name: str) -> str:
    return str(REPO_ROOT / "scripts" / name)


if __name__ == "__main__":
    sys.exit(main())
