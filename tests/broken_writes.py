"""Writes checkpoints in processes that are killed inside the writing.

    python tests/broken_writes.py large FOLDER    a large last.pth, for a kill from outside
    python tests/broken_writes.py points FOLDER   killed before each call that changes the folder

`large` copies what FOLDER/last.pth holds, at the step after it. `points` prints, per kill, the
step that a restart would resume from.
"""

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from src.engine.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint

LARGE = 40_000_000  # numbers of four bytes


def state(step: int) -> dict:
    return {"model": {"weight": torch.full((1000,), float(step))}, "progress": {"step": step}}


def write_large(folder: Path) -> None:
    content = load_checkpoint(folder / "last.pth")
    content["progress"]["step"] += 1
    content["ballast"] = torch.zeros(LARGE)
    save_checkpoint(folder / "last.pth", content, previous=folder / "previous.pth")


def die_before(number: int) -> None:
    """Let this process be killed before that call (from 0) of those that change the folder."""
    calls = itertools.count()

    def dying(function):
        def call(*arguments, **options):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    os.link, os.fsync, Path.replace = dying(os.link), dying(os.fsync), dying(Path.replace)
    torch.save = dying(torch.save)


def survive(folder: Path, number: int) -> bool:
    """Write steps 1 and 2, then step 3 with a kill; return whether there was one."""
    shutil.rmtree(folder, ignore_errors=True)
    last, previous = folder / "last.pth", folder / "previous.pth"
    for step in (1, 2):
        save_checkpoint(last, state(step), previous=previous)
    child = os.fork()
    if child == 0:
        die_before(number)
        save_checkpoint(last, state(3), previous=previous)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    folder = Path(sys.argv[2])
    if sys.argv[1] == "large":
        write_large(folder)
        return
    for number in itertools.count():
        was_killed = survive(folder, number)
        print(find_checkpoint(folder).state["progress"]["step"])
        if not was_killed:
            return


if __name__ == "__main__":
    main()
