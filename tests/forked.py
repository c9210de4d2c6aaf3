"""Commands in processes that are forked from one that has imported everything already.

Starting Python and importing torch takes seconds of every command, and the tests start many. Here
one process imports once and forks a child per command; it runs nothing else, so no thread and no
random number is inherited. The script runs as `__main__`, as it does from the shell.
"""

import importlib.util
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from src.paths import REPO_ROOT

PRELOADED = [
    *("torch._dynamo", "torch.distributed.run", "src.train", "src.test", "src.engine.trainer"),
    *("src.models.build", "src.prepare.prepare"),
    *("scripts.compare_baseline", "scripts.prepare_data", "scripts.launch"),
]


def torchrun(processes: int, restarts: int = 0) -> list[str]:
    """Return the command of torchrun for a script; with `Forked` its ranks are forked, too."""
    script = importlib.util.find_spec("torch.distributed.run").origin
    ranks = [f"--nproc_per_node={processes}", f"--max_restarts={restarts}"]
    return [script, "--standalone", *ranks, "--start_method=fork", "--run_path"]


class Forked:
    """A command in a process of its own and its own session; used as `subprocess.Popen` is."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], log: Path):
        start_server()
        self._log = log
        context = multiprocessing.get_context("forkserver")
        arguments = ([str(part) for part in command], str(cwd), dict(env), str(log))
        log.touch()
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()
        self.pid = self._process.pid
        self.returncode: int | None = None

    @property
    def output(self) -> str:
        """What the command has printed so far, errors too."""
        return self._log.read_text()

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(str(self._log), timeout, self.output)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Wait for the end; return what it has printed."""
        self.wait(timeout)
        return self.output, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it with everything in its session."""
        self._process.kill()
        for pid in _session(self.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.join()


def start_server() -> None:
    """Start the process that imports and forks, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPO_ROOT)}
    multiprocessing.forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)


def _run(command: list[str], cwd: str, env: dict[str, str], log: str) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def _session(leader: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = int(stat.read_text().rpartition(")")[2].split()[3])
        except OSError:  # it has ended
            continue
        if session == leader:
            found.append(int(stat.parent.name))
    return found
