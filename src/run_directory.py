"""The folders and the record that a run leaves behind."""

import glob
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path

import torch
from yacs.config import CfgNode

from src.config import config_to_text
from src.data.parallel import locked
from src.paths import REPO_ROOT, atomic_write, free_name, resolve

logger = logging.getLogger(__name__)


class RunDirectory:
    """Where the files of one run are: `root` is LOG.SAVE_DIR, `name` is EXP_NAME."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.checkpoints, self.visuals = root / "ckpts" / name, root / "visuals" / name
        self.logs, self.metrics = root / "logs", root / "metrics"  # shared by all runs
        self.events = self.logs / name
        self.record: Path | None = None  # what `write_run_record` has written

    @classmethod
    def of(cls, cfg: CfgNode) -> "RunDirectory":
        """Return the run directory that a configuration names; nothing is created."""
        return cls(resolve(cfg.LOG.SAVE_DIR), cfg.EXP_NAME)

    def scores(self, step: int) -> Path:
        """Return the file with the scores of the validation at a step."""
        return self.metrics / f"val_{self.name}_{step:07d}.json"

    def all_scores(self) -> list[Path]:
        """Return the scores of all validations that exist, by step."""
        return sorted(self.metrics.glob(f"val_{glob.escape(self.name)}_{'[0-9]' * 7}.json"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against a second process; the system frees it when this one ends or dies."""
        path = self.checkpoints.with_name(f".{self.name}.lock")
        with locked(path, wait=False) as is_mine:
            if not is_mine:
                raise RuntimeError(
                    f"run {self.name} is being trained by another process (it holds {path}); "
                    "stop that one, or choose another EXP_NAME"
                )
            for left in self.checkpoints.glob(".partial-*"):  # of a kill inside a write
                left.unlink()
            yield

    def check_writable(self) -> None:
        """Write into every folder of the run, so that none fails after hours."""
        parts = (self.logs, self.checkpoints, self.visuals, self.events, self.metrics)
        for folder in (self.root, *parts):
            try:
                with atomic_write(folder / ".writable") as partial:
                    partial.write_bytes(b"1")
                (folder / ".writable").unlink(missing_ok=True)  # another run may do the same
            except OSError as error:
                raise OSError(
                    f"{folder}: the run cannot write there ({error.strerror or error}); fix the "
                    "permissions of the folder, or choose another LOG.SAVE_DIR"
                ) from error

    def check_space(self, checkpoint_bytes: int, *, starts_anew: bool = False) -> None:
        """Require room for the checkpoints to come; with `starts_anew` none is replaced."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        names = ("last.pth", "previous.pth", "best.pth")
        missing = sum(starts_anew or not (self.checkpoints / name).exists() for name in names)
        needed = (missing + 1) * checkpoint_bytes  # one more while it is being written
        free = shutil.disk_usage(self.checkpoints).free
        if free < needed:
            raise OSError(
                f"{self.checkpoints}: {free / 1e9:.2f} GB are free, the run's checkpoints need "
                f"{needed / 1e9:.2f} GB ({checkpoint_bytes / 1e9:.2f} GB each); make room, or "
                "choose another LOG.SAVE_DIR"
            )

    def set_aside(self, *, keeps_checkpoints: bool = False) -> None:
        """Rename what an earlier run of this name has left; delete nothing.

        Its scores are moved too, else a report would draw both runs as one. With
        `keeps_checkpoints` the checkpoints also stay where they are.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for folder in (self.checkpoints, self.events, self.visuals):
            if not folder.exists() or not any(folder.iterdir()):
                continue
            target = free_name(folder.with_name(f"{folder.name}.before-{stamp}"))
            if keeps_checkpoints and folder == self.checkpoints:
                target.mkdir()
                for path in folder.iterdir():
                    link_or_copy(path, target / path.name)
            else:
                folder.rename(target)
            logger.info("kept the earlier run: %s -> %s", folder, target.name)
        if scores := self.all_scores():
            target = free_name(self.metrics / f"{self.name}.before-{stamp}")
            target.mkdir()
            for path in scores:
                path.rename(target / path.name)

    def add_nondeterministic(self, operation: str) -> None:
        """Add an operation whose results differ from run to run to log and record."""
        logger.info("%s is not deterministic on this device", operation)
        if self.record is not None:
            with suppress(OSError), self.record.open("a", encoding="utf-8") as handle:
                handle.write(f"not deterministic: {operation}\n")


def link_or_copy(path: Path, name: Path) -> None:
    """Give a file a second name; a copy if the file system has no hard links."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def write_run_record(run: RunDirectory, cfg: CfgNode, stamp: str) -> None:
    """Write what is needed to repeat the run: commit, command, machine, packages, configuration."""
    machine = [
        f"python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}",
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} torch threads",
    ]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        machine.append(f"cuda:{index} {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    packages = sorted(f"{d.metadata['Name']}=={d.version}" for d in distributions())
    sections = {
        "commit": f"{git_commit()}\n{_git('status', '--short', '--untracked-files=no')}".strip(),
        "command": shlex.join([sys.executable, *sys.argv]),
        "machine": "\n".join(machine),
        "configuration": config_to_text(cfg),
        "packages": "\n".join(packages),
    }
    run.record = free_name(run.logs / f"run_{run.name}_{stamp}.txt")
    with atomic_write(run.record) as partial:
        text = "\n".join(f"== {title} ==\n{body}\n" for title, body in sections.items())
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def git_commit() -> str:
    """Return the commit, with `+changes` if tracked files differ; `unknown` without git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments)
            ["git", *arguments], cwd=REPO_ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
