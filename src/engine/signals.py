"""Signals that ask a training to stop: the first saves and exits, a later one exits at once.

    signal              sent by                                 exit code
    SIGTERM             kill, systemd, scancel, torchrun        143
    SIGINT              Ctrl-C                                  130
    SIGUSR1             SLURM before the time limit, requeue     85
    SIGHUP              a terminal that is closed               none, training continues

The handler sets a flag and the loop reads it between two steps, see `Trainer.must_stop`. This
module imports nothing that takes time, so that a process can listen before its other imports.
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
# The terminal, a launcher and torchrun may all forward one and the same signal.
REPEAT_SECONDS = 2.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1")
    if hasattr(signal, name)  # Windows has no SIGUSR1
)


class StoppedError(Exception):
    """Leaves a long computation, such as a validation, between two of its parts."""


class StopSignals:
    """The first signal that asked this process to stop, 0 before one; `elsewhere` another rank."""

    def __init__(self) -> None:
        self.number = self.elsewhere = 0
        self._since = 0.0

    def listen(self) -> None:
        """Handle signals from now on; only in the main thread. SIGHUP is ignored."""
        for number in STOPPING:
            signal.signal(number, lambda number, _: self.ask(number))
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def ask(self, number: int) -> None:
        """Record a signal; exit at once if it repeats an earlier one."""
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
            line = (
                f"{signal.Signals(number).name}: the current step is finished and saved, then the "
                "run ends; send it again to exit at once\n"
            )
            with suppress(OSError):  # a handler may not use logging or print
                os.write(2, line.encode())
        elif now - self._since > REPEAT_SECONDS:
            os._exit(exit_code(number))

    def seconds_since(self) -> float:
        """Return the age of the first signal; 0 before one arrives."""
        return time.monotonic() - self._since if self.number else 0.0

    def raise_if_asked(self) -> None:
        """Raise `StoppedError` if this rank or another one was asked to stop."""
        if number := self.number or self.elsewhere:
            raise StoppedError(signal.Signals(number).name)


def exit_code(number: int) -> int:
    """Return the exit code of a run that a signal has ended; 0 for no signal."""
    if number == 0:
        return 0
    return EXIT_REQUEUE if signal.Signals(number).name == "SIGUSR1" else 128 + number


def report_exit_code(code: int) -> int:
    """Write an exit code for the launcher, and return the one to exit with.

    torchrun restarts what exits with 1: after a requested stop it gets 0 if the launcher knows the
    real code.
    """
    path = os.environ.get(EXIT_CODE_FILE)
    if not path:
        return code
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with suppress(FileNotFoundError):  # the launcher was killed
            Path(path).write_text(str(code), encoding="ascii")
    is_stop = code in map(exit_code, STOPPING)
    return 0 if is_stop and "TORCHELASTIC_RUN_ID" in os.environ else code


def clear_exit_code() -> None:
    """Remove the exit code that an earlier attempt reported; this one has none yet."""
    path = os.environ.get(EXIT_CODE_FILE)
    if path and os.environ.get("LOCAL_RANK", "0") == "0":
        Path(path).unlink(missing_ok=True)


def ignore_first_stop() -> None:
    """Keep a loader process running if its group is signalled; a second SIGTERM ends it."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def end_loader_processes() -> None:
    """Kill the loader processes that an error's frames hold; Python would wait for them forever."""
    if hasattr(signal, "SIGCHLD"):
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


def end_children(number: int, seconds: float) -> None:
    """Send `number` to all children, adopted ones included, and wait; kill them after `seconds`."""
    deadline, asked = time.monotonic() + seconds, set()
    while children := _children():
        for pid in children:
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
    lists = Path("/proc/self/task").glob("*/children")  # on Linux only
    return [int(pid) for path in lists for pid in path.read_text(encoding="ascii").split()]
