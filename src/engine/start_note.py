"""Whether torchrun or SLURM repeats a start, so that `--resume never` does not start over again."""

import json
import os

from src.engine.run_directory import RunDirectory
from src.paths import atomic_write

# What counts the starts, and what stays the same in all of them.
REPEATED_BY = {
    "TORCHELASTIC_RESTART_COUNT": "TORCHELASTIC_RUN_ID",
    "SLURM_RESTART_COUNT": "SLURM_JOB_ID",
}


class StartNote:
    """A small file beside the run's folder: which start has done what its `--resume` asked for.

    Without it a start that was killed before it came to that would go on from an older run.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.checkpoints.with_name(f".{run.name}.start.json")

    def write(self) -> None:
        """Note that this start has put the run where it was asked to begin."""
        names = {name: os.environ.get(name, "") for name in REPEATED_BY.values()}
        with atomic_write(self.path) as partial:
            partial.write_text(json.dumps(names), encoding="utf-8")

    def is_repeated(self) -> bool:
        """Whether this process is started again after a start that has written the note."""
        if not self.path.exists():
            return False
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError:
            return False
        return isinstance(noted, dict) and any(
            _count(counter) > 0 and noted.get(name) == os.environ.get(name, "")
            for counter, name in REPEATED_BY.items()
        )


def _count(name: str) -> int:
    text = os.environ.get(name, "0")
    return int(text) if text.isdecimal() else 0
