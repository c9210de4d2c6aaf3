"""What every test may ask for."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import pytest

from tests.training_cases import one_thread


class Starter(Protocol):
    def __call__(
        self, command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen: ...


@pytest.fixture(name="processes")
def _processes() -> Iterator[Starter]:
    """Start processes, each with a group of its own that does not outlive the test.

    Their output and errors come as text from `stdout`.
    """
    started: list[subprocess.Popen] = []

    def start(
        command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> subprocess.Popen:
        process = subprocess.Popen(
            command, cwd=cwd, env=one_thread() if env is None else env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
