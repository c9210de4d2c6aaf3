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
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import torch
from yacs.config import CfgNode

from src.config import config_to_text
from src.data.parallel import locked
from src.paths import REPO_ROOT, atomic_write, free_name, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDirectory:
    """Where the files of one run lie: `root` is LOG.SAVE_DIR, `name` is EXP_NAME."""

    root: Path
    name: str

    @classmethod
    def of(cls, cfg: CfgNode) -> "RunDirectory":
        """Return the run directory that a configuration names; nothing is created."""
        return cls(resolve(cfg.LOG.SAVE_DIR), cfg.EXP_NAME)

    @property
    def checkpoints(self) -> Path:
        """Folder of best.pth and last.pth."""
        return self.root / "ckpts" / self.name

    @property
    def visuals(self) -> Path:
        """Folder of the pictures, one sub-folder per step."""
        return self.root / "visuals" / self.name

    @property
    def logs(self) -> Path:
        """Folder of train_*.log and run_*.txt, shared by all runs."""
        return self.root / "logs"

    @property
    def events(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.logs / self.name

    @property
    def metrics(self) -> Path:
        """Folder of the metrics files, shared by all runs."""
        return self.root / "metrics"

    def scores(self, step: int) -> Path:
        """Return where the validation at a step leaves its scores."""
        return self.metrics / f"val_{self.name}_{step:07d}.json"

    def all_scores(self) -> list[Path]:
        """Return the scores of all validations that are left, by step."""
        return sorted(self.metrics.glob(f"val_{glob.escape(self.name)}_{'[0-9]' * 7}.json"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against a second process; the system frees it when this one ends or dies.

        Raises:
            RuntimeError: Another process is training this run.
        """
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
        """Write into every folder of the run, so that none fails after hours.

        Raises:
            OSError: A folder cannot be made or written; it is named.
        """
        parts = (self.logs, self.checkpoints, self.visuals, self.events, self.metrics)
        for folder in (self.root, *parts):
            try:
                with atomic_write(folder / ".writable") as partial:
                    partial.write_bytes(b"1")
                (folder / ".writable").unlink(missing_ok=True)  # another run looks at them, too
            except OSError as error:
                raise OSError(
                    f"{folder}: the run cannot write there ({error.strerror or error}); fix the "
                    "rights of the folder, or choose another LOG.SAVE_DIR"
                ) from error

    def check_space(self, checkpoint_bytes: int, *, starts_anew: bool = False) -> None:
        """See to it that the checkpoints which are still to come have room.

        Args:
            checkpoint_bytes: Size of one.
            starts_anew: Those that are there will be kept aside, so none takes the place of one.

        Raises:
            OSError: The disk has less room than they need.
        """
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

        Its scores go into a folder of their own, else a report would draw both runs as one.

        Args:
            keeps_checkpoints: Leave the checkpoints where they are, too.
        """
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for folder in (self.checkpoints, self.events, self.visuals):
            if not folder.exists():
                continue
            target = free_name(folder.with_name(f"{folder.name}.before-{stamp}"))
            if keeps_checkpoints and folder == self.checkpoints:
                target.mkdir()
                for path in folder.iterdir():
                    give_second_name(path, target / path.name)
            else:
                folder.rename(target)
            logger.info("kept the earlier run: %s -> %s", folder, target.name)
        scores, target = self.all_scores(), self.metrics / f"{self.name}.before-{stamp}"
        if scores:
            target = free_name(target)
            target.mkdir()
        for path in scores:
            path.rename(target / path.name)


def give_second_name(path: Path, name: Path) -> None:
    """Let a file have another name, too; a copy where the file system has no hard links."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)


def write_run_record(run: RunDirectory, cfg: CfgNode, stamp: str) -> Path:
    """Write what is needed to repeat the run: commit, command, machine, packages, configuration."""
    path = free_name(run.logs / f"run_{run.name}_{stamp}.txt")
    packages = sorted(f"{d.metadata['Name']}=={d.version}" for d in distributions())
    sections = {
        "commit": _git_state(),
        "command": shlex.join([sys.executable, *sys.argv]),
        "machine": _machine(),
        "configuration": config_to_text(cfg),
        "packages": "\n".join(packages),
    }
    with atomic_write(path) as partial:
        text = "\n".join(f"== {title} ==\n{body}\n" for title, body in sections.items())
        partial.write_text(text, encoding="utf-8")
    return path


def git_commit() -> str:
    """Return the commit, with `+changes` if tracked files differ; `unknown` without git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "unknown"
    return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git_state() -> str:
    return f"{git_commit()}\n{_git('status', '--short', '--untracked-files=no')}".strip()


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments)
            ["git", *arguments], cwd=REPO_ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git on this machine
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _machine() -> str:
    lines = [
        f"python {platform.python_version()}, torch {torch.__version__}, {platform.platform()}",
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} torch threads",
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    return "\n".join(lines)
