"""Run a training from the configuration: demo data if configured, all GPUs, the RGB-only baseline.

`launch_train.sh` calls this with the interpreter of the environment:

    python scripts/launch.py --config FILE [--num_processes N] [--resume auto|PATH|never]
                             [--dry_run] [--max_restarts N] [KEY VALUE ...]

Several machines run it with --nnodes, --node_rank and --rdzv_endpoint; `train_multi_gpu.sh` does.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.engine.signals import (
    EXIT_CODE_FILE,
    STOPPING,
    StopSignals,
    adopt_orphans,
    die_with_parent,
    end_children,
    exit_code,
)

stop = StopSignals()
if __name__ == "__main__":
    stop.listen()  # the imports below take seconds

from yacs.config import CfgNode

from src.config import ConfigError, load_config, rgb_only_overrides
from src.paths import REPO_ROOT, resolve

DEFAULT_CONFIG = "configs/deblur/vrt_spike_baseline.yaml"

# On a CPU a training step allocates and frees large buffers all the time. Kept in the heap they
# need no new pages from the kernel; glibc reads these when the process starts. Threads that spin
# for microseconds only, then sleep, keep a machine that has other work to do from stalling.
CPU_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
    "GOMP_SPINCOUNT": "10000",
}

# torchrun would forward SIGHUP, also under nohup, and not SIGUSR1; and kill after half a minute
# ranks that have a long step to finish and a checkpoint to write. A torch that does not know these
# ends at SIGUSR1 at once; its ranks then get SIGTERM and save all the same.
SHUTDOWN_SECONDS = 300
TORCHRUN_SETTINGS = {
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGQUIT,SIGUSR1",  # its --signals-to-handle
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS),
}

# Restarted processes would read in torchrun's store where those before them listened.
OWN_STORE_PER_ATTEMPT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def main() -> int:
    """Run the commands one after the other; stop at the first that fails with its exit code."""
    args = _parse_arguments()
    try:
        cfg = load_config(args.config, args.overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if args.nnodes > 1 and not args.rdzv_endpoint:
        print("--nnodes needs --rdzv_endpoint HOST:PORT of machine 0", file=sys.stderr)
        return 2
    num_gpus = _count_gpus(cfg.DEVICE)
    if args.num_processes and args.num_processes > num_gpus > 0:
        print(
            f"--num_processes {args.num_processes}: torch sees {num_gpus} GPU(s)", file=sys.stderr
        )
        return 2
    if args.num_processes and not num_gpus:
        print(f"no GPU: {args.num_processes} process(es) train on the CPU", file=sys.stderr)
    settings = {
        **({} if num_gpus else CPU_SETTINGS),
        **TORCHRUN_SETTINGS,
        **(OWN_STORE_PER_ATTEMPT if args.max_restarts else {}),
    }
    commands = commands_of(args, cfg, args.num_processes or num_gpus)
    return Launcher().run(commands, {**settings, **os.environ})


class Launcher:
    """Runs commands one after the other, none of which outlives this process.

    Signals are forwarded to the running command, each one once: it has a session of its own, so a
    terminal or a cluster that signals the group reaches this process alone. torchrun leaves
    processes behind if it is killed, or if a signal comes while it starts them: they are ended too.

    Attributes:
        received: The signals that have come, including those before this object existed.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._process: subprocess.Popen | None = None
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal ends nothing
        if hasattr(signal, "SIGTSTP"):
            signal.signal(signal.SIGTSTP, _refuse_suspension)
        for number in STOPPING:
            signal.signal(number, self._forward)
        adopt_orphans()
        self.received[:0] = [stop.number] if stop.number else []  # now that none can come unseen

    def run(self, commands: list[list[str]], environment: dict[str, str]) -> int:
        """Run the commands; stop at the first that fails, or at a signal, with its exit code."""
        for command in commands:
            if self.received:  # before the first one, or the command before ended with 0 anyway
                return exit_code(self.received[0])
            code = self._run(command, environment)
            if code != 0:
                return code
        return 0

    def _run(self, command: list[str], environment: dict[str, str]) -> int:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "exit_code"
            self._process = subprocess.Popen(  # noqa: S603 (our own command)
                command,
                env={**environment, EXIT_CODE_FILE: str(file)},
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
                start_new_session=True,
            )
            for number in list(self.received):  # while it was being started
                self._send(number)
            code = self._process.wait()
            end_children(self.received[0] if self.received else signal.SIGTERM, SHUTDOWN_SECONDS)
            reported = file.read_text(encoding="ascii") if file.exists() else ""
        return code_of_command(code, reported, self.received)

    def _forward(self, number: int, _: object) -> None:
        self.received.append(number)
        if self._process is not None:
            self._send(number)

    def _send(self, number: int) -> None:
        if sys.platform != "win32":  # there a console sends Ctrl-C to every process by itself
            self._process.send_signal(number)


