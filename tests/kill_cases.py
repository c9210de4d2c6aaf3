"""Trains with kills at random times; imports once and forks, because an import takes seconds.

    python tests/kill_cases.py CONFIG NUM_KILLS SECONDS

Prints how many of the kills hit a training, and the exit code of the last, undisturbed start.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

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
    deadline = time.monotonic() + seconds
    while killed < num_kills and time.monotonic() < deadline:
        child = start(arguments)
        time.sleep(draws.uniform(0.1, 4.0))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break  # it had come to its end
        killed += 1
    _, status = os.waitpid(start(arguments), 0)
    print(f"killed {killed}, then exit {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main()
