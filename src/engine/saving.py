"""When and where a run writes its checkpoints, and from which of them it goes on."""

import logging
from pathlib import Path

from src.engine.checkpoints import (
    LAST,
    PREVIOUS,
    CheckpointWriteError,
    find_checkpoint,
    keep_damaged_aside,
    load_checkpoint,
    save_checkpoint,
)
from src.engine.distributed import Ranks
from src.engine.run_directory import RunDirectory
from src.engine.run_state import RunState
from src.engine.start_note import StartNote
from src.paths import resolve

logger = logging.getLogger(__name__)


class Saver:
    """Writes last.pth, previous.pth and best.pth of a run; only the main rank writes.

    A write that fails, because the disk is full for example, is told and borne while the run goes
    on: the next one is tried when it is due. At the end it is an error.

    Attributes:
        step_of_last: The step that last.pth holds, as far as this process knows.
    """

    def __init__(self, run: RunDirectory, ranks: Ranks, state: RunState) -> None:
        self.run, self.ranks, self.state = run, ranks, state
        self.step_of_last: int | None = None

    def save(self, name: str, *, must_succeed: bool = False) -> bool:
        """Write a checkpoint of this moment; return whether it is there.

        Raises:
            CheckpointWriteError: It failed, and `must_succeed`.
        """
        if not self.ranks.is_main:
            self.step_of_last = self.state.progress.step if name == LAST else self.step_of_last
            return True
        step, folder = self.state.progress.step, self.run.checkpoints
        moves_on = name == LAST and self.step_of_last != step
        try:
            save_checkpoint(
                folder / name,
                self.state.state_dict(),
                previous=folder / PREVIOUS if moves_on else None,
            )
        except CheckpointWriteError as error:
            if must_succeed:
                raise
            logger.warning("%s; training goes on and tries again when the next is due", error)
            return False
        if name == LAST:
            self.step_of_last = step
        return True

    def resume(self, choice: str) -> None:
        """Go on from where `choice` says: `auto` (this run's checkpoint), `never`, or a path.

        A start that torchrun or SLURM repeats goes on from what the first one has left.

        Raises:
            OSError: There is no room for the checkpoints to come.
            ValueError: The checkpoint cannot be read, or belongs to another run.
        """
        note = StartNote(self.run)
        if choice != "auto" and self.ranks.gather(note.is_repeated())[0]:
            logger.info("started again: --resume auto takes the place of --resume %s", choice)
            choice = "auto"
        if self.ranks.is_main:
            self.run.check_space(self.state.checkpoint_bytes(), starts_anew=choice != "auto")
        if choice == "never":
            if self.ranks.is_main:
                self.run.set_aside()
                note.write()
            self.ranks.wait()
        elif choice == "auto":
            self._go_on()
        else:
            self._go_on_from(Path(choice) if Path(choice).exists() else resolve(choice), note)

    def _go_on(self) -> None:
        path = self._take_furthest()
        if path is None:
            return
        logger.info("resumed at step %d from %s", self.state.progress.step, path)
        if path.name == LAST:
            self.step_of_last = self.state.progress.step
        else:
            self.save(LAST)  # last.pth was damaged or is older than best.pth

    def _go_on_from(self, path: Path, note: StartNote) -> None:
        """Go on from a file, which may be this run's own; what the run had is kept aside.

        A kill at any moment leaves a run that goes on: the new last.pth takes the place of the old
        one at once, and `path` is removed from the folder only when the note is written.
        """
        self.state.load_state_dict(load_checkpoint(path))
        self.ranks.wait()  # every rank has read it
        self.step_of_last = self.state.progress.step  # so the old last.pth is not the previous one
        logger.info("resumed at step %d from %s", self.step_of_last, path)
        if self.ranks.is_main:
            folder = self.run.checkpoints
            self.run.set_aside(keeps_checkpoints=True)
            self.save(LAST, must_succeed=True)
            others = [file for file in folder.iterdir() if file.name != LAST]
            for file in others:
                if not file.samefile(path):
                    file.unlink()
            note.write()
            for file in others:
                file.unlink(missing_ok=True)
        self.ranks.wait()

    def _take_furthest(self) -> Path | None:
        """Load the furthest checkpoint of the run on every rank; the main rank chooses it."""
        found = find_checkpoint(self.run.checkpoints) if self.ranks.is_main else None
        path = self.ranks.gather(found and found.path)[0]
        if path is None:
            return None
        self.state.load_state_dict(load_checkpoint(path) if found is None else found.state)
        if found is not None:
            keep_damaged_aside(found)
        return path
