"""Starts that torchrun or SLURM repeats, and `--resume` with a path of the run itself."""

import pytest
import torch

from src.engine import checkpoint
from src.engine.checkpoint import CheckpointWriteError
from src.engine.processes import Ranks
from src.engine.resume import REPEATED_BY, StartNote
from src.run_directory import RunDirectory
from tests.training_cases import make_trainer, read_checkpoint, write_run


def put_steps(folder, **steps: int) -> None:
    """Give the run checkpoints that differ in their step."""
    state = read_checkpoint(folder)
    for name, step in steps.items():
        state["progress"]["step"] = state["progress"]["validated_step"] = step
        torch.save(state, folder / "outputs" / "ckpts" / "run" / f"{name}.pth")


@pytest.fixture(name="config")
def _config(tmp_path):
    """Give a run whose last.pth has step 3, previous.pth 2 and best.pth 1."""
    config = write_run(tmp_path, TRAIN__MAX_STEPS=3)
    trainer = make_trainer(config)
    trainer.progress.step = 1
    trainer.save("last.pth")
    put_steps(tmp_path, last=3, previous=2, best=1)
    return config


@pytest.mark.parametrize(
    ("counter", "job"),
    [
        ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID"),
        ("SLURM_RESTART_COUNT", "SLURM_JOB_ID"),
    ],
)
def test_f53_a_repeated_start_goes_on_whatever_the_first_was_asked(
    config, tmp_path, monkeypatch, counter, job
):
    monkeypatch.setenv(counter, "0")
    monkeypatch.setenv(job, "17")
    first = make_trainer(config)
    first.resume("never")
    first.progress.step = 2
    first.save("last.pth")
    monkeypatch.setenv(counter, "1")
    again = make_trainer(config)
    again.resume("never")
    assert again.progress.step == 2
    monkeypatch.setenv(job, "18")  # another job: the note of the first is not for it
    other = make_trainer(config)
    other.resume("never")
    assert other.progress.step == 0


def test_f53_a_first_start_that_died_early_is_done_over(config, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    trainer = make_trainer(config)
    trainer.resume("never")  # it has never come to setting the older run aside
    assert trainer.progress.step == 0


def test_a_second_first_start_is_no_repeat(config, monkeypatch):
    """Outside torchrun and SLURM nothing counts the starts, and the names are empty both times."""
    for name in (*REPEATED_BY, *REPEATED_BY.values()):
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):
        trainer = make_trainer(config)
        trainer.resume("never")
        assert trainer.progress.step == 0
        trainer.progress.step = 2
        trainer.save("last.pth")


@pytest.mark.parametrize("text", ["", "[1]", '"SLURM_JOB_ID"', "{}"])
def test_a_note_that_cannot_be_understood_is_none(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "unknown")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    note = StartNote(RunDirectory(tmp_path, "run"))
    note.write()
    assert note.is_repeated()
    note.path.write_text(text)
    assert not note.is_repeated()


@pytest.mark.parametrize(("name", "step"), [("last", 3), ("previous", 2), ("best", 1)])
def test_resume_from_a_path_of_the_run_itself(config, tmp_path, name, step):
    folder = tmp_path / "outputs" / "ckpts" / "run"
    trainer = make_trainer(config)
    trainer.resume(str(folder / f"{name}.pth"))
    assert trainer.progress.step == step
    assert [path.name for path in folder.iterdir()] == ["last.pth"]
    again = make_trainer(config)
    again.resume("auto")
    assert again.progress.step == step
    kept = next(folder.parent.glob("run.before-*"))
    assert sorted(path.name for path in kept.iterdir()) == ["best.pth", "last.pth", "previous.pth"]
    assert torch.load(kept / "last.pth", weights_only=True)["progress"]["step"] == 3


def test_a_kill_before_the_new_last_one_is_written_leaves_the_run(config, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    path = tmp_path / "outputs" / "ckpts" / "run" / "best.pth"
    trainer = make_trainer(config)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.resume(str(path))
    trainer = make_trainer(config)
    trainer.resume(str(path))
    assert trainer.progress.step == 1
    assert read_checkpoint(tmp_path)["progress"]["step"] == 1


def test_a_kill_before_the_note_is_written_leaves_the_path(config, tmp_path, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    path = tmp_path / "outputs" / "ckpts" / "run" / "previous.pth"
    with monkeypatch.context() as patch:
        patch.setattr(StartNote, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(config).resume(str(path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for _ in range(2):  # from the path, which was not replaced; then its note says to go on
        trainer = make_trainer(config)
        trainer.resume(str(path))
        assert trainer.progress.step == 2


def test_nothing_is_changed_before_every_rank_has_read_the_path(config, tmp_path):
    folder, seen = tmp_path / "outputs" / "ckpts" / "run", []

    class Waiting(Ranks):
        def wait(self):
            seen.append({path.name: path.stat().st_ino for path in folder.iterdir()})

    trainer = make_trainer(config)
    trainer.checkpoints.ranks = Waiting(0, 1, torch.device("cpu"))
    trainer.checkpoints.ranks.wait()
    trainer.resume(str(folder / "best.pth"))
    assert seen[0] == seen[1]
    assert [len(names) for names in seen] == [3, 3, 1]


def test_f20_a_path_whose_state_cannot_be_written_ends_the_start(config, tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise CheckpointWriteError(path, OSError("No space left on device"))

    folder = tmp_path / "outputs" / "ckpts" / "run"
    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(CheckpointWriteError, match="No space left on device"):
        make_trainer(config).resume(str(folder / "best.pth"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.pth",
        "last.pth",
        "previous.pth",
    ]
