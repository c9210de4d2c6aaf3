"""What every test may ask for."""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from tests.prepare_cases import copy_prepared, write_prepared
from tests.training_cases import one_thread

MARK = "VRT_SPIKE_TEST"


class Starter(Protocol):
    def __call__(
        self, command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen: ...


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a miniature that was prepared; it is shared, so copy it."""
    return write_prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def prepared_config(prepared: Path, tmp_path: Path) -> Path:
    """The configuration of a prepared miniature of the test's own."""
    return copy_prepared(prepared, tmp_path / "copy")


@pytest.fixture(name="processes")
def _processes() -> Iterator[Starter]:
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
        with suppress(OSError):  # it has ended, or belongs to somebody else
            if mark.encode() in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
    for process in started:
        process.stdout.close()
        process.wait()