def _refuse_suspension(*_: object) -> None:
    line = (
        "Ctrl-Z does not suspend a training; Ctrl-C saves and ends it, the same command resumes\n"
    )
    with suppress(OSError):
        os.write(2, line.encode())  # a handler may not print


def code_of_command(code: int, reported: str, received: list[int]) -> int:
    """Return the exit code of a command that has ended.

    Args:
        code: That of the process; torchrun knows only 0 and 1, a signal is negative.
        reported: What the training itself reported; empty if it ended too early.
        received: Signals that were forwarded.
    """
    if reported and int(reported) != 0:
        return int(reported)
    if code == 0:
        return 0
    if received and not reported:  # it came before the training could handle it
        return exit_code(received[0])
    return exit_code(-code) if code < 0 else code


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="YAML file")
    parser.add_argument("--num_processes", type=int, help="default: one per GPU, else one")
    parser.add_argument("--resume", default="auto", help="auto, never, or a checkpoint")
    parser.add_argument("--dry_run", action="store_true", help="measure memory and time")
    parser.add_argument("--max_restarts", type=int, default=0, help="of processes that die")
    parser.add_argument("--nnodes", type=int, default=1, help="machines that run this command")
    parser.add_argument("--node_rank", type=int, default=0, help="number of this machine")
    parser.add_argument("--rdzv_endpoint", default="", help="HOST:PORT where the machines meet")
    parser.add_argument("--rdzv_id", default="vrt_spike", help="name of the rendezvous")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    return parser.parse_intermixed_args()


def commands_of(args: argparse.Namespace, cfg: CfgNode, processes: int) -> list[list[str]]:
    """Return the commands of the whole run in order.

    Of several machines only the first makes the demo data and the comparison; the others wait for
    it at the start of the training.
    """
    is_first, compares = args.node_rank == 0, cfg.TRAIN.RGB_TWIN and not args.dry_run
    settings = ["--config", args.config, *args.overrides]
    commands = []
    if cfg.DATA.DEMO and is_first:
        root = str(resolve(cfg.DATA.ROOT))
        commands.append([sys.executable, _script("make_demo_data.py"), "--output", root])
        commands.append([sys.executable, _script("prepare_data.py"), *settings])
    train = [*_runner(args, processes), str(REPO_ROOT / "src/train.py"), *settings]
    if compares:
        resume = "never" if args.resume == "never" else "auto"  # a path is the main run's
        commands.append([*train, *rgb_only_overrides(cfg), "--resume", resume])
    commands.append([*train, "--resume", args.resume, *(["--dry_run"] if args.dry_run else [])])
    if compares and is_first:
        if cfg.TRAIN.RIVAL_UNET:
            other = str(REPO_ROOT / "benchmarks/plain_unet.py")
            commands.append([sys.executable, other, *settings])
        commands.append([sys.executable, _script("compare_baseline.py"), "--take", *settings])
    return commands


def _runner(args: argparse.Namespace, processes: int) -> list[str]:
    """Return the interpreter, or torchrun if there are several processes or machines."""
    if processes <= 1 and args.nnodes == 1 and not args.max_restarts:
        return [sys.executable]
    rendezvous = ["--standalone"]
    if args.nnodes > 1:
        rendezvous = [f"--nnodes={args.nnodes}", "--rdzv_backend=c10d"]
        rendezvous += [f"--rdzv_endpoint={args.rdzv_endpoint}", f"--rdzv_id={args.rdzv_id}"]
    return [
        *(sys.executable, "-m", "torch.distributed.run", *rendezvous),
        *(f"--nproc_per_node={max(1, processes)}", f"--max_restarts={args.max_restarts}"),
    ]


def _count_gpus(device: str) -> int:
    if device == "cpu":
        return 0
    import torch  # noqa: PLC0415 (two seconds that a CPU run need not wait)

    return torch.cuda.device_count()


def _script(name: str) -> str:
    return str(REPO_ROOT / "scripts" / name)


if __name__ == "__main__":
    sys.exit(main())
