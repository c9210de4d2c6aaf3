"""Trains with kills at random times; imports once and forks, because an import takes seconds.

    python tests/kill_cases.py CONFIG NUM_KILLS SECONDS

Prints how many of the kills hit a training, why there were not more, and the exit code of the last,
undisturbed start. A kill comes at a random time, at the latest a moment after a first checkpoint of
its start, so that the steps suffice for all kills on a fast machine too.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.config import load_config
from src.train import main as train


def start(arguments: list[str]) -> int:
    """Train in a process of its own, as the command would; return its id."""
    child = os.fork()
    if child == 0:
        sys.argv = ["train.py", *arguments]
        os._exit(train())
    return child


def main() -> None:
    config, num_kills, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    arguments, draws, killed = ["--config", config, "EXP_NAME", "killed"], random.Random(7), 0
    last = Path(load_config(config).LOG.SAVE_DIR) / "ckpts" / "killed" / "last.pth"
    deadline = time.monotonic() + seconds
    while killed < num_kills and time.monotonic() < deadline:
        if not kill_at_random(start(arguments), draws, last):
            end = "the run had come to its end"
            break
        killed += 1
    else:
        end = "all" if killed == num_kills else f"{seconds:.0f} s were over"
    _, status = os.waitpid(start(arguments), 0)
    code = os.waitstatus_to_exitcode(status)
    print(f"killed {killed} of {num_kills} times ({end}), then exit {code}")


def kill_at_random(child: int, draws: random.Random, last: Path) -> bool:
    """Kill a training; return whether it was still there."""
    before, until = written_at(last), time.monotonic() + draws.uniform(0.1, 5.0)
    while time.monotonic() < until and written_at(last) == before:
        time.sleep(0.005)
    time.sleep(min(draws.uniform(0.0, 0.2), max(0.0, until - time.monotonic())))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def written_at(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


if __name__ == "__main__":
    main()
