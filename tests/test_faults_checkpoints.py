"""F13 and F16 to F26: checkpoint files that are damaged, old, of other data, or have no room."""

import gzip
import os
import resource
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import yaml

from src import paths, run_directory
from src.config import load_config
from src.data.description import read_description, write_description
from src.engine.checkpoint import (
    CheckpointWriteError,
    find_checkpoint,
    keep_damaged_aside,
    load_checkpoint,
    save_checkpoint,
)
from src.engine.processes import Ranks
from src.engine.resume import weight_differences
from src.models.torch_file import read_torch_file
from src.paths import REPO_ROOT, atomic_write
from src.run_directory import RunDirectory
from tests.training_cases import SMALLEST_VRT, make_trainer, read_checkpoint, write_run

GOLDEN = REPO_ROOT / "tests" / "goldens" / "checkpoint_format1.pth.gz"
GOLDEN_NORM = ("DATA.NORM.MEAN", "1.48188", "DATA.NORM.STD", "0.258223")


def state(step: int, size: int = 3) -> dict:
    return {"model": {"weight": torch.full((size,), float(step))}, "progress": {"step": step}}


def step_of(path) -> int:
    return load_checkpoint(path)["progress"]["step"]


@pytest.fixture(name="folder")
def _folder(tmp_path):
    """Give a folder with last.pth of step 3, previous.pth of 2 and best.pth of 1."""
    save_checkpoint(tmp_path / "best.pth", state(1))
    for step in (2, 3):
        save_checkpoint(tmp_path / "last.pth", state(step), previous=tmp_path / "previous.pth")
    return tmp_path


def test_the_checkpoint_before_stays_as_the_previous_one(folder):
    steps = {path.name: step_of(path) for path in folder.iterdir()}
    assert steps == {"last.pth": 3, "previous.pth": 2, "best.pth": 1}


