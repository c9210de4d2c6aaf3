"""Starts that torchrun or SLURM repeats, and `--resume` with a path of the run itself."""

import pytest
import torch

from src.engine import checkpoint
from src.engine.checkpoint import (
    REPEATED_BY,
    CheckpointWriteError,
    is_repeated_start,
    start_note,
    write_start_note,
)
from src.engine.processes import Ranks
from src.run_directory import RunDirectory
from tests.training_cases import (
    CPU,
    checkpoint_of,
    make_trainer,
    read_checkpoint,
    resumed,
    write_run,
)


@pytest.fixture(name="config")
def _config(tmp_path):
    """Give a run whose last.pth has step 3, previous.pth 2 and best.pth 1."""
    config = write_run(tmp_path, TRAIN__MAX_STEPS=3)
    trainer = make_trainer(config)
    trainer.progress.step = 1
    trainer.save("last.pth")
    state = read_checkpoint(tmp_path)
    for name, step in (("last", 3), ("previous", 2), ("best", 1)):
        state["progress"]["step"] = state["progress"]["validated_step"] = step
        torch.save(state, checkpoint_of(tmp_path, name=f"{name}.pth"))
    return config


def advance(trainer, step: int) -> None:
    trainer.progress.step = step
    trainer.save("last.pth")


@pytest.mark.parametrize(("counter", "identity"), REPEATED_BY.items())
def test_f53_a_repeated_start_resumes_whatever_the_first_was_asked(
    config, monkeypatch, counter, identity
):
    monkeypatch.setenv(identity, "17")
    monkeypatch.setenv(counter, "1")
    assert resumed(config, choice="never").progress.step == 0  # it never came to the first note
    monkeypatch.setenv(counter, "0")
    advance(resumed(config, choice="never"), 2)
    monkeypatch.setenv(counter, "1")
    assert resumed(config, choice="never").progress.step == 2
    monkeypatch.setenv(identity, "18")  # another run of the command: the note is not for it
    assert resumed(config, choice="never").progress.step == 0


@pytest.mark.parametrize("text", ["", "[1]", '"SLURM_JOB_ID"', "{}"])
def test_a_note_that_cannot_be_read_is_none(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "unknown")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    run = RunDirectory(tmp_path, "run")
    write_start_note(run)
    assert is_repeated_start(run)
    start_note(run).write_text(text)
    assert not is_repeated_start(run)


@pytest.mark.parametrize(("name", "step"), [("last", 3), ("previous", 2), ("best", 1)])
def test_resume_from_a_path_of_the_run_itself(config, tmp_path, name, step):
    path = checkpoint_of(tmp_path, name=f"{name}.pth")
    assert resumed(config, choice=str(path)).progress.step == step
    assert [path.name for path in path.parent.iterdir()] == ["last.pth"]
    assert resumed(config).progress.step == step
    kept = next((tmp_path / "outputs/ckpts").glob("run.before-*"))
    assert sorted(path.name for path in kept.iterdir()) == ["best.pth", "last.pth", "previous.pth"]
    assert torch.load(kept / "last.pth", weights_only=True)["progress"]["step"] == 3


@pytest.fixture(name="scored")
def _scored(config, tmp_path):
    """Give the run whose best.pth has the score of step 2, of which last.pth of step 3 knows."""
    scores = {"last": (3, 30.0, 2), "previous": (2, 20.0, 1), "best": (2, 30.0, 2)}
    for name, (step, psnr, best_step) in scores.items():
        path = checkpoint_of(tmp_path, name=f"{name}.pth")
        state = torch.load(path, weights_only=True)
        counters = {"step": step, "best_psnr": psnr, "best_step": best_step, "validated_step": step}
        state["progress"].update(counters)
        torch.save(state, path)
    return config


def test_the_best_score_stays_with_its_weights(scored, tmp_path):
    """Also under a new name, whose empty folders are no earlier run."""
    last, fresh = checkpoint_of(tmp_path), ("EXP_NAME", "fresh")
    RunDirectory(tmp_path / "outputs", "fresh").check_writable()
    kept = [resumed(scored), resumed(scored, *fresh, choice=str(last))]
    kept.append(resumed(scored, choice=str(last)))
    assert [trainer.progress.best_psnr for trainer in kept] == [30.0] * 3
    for run in ("run", "fresh"):
        best = torch.load(checkpoint_of(tmp_path, run, "best.pth"), weights_only=True)
        assert best["progress"]["step"] == 2
    assert not list((tmp_path / "outputs").rglob("fresh.before-*"))


@pytest.mark.parametrize("case", ["earlier path", "damaged", "other protocol"])
def test_a_best_score_without_its_weights_is_forgotten(scored, tmp_path, caplog, case):
    best = checkpoint_of(tmp_path, name="best.pth")
    changes, choice = (), "auto"
    if case == "earlier path":  # best.pth was replaced after it
        choice = str(best.with_name("previous.pth"))
    elif case == "damaged":
        best.write_bytes(b"PK")
    else:
        changes = ("VAL.OVERLAP_SIZE", "16")
    trainer = resumed(scored, *changes, choice=choice)
    assert "no longer counts" in caplog.text
    assert not best.exists()
    assert best.with_name("best_step0000002.pth").exists() == (case == "other protocol")
    trainer.validation = lambda *_, **__: 10.0  # lower
    trainer.fit()
    assert trainer.progress.best_psnr == 10.0
    assert torch.load(best, weights_only=True)["progress"]["best_psnr"] == 10.0


@pytest.mark.parametrize("call", ["save_checkpoint", "write_start_note"])
def test_a_kill_while_a_path_is_taken_over_leaves_the_path(config, tmp_path, monkeypatch, call):
    def killed(*_, **__):
        raise KeyboardInterrupt

    path = str(checkpoint_of(tmp_path, name="previous.pth"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, call, killed)
        with pytest.raises(KeyboardInterrupt):
            resumed(config, choice=path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for _ in range(2):  # from the path, which was not replaced; then its note says to resume
        assert resumed(config, choice=path).progress.step == 2
    assert read_checkpoint(tmp_path)["progress"]["step"] == 2


def test_nothing_is_changed_before_every_rank_has_read_the_path(config, tmp_path):
    folder, seen = checkpoint_of(tmp_path).parent, []

    class Waiting(Ranks):
        def gather(self, value=None):
            seen.append({path.name: path.stat().st_ino for path in folder.iterdir()})
            return [value]

    trainer = make_trainer(config)
    trainer.checkpoints.ranks = Waiting(0, 1, CPU)
    trainer.resume(str(folder / "best.pth"))
    assert seen[0] == seen[1]  # when it asks whether this is a repeated start, and afterwards
    assert [len(names) for names in seen] == [3, 3, 1]


def test_f20_a_path_whose_state_cannot_be_written_ends_the_start(config, tmp_path, monkeypatch):
    def full(path, *_, **__):
        raise CheckpointWriteError(path, OSError("No space left on device"))

    folder = checkpoint_of(tmp_path).parent
    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(CheckpointWriteError, match="No space left on device"):
        resumed(config, choice=str(folder / "best.pth"))
    assert len(list(folder.iterdir())) == 3
