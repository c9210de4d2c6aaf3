"""Signals that ask a training to stop: the first saves and leaves, a later one leaves at once.

    signal              sent by                                 exit code
    SIGTERM             kill, systemd, scancel, torchrun        143
    SIGINT              Ctrl-C                                  130
    SIGUSR1             SLURM before the time limit, requeue     85
    SIGHUP              a terminal that is closed               none, training continues

The handler sets a flag and the loop looks at it between two steps, where all ranks agree to stop,
see `Trainer.must_stop`. Nothing else in a training installs signal handlers. This module imports
nothing that takes time, so that a process can listen before its other imports.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

EXIT_CODE_FILE = "VRT_SPIKE_EXIT_CODE_FILE"
EXIT_REQUEUE = 85  # EX_TEMPFAIL is 75 and used by others; the same command resumes
# The terminal, a launcher and torchrun may all pass on one and the same signal.
REPEAT_SECONDS = 2.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    if name in signal.Signals.__members__  # Windows has no SIGUSR1
)


class StoppedError(Exception):
    """Leaves a long piece of work, such as a validation, between two of its parts."""


class StopSignals:
    """Whether this process was asked to stop.

    Attributes:
        number: The first signal that asked to stop; 0 while none has come.
        elsewhere: The same of another rank, as far as this one has heard; it never counts as a
            repeat, and the ranks agree on it between two steps.
    """

    def __init__(self) -> None:
        self.number = self.elsewhere = 0
        self._since = 0.0

    def listen(self) -> None:
        """Take signals from now on; only in the main thread. A closed terminal ends nothing."""
        for number in STOPPING:
            signal.signal(number, lambda number, _: self.ask(number))
        if "SIGHUP" in signal.Signals.__members__:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def ask(self, number: int) -> None:
        """Take note of a signal; leave the process at once if it repeats an earlier one."""
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
            line = (
                f"{signal.Signals(number).name}: the current step is finished and saved, then the "
                "run ends; send it again to leave at once\n"
            )
            with suppress(OSError):  # a handler may not use logging or print
                os.write(2, line.encode())
        elif now - self._since > REPEAT_SECONDS:
            os._exit(exit_code(number))

    def seconds_since(self) -> float:
        """Return how long ago the first signal came; 0 where none has come."""
        return time.monotonic() - self._since if self.number else 0.0

    def raise_if_asked(self) -> None:
        """Leave a long piece of work.

        Raises:
            StoppedError: A signal has come to this rank or to another one.
        """
        if number := self.number or self.elsewhere:
            raise StoppedError(signal.Signals(number).name)


def exit_code(number: int) -> int:
    """Return the exit code of a run that a signal has ended; 0 for no signal."""
    if number == 0:
        return 0
    return EXIT_REQUEUE if signal.Signals(number).name == "SIGUSR1" else 128 + number


def hand_on(code: int) -> int:
    """Write an exit code for the launcher, and return the one to leave with.

    One process of a machine writes; `EXIT_CODE_FILE` in the environment names the file. torchrun
    knows only 0 and 1, and starts again what leaves with 1: after a stop that was asked for it
    gets 0, where the launcher knows better.
    """
    path = os.environ.get(EXIT_CODE_FILE)
    if not path:
        return code
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(FileNotFoundError):  # the launcher was killed
            Path(path).write_text(str(code), encoding="ascii")
    is_stop = code in {exit_code(number) for number in STOPPING}
    return 0 if is_stop and "TORCHELASTIC_RUN_ID" in os.environ else code


def forget_handed_on() -> None:
    """Remove the exit code of an attempt before this one; this one has none yet."""
    path = os.environ.get(EXIT_CODE_FILE)
    if path and os.environ.get("LOCAL_RANK", "0") == "0":
        Path(path).unlink(missing_ok=True)


def leave_stopping_to_the_parent() -> None:
    """Keep a loader process at work while the training finishes its step.

    Ctrl-C, scancel and torchrun signal whole process groups, loader processes among them. The
    first SIGTERM is passed over; a second one ends the process, so that it can be removed.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _pass_over_once)


def end_loader_processes() -> None:
    """Kill the loader processes that are left when the training process exits.

    After an error the loader may still be held by the error's frames. Python then sends SIGTERM
    once and waits without end, as loader processes pass that over.
    """
    if "SIGCHLD" in signal.Signals.__members__:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler reports what is ended here
    for process in multiprocessing.active_children():
        process.kill()


def die_with_parent() -> None:
    """Let Linux send SIGTERM to this process when its parent is gone, killed for example."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Let Linux make this process the parent of what its children leave behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_orphans(number: int, seconds: float) -> None:
    """Wait for all children, those of children that are gone among them; ask them to end first.

    Args:
        number: The signal that asks.
        seconds: After these they are killed.
    """
    deadline, asked = time.monotonic() + seconds, set()
    while orphans := _children():
        for pid in orphans:
            with suppress(ProcessLookupError, ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    continue
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                elif pid not in asked:
                    os.kill(pid, number)
                    asked.add(pid)
        time.sleep(0.05)


def _children() -> list[int]:
    lists = Path("/proc/self/task").glob("*/children")  # there on Linux only
    return [int(pid) for path in lists for pid in path.read_text(encoding="ascii").split()]


def _pass_over_once(number: int, frame: object) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)