def test_without_hard_links_the_previous_one_is_copied(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(folder / "last.pth", state(4), previous=folder / "previous.pth")
    assert (step_of(folder / "last.pth"), step_of(folder / "previous.pth")) == (4, 3)
    assert len(list(folder.iterdir())) == 3


def test_f18_f19_f24_a_damaged_last_one_is_kept_aside_and_never_replaces_the_previous(folder):
    whole = (folder / "last.pth").read_bytes()
    (folder / "last.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "0000100.pth").write_bytes(b"stray")
    (folder / "notes.txt").write_text("stray")
    found = find_checkpoint(folder)
    assert (found.path.name, found.state["progress"]["step"]) == ("previous.pth", 2)
    keep_damaged_aside(found)
    save_checkpoint(folder / "last.pth", state(5), previous=folder / "previous.pth")
    assert step_of(folder / "previous.pth") == 2
    assert (folder / "last.pth.damaged").stat().st_size == len(whole) // 2


@pytest.fixture(name="partial_1")
def _partial_1(monkeypatch):
    """Give partial files a name that is known before."""
    monkeypatch.setattr(paths, "uuid4", lambda: SimpleNamespace(hex="1"))


@pytest.mark.usefixtures("partial_1")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
@pytest.mark.parametrize("size", [3, 1_000_000])
def test_f20_a_full_disk_leaves_the_old_files_and_no_partial_one(folder, size):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / ".partial-1-last.pth").symlink_to("/dev/full")
    with pytest.raises(CheckpointWriteError, match="No space left on device"):
        save_checkpoint(folder / "last.pth", state(4, size), previous=folder / "previous.pth")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("limit", [1000, 300_000])
def test_f20_a_file_that_may_not_grow_says_so(folder, limit):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(CheckpointWriteError, match="File too large"):
            save_checkpoint(folder / "last.pth", state(4, 1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.usefixtures("partial_1")
def test_f20_training_goes_on_and_tries_again_but_the_last_write_has_to_succeed(tmp_path, caplog):
    trainer = make_trainer(write_run(tmp_path))
    folder = trainer.run.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".partial-1-last.pth"
    trainer.progress.step = 1
    partial.symlink_to("/dev/full")
    assert not trainer.save("last.pth")
    assert "No space left on device; training continues" in caplog.text
    trainer.progress.step = 2
    assert trainer.save("last.pth")
    assert step_of(folder / "last.pth") == 2
    trainer.progress.step = trainer.total_steps
    partial.symlink_to("/dev/full")
    with pytest.raises(CheckpointWriteError):
        trainer.save("last.pth")
    assert not partial.is_symlink()
    (folder / ".partial-1-best.pth").symlink_to("/dev/full")
    trainer.progress.step = 3
    trainer.keep_best(30.0)
    assert trainer.progress.best_psnr is None  # the next validation may write it


def test_f20_a_rank_whose_main_rank_could_not_write_the_best_one_keeps_the_score_before(tmp_path):
    class SecondOfTwo(Ranks):
        is_main = False

        def largest(self, value):
            return max(value, 1)  # the main rank has failed

    trainer = make_trainer(write_run(tmp_path))
    trainer.progress.best_psnr, trainer.progress.best_step = 20.0, 1
    trainer.ranks = trainer.checkpoints.ranks = SecondOfTwo(1, 1, torch.device("cpu"))
    trainer.keep_best(30.0)
    assert (trainer.progress.best_psnr, trainer.progress.best_step) == (20.0, 1)


def test_f21_folders_that_cannot_be_written_are_named_before_anything_is_built(tmp_path):
    (tmp_path / "visuals").write_text("a file where a folder has to be")
    with pytest.raises(OSError, match=r"visuals.*the run cannot write there .*LOG\.SAVE_DIR"):
        RunDirectory(tmp_path, "run").check_writable()
    (tmp_path / "file").write_text("a file where a folder has to be")
    with pytest.raises(OSError, match=r"/file: the run cannot write there .*LOG\.SAVE_DIR"):
        RunDirectory(tmp_path / "file", "run").check_writable()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "logs").write_text("a file where a folder has to be")
    with pytest.raises(OSError, match=r"/other/logs: the run cannot write there"):
        RunDirectory(tmp_path / "other", "run").check_writable()
    run = RunDirectory(tmp_path / "good", "run")
    run.check_writable()
    assert not [path for path in run.root.rglob("*") if path.is_file()]


def test_f21_two_runs_may_look_at_their_folders_at_the_same_time(tmp_path, monkeypatch):
    @contextmanager
    def removed_by_the_other(path):
        with atomic_write(path) as partial:
            yield partial
        path.unlink()

    monkeypatch.setattr(run_directory, "atomic_write", removed_by_the_other)
    RunDirectory(tmp_path, "run").check_writable()


def test_f21_too_little_room_for_the_checkpoints_is_said_with_numbers(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path, "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_500_000_000))
    run.check_space(800_000_000)  # three files and one that is being written: 3.2 GB
    with pytest.raises(OSError, match=r"3\.50 GB are free, .* need 4\.00 GB \(1\.00 GB each\)"):
        run.check_space(1_000_000_000)
    for name in ("last.pth", "previous.pth", "best.pth"):
        (run.checkpoints / name).touch()
    run.check_space(3_000_000_000)  # all are there
    with pytest.raises(OSError, match=r"need 12\.00 GB"):  # they will be kept aside
        run.check_space(3_000_000_000, starts_anew=True)


@pytest.mark.parametrize("choice", ["never", "PATH"])
def test_f21_a_new_start_needs_room_beside_what_it_keeps_aside(tmp_path, monkeypatch, choice):
    config = write_run(tmp_path)
    trainer = make_trainer(config)
    trainer.progress.step = 1
    for name in ("last.pth", "previous.pth", "best.pth"):
        trainer.save(name)
    usage, size = shutil.disk_usage(tmp_path), trainer.checkpoints.bytes_needed()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * size))
    again = make_trainer(config)
    before = sorted(again.run.checkpoints.parent.rglob("*.pth"))
    with pytest.raises(OSError, match="the run's checkpoints need"):
        again.resume(choice.replace("PATH", str(again.run.checkpoints / "best.pth")))
    assert sorted(again.run.checkpoints.parent.rglob("*.pth")) == before
    again.resume("auto")  # each takes the place of one


def test_f22_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    path = tmp_path / "last.pth"
    content = {"model": {"w": torch.arange(40.0)}, "progress": {"step": 7, "best_psnr": 31.5}}
    torch.save(content, path)
    whole, refused = path.read_bytes(), 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            read = read_torch_file(path, "a checkpoint")
        except ValueError:
            refused += 1
        else:
            assert read["progress"] == content["progress"], position
            assert torch.equal(read["model"]["w"], content["model"]["w"]), position
    assert refused > len(whole) // 3  # the rest are zeros between the parts, names and dates


def test_f25_a_checkpoint_of_the_first_format_goes_on(tmp_path):
    config = write_run(
        tmp_path, TRAIN__MAX_STEPS=3, TRAIN__SAVE_EVERY=100, DATA__CROP_SIZE=64,
        TRAIN__GRADIENT_ACCUMULATION_STEPS=2,
    )  # fmt: skip
    arguments = {**SMALLEST_VRT, "window_size": [2, 8, 8]}
    (tmp_path / "vrt.yaml").write_text(yaml.safe_dump(arguments))
    folder = RunDirectory.of(load_config(config)).checkpoints
    folder.mkdir(parents=True)
    (folder / "last.pth").write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    trainer = make_trainer(config, *GOLDEN_NORM)
    trainer.resume("auto")
    stored = load_checkpoint(folder / "last.pth")
    assert trainer.progress.step == trainer.progress.validated_step == 2
    raw = read_torch_file(folder / "last.pth", "a checkpoint")["model"]
    assert sum(key.startswith(("spike_tsa.", "fuse.")) for key in raw) == 4 * (12 + 14)
    own = trainer.checkpoints.state_dict()
    assert list(own["model"]) == list(stored["model"])  # the optimizer's state goes by this order
    assert all(torch.equal(own["model"][key], value) for key, value in stored["model"].items())
    first = stored["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(own["optimizer"]["state"][0]["exp_avg"], first)
    assert trainer.fit() == 0
    assert read_checkpoint(tmp_path)["progress"]["step"] == 3


def test_f16_other_data_is_refused_and_named(tmp_path):
    config = write_run(tmp_path)
    trainer = make_trainer(config)
    trainer.progress.step = 1
    trainer.save("last.pth")
    make_trainer(config).resume("auto")  # the same data
    root = tmp_path / "data"
    description = read_description(root)
    object.__setattr__(description, "threshold", 5.0)
    write_description(root, description)
    with pytest.raises(ValueError, match=r"data: threshold"):
        make_trainer(config).resume("auto")
    (root / "dataset.yaml").unlink()
    with pytest.raises(ValueError, match=r"the checkpoint's data have a dataset\.yaml"):
        make_trainer(config).resume("auto")


def test_f15_weights_that_do_not_fit_are_named_with_their_shapes():
    stored = {"a": torch.zeros(2), "b": torch.zeros(3), "old": torch.zeros(1)}
    current = {"a": torch.zeros(2), "b": torch.zeros(4), "new": torch.zeros(1)}
    assert weight_differences(stored, current) == [
        "weights only in the checkpoint: old",
        "weights only in the model: new",
        "weights of another shape: b [3] (the model has [4])",
    ]


def test_f13_other_clips_per_step_are_refused_and_equal_ones_are_not(tmp_path):
    config = write_run(tmp_path, TRAIN__GRADIENT_ACCUMULATION_STEPS=2)
    trainer = make_trainer(config)
    trainer.progress.step = 1
    trainer.save("last.pth")
    split = ("TRAIN.BATCH_SIZE", "2", "TRAIN.GRADIENT_ACCUMULATION_STEPS", "1")
    make_trainer(config, *split).resume("auto")
    with pytest.raises(ValueError, match=r"\(clips per step\): the checkpoint has 2, this run 4"):
        make_trainer(config, "TRAIN.BATCH_SIZE", "2").resume("auto")
