"""What every test may ask for."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.data_cases import copy_root, write_miniature
from tests.forked import Forked
from tests.prepare_cases import copy_prepared, write_prepared
from tests.timed_cases import write_timed
from tests.training_cases import one_thread

MARK = "VRT_SPIKE_TEST"

torch.set_num_threads(1)  # two threads on a busy machine take ten times as long
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
os.environ["https_proxy"] = "http://127.0.0.1:9"  # no test downloads weights, LPIPS's for example


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of two sequences and one for validation, of four frames; shared, so copy it."""
    return write_miniature(tmp_path_factory.mktemp("miniature") / "mini", frames=4)


@pytest.fixture
def root(miniature: Path, tmp_path: Path) -> Path:
    """A copy of the miniature of the test's own."""
    return copy_root(miniature, tmp_path / "mini")


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of train/a and val/b, six frames each, with t_sharp; shared, so copy it."""
    return write_timed(tmp_path_factory.mktemp("timed") / "timed")


@pytest.fixture
def timed(original: Path, tmp_path: Path) -> Path:
    """A copy of `original` of the test's own."""
    return copy_root(original, tmp_path / "timed")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a miniature that was prepared; it is shared, so copy it."""
    return write_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def prepared_config(prepared: Path, tmp_path: Path) -> Path:
    """The configuration of a prepared miniature of the test's own."""
    return copy_prepared(prepared, tmp_path / "copy")


@pytest.fixture(name="processes")
def _processes() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start processes that do not outlive the test, nor does anything that they have started.

    Their output and errors come as text from `stdout`. A mark in the environment tells whose child
    a process is, because torchrun gives every rank a session of its own.
    """
    started: list[subprocess.Popen] = []
    mark = f"{MARK}={uuid.uuid4().hex}"

    def start(
        command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen:
        process = subprocess.Popen(
            command, cwd=cwd, text=True,
            env={**(one_thread() if env is None else env), MARK: mark.partition("=")[2]},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if mark.encode() in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
    for process in started:
        process.stdout.close()
        process.wait()


@pytest.fixture(name="forks")
def _forks(tmp_path: Path) -> Iterator[Callable[[list[str]], Forked]]:
    """Start commands in forked processes that do not outlive the test, see `tests/forked.py`.

    For tests in which the start of Python itself is not the point.
    """
    started: list[Forked] = []

    def start(command: list[str], env: dict[str, str] | None = None) -> Forked:
        script = command[1:] if command[0] == sys.executable else command
        log = tmp_path / f"output_{len(started)}.txt"
        started.append(Forked(script, tmp_path, one_thread() if env is None else env, log))
        return started[-1]

    yield start
    for process in started:
        process.end()
