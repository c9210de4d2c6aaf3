"""F07, F13, F15 to F26, F28: checkpoint files that are damaged, old, unfit, or have no room."""

import gzip
import os
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from src import paths
from src.config import config_to_text, get_defaults, load_config
from src.data.description import read_description, write_description
from src.engine.checkpoint import (
    Checkpoints,
    CheckpointWriteError,
    find_checkpoint,
    load_checkpoint,
    rename_damaged,
    resume_conflicts,
    save_checkpoint,
    weight_differences,
)
from src.engine.processes import Ranks
from src.engine.progress import Progress
from src.models.weights import read_state_dict, read_torch_file
from src.paths import REPO_ROOT
from src.run_directory import RunDirectory
from tests.training_cases import (
    CPU,
    SMALLEST_VRT,
    make_trainer,
    resumed,
    write_run,
)

GOLDEN = REPO_ROOT / "tests" / "goldens" / "checkpoint_format1.pth.gz"
GOLDEN_NORM = ("DATA.NORM.MEAN", "1.48188", "DATA.NORM.STD", "0.258223")
NAMES = ("last.pth", "previous.pth", "best.pth")
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs it")  # noqa: PTH110


def state(step: int, size: int = 3) -> dict:
    return {"model": {"weight": torch.full((size,), float(step))}, "progress": {"step": step}}


def step_of(path) -> int:
    return load_checkpoint(path)["progress"]["step"]


def found_in(folder) -> tuple[str, int]:
    found = find_checkpoint(folder)
    return found.path.name, found.state["progress"]["step"]


@pytest.fixture(name="folder")
def _folder(tmp_path):
    """Give a folder with last.pth of step 3, previous.pth of 2 and best.pth of 1."""
    save_checkpoint(tmp_path / "best.pth", state(1))
    for step in (2, 3):
        save_checkpoint(tmp_path / "last.pth", state(step), previous=tmp_path / "previous.pth")
    return tmp_path


@pytest.fixture(name="partial_1")
def _partial_1(monkeypatch):
    """Give partial files a name that is known before."""
    monkeypatch.setattr(paths, "uuid4", lambda: SimpleNamespace(hex="1"))


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- writing and finding


@pytest.mark.parametrize("has_links", [True, False])
def test_f24_the_checkpoint_before_stays_as_the_previous_one(folder, monkeypatch, has_links):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    save_checkpoint(folder / "last.pth", state(4), previous=folder / "previous.pth")
    assert [step_of(folder / name) for name in NAMES] == [4, 3, 1]
    assert len(list(folder.iterdir())) == 3
    assert load_checkpoint(folder / "last.pth")["model"]["weight"].tolist() == [4, 4, 4]


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_f18_f19_f24_a_damaged_last_one_is_kept_aside_and_never_replaces_the_previous(
    folder, caplog, damage
):
    whole = (folder / "last.pth").read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"not a zip"}[damage]
    (folder / "last.pth").write_bytes(broken)
    for stray in ("0000100.pth", "notes.txt"):
        (folder / stray).write_text("stray")
    assert found_in(folder) == ("previous.pth", 2)
    assert "last.pth: cannot be read as a checkpoint" in caplog.text
    rename_damaged(find_checkpoint(folder))
    save_checkpoint(folder / "last.pth", state(5), previous=folder / "previous.pth")
    assert step_of(folder / "previous.pth") == 2
    assert (folder / "last.pth.damaged").read_bytes() == broken
    (folder / "previous.pth").unlink()
    (folder / "last.pth").write_bytes(broken)
    assert found_in(folder) == ("best.pth", 1)


def test_nothing_readable_is_an_error_and_an_empty_folder_is_none(tmp_path):
    assert find_checkpoint(tmp_path) is None
    (tmp_path / "last.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no readable checkpoint among last\.pth"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(("best", "expected"), [(3, "last.pth"), (4, "best.pth")])
def test_the_furthest_one_is_taken(folder, best, expected):
    save_checkpoint(folder / "best.pth", state(best))
    assert found_in(folder) == (expected, best)


class Evil:
    def __reduce__(self):
        return (open, ("pwned", "w"))


@pytest.mark.parametrize("is_zip", [True, False])
def test_f28_a_pickle_that_runs_code_is_rejected_and_not_run(tmp_path, monkeypatch, is_zip):
    monkeypatch.chdir(tmp_path)
    content = {"progress": {"step": 1}, "model": Evil()}
    torch.save(content, tmp_path / "last.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"asks for _?io\.open, which could run code"):
        load_checkpoint(tmp_path / "last.pth")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ({"params": {"weight": torch.zeros(1)}}, r"MODEL\.PRETRAINED"),
        ({"format": 99, "progress": {}}, "format 99; this version reads up to 2"),
    ],
)
def test_other_files_are_no_checkpoints(tmp_path, content, remedy):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=remedy):
        load_checkpoint(tmp_path / "a.pth")


def test_a_checkpoint_that_lacks_parts_is_named():
    run, parts = SimpleNamespace(name="run"), {"progress": Progress()}
    checkpoints = Checkpoints(run, None, parts, {"config": "", "vrt": "", "data": ""})
    with pytest.raises(ValueError, match="the checkpoint lacks config, vrt;"):
        checkpoints.load_state_dict({"progress": {"step": 1}})


def test_f22_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    path = tmp_path / "last.pth"
    content = {"model": {"w": torch.arange(40.0)}, "progress": {"step": 7, "best_psnr": 31.5}}
    torch.save(content, path)
    whole, rejected = path.read_bytes(), 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            read = read_torch_file(path, "a checkpoint")
        except ValueError:
            rejected += 1
        else:
            assert read["progress"] == content["progress"], position
            assert torch.equal(read["model"]["w"], content["model"]["w"]), position
    assert rejected > len(whole) // 3  # the rest are zeros between the parts, names and dates


def test_weights_in_a_safetensors_file_are_read_and_a_cut_one_is_a_sentence(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"module.w": torch.arange(40.0)}, path)
    assert torch.equal(read_state_dict(path)["w"], torch.arange(40.0))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a\.safetensors: cannot be read .* cut short \("):
        read_state_dict(path)


# ---------------------------------------------------------------- no room, no permission


@pytest.mark.parametrize("limit", [1000, 300_000])
def test_f20_a_file_that_may_not_grow_names_the_reason(folder, limit):
    before, limits = contents(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(CheckpointWriteError, match="File too large"):
            save_checkpoint(folder / "last.pth", state(4, 1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before


@pytest.mark.usefixtures("partial_1")
@needs_dev_full
def test_f20_training_continues_and_tries_again_but_the_last_write_has_to_succeed(tmp_path, caplog):
    trainer = make_trainer(write_run(tmp_path))
    folder, progress = trainer.run.checkpoints, trainer.progress
    folder.mkdir(parents=True)
    partial = folder / ".partial-1-last.pth"
    partial.symlink_to("/dev/full")
    assert not trainer.save("last.pth")
    assert "No space left on device; training continues" in caplog.text
    progress.step = 2
    assert trainer.save("last.pth")
    assert step_of(folder / "last.pth") == 2
    progress.step = trainer.total_steps
    partial.symlink_to("/dev/full")
    with pytest.raises(CheckpointWriteError):
        trainer.save("last.pth")
    assert not partial.is_symlink()
    (folder / ".partial-1-best.pth").symlink_to("/dev/full")
    progress.step = 3
    trainer.keep_best(30.0)
    assert progress.best_psnr is None  # the next validation may write it

    class SecondOfTwo(Ranks):
        is_main = False

        def largest(self, value):
            return max(value, 1)  # the main rank has failed

    progress.best_psnr, progress.best_step = 20.0, 1
    trainer.ranks = trainer.checkpoints.ranks = SecondOfTwo(1, 1, CPU)
    trainer.keep_best(30.0)
    assert (progress.best_psnr, progress.best_step) == (20.0, 1)


@pytest.mark.parametrize("where", ["visuals", "logs", ""])
def test_f21_folders_that_cannot_be_written_are_named_before_anything_is_built(tmp_path, where):
    root = tmp_path / "outputs"
    (root / where).parent.mkdir(exist_ok=True)
    (root / where).write_text("a file where a folder has to be")
    with pytest.raises(OSError, match=rf"{where}.*the run cannot write there .*LOG\.SAVE_DIR"):
        RunDirectory(root, "run").check_writable()


def test_f21_too_little_room_for_the_checkpoints_is_reported_with_numbers(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path, "run")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_500_000_000))
    run.check_space(800_000_000)  # three files and one that is being written: 3.2 GB
    with pytest.raises(OSError, match=r"3\.50 GB are free, .* need 4\.00 GB \(1\.00 GB each\)"):
        run.check_space(1_000_000_000)
    for name in NAMES:
        (run.checkpoints / name).touch()
    run.check_space(3_000_000_000)  # all exist
    with pytest.raises(OSError, match=r"need 12\.00 GB"):  # they will be kept aside
        run.check_space(3_000_000_000, starts_anew=True)


def test_f21_a_new_start_needs_room_beside_what_it_keeps_aside(tmp_path, monkeypatch):
    trainer = make_trainer(write_run(tmp_path))
    for name in NAMES:
        trainer.save(name)
    usage, size = shutil.disk_usage(tmp_path), trainer.checkpoints.bytes_needed()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * size))
    for choice in ("never", str(trainer.run.checkpoints / "best.pth")):
        with pytest.raises(OSError, match="the run's checkpoints need"):
            trainer.resume(choice)
    assert len(list(tmp_path.rglob("*.pth"))) == 3
    trainer.resume("auto")  # each replaces one


# ---------------------------------------------------------------- another run, an older version


def test_f25_a_checkpoint_of_the_first_format_resumes(tmp_path):
    config = write_run(
        tmp_path, TRAIN__MAX_STEPS=3, TRAIN__SAVE_EVERY=100, DATA__CROP_SIZE=64,
        TRAIN__GRADIENT_ACCUMULATION_STEPS=2, TRAIN__FREEZE=["spynet"], MODEL__SPYNET="",
    )  # fmt: skip
    arguments = {**SMALLEST_VRT, "window_size": [2, 8, 8]}
    (tmp_path / "vrt.yaml").write_text(yaml.safe_dump(arguments))
    last = RunDirectory.of(load_config(config)).checkpoints / "last.pth"
    last.parent.mkdir(parents=True)
    last.write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    trainer = resumed(config, *GOLDEN_NORM)
    assert trainer.progress.step == 2
    raw = read_torch_file(last, "a checkpoint")["model"]
    assert sum(key.startswith(("spike_tsa.", "fuse.")) for key in raw) == 4 * (12 + 14)
    stored, own = load_checkpoint(last), trainer.checkpoints.state_dict()
    progress = Progress()
    progress.load_state_dict(stored["progress"])
    assert progress.validated_step == 2  # that version validated before it saved
    assert list(own["model"]) == list(stored["model"])  # the optimizer's state goes by this order
    assert all(torch.equal(own["model"][key], value) for key, value in stored["model"].items())
    moments = [each["optimizer"]["state"][0]["exp_avg"] for each in (own, stored)]
    assert torch.equal(*moments)
    assert trainer.step(next(trainer.batches())).is_finite


def test_f13_f16_other_data_or_clips_per_step_are_rejected_and_named(tmp_path):
    config = write_run(tmp_path, TRAIN__GRADIENT_ACCUMULATION_STEPS=2)
    trainer = make_trainer(config)
    trainer.progress.step = 1
    trainer.save("last.pth")
    resumed(config, "TRAIN.BATCH_SIZE", "2", "TRAIN.GRADIENT_ACCUMULATION_STEPS", "1")
    with pytest.raises(ValueError, match=r"\(clips per step\): the checkpoint has 2, this run 4"):
        resumed(config, "TRAIN.BATCH_SIZE", "2")
    root = tmp_path / "data"
    description = read_description(root)
    object.__setattr__(description, "threshold", 5.0)
    write_description(root, description)
    with pytest.raises(ValueError, match=r"data: threshold"):
        resumed(config)
    (root / "dataset.yaml").unlink()
    with pytest.raises(ValueError, match=r"the checkpoint's data have a dataset\.yaml"):
        resumed(config)


def test_f15_weights_that_do_not_fit_are_named_with_their_shapes():
    stored = {"a": torch.zeros(2), "b": torch.zeros(3), "old": torch.zeros(1)}
    current = {"a": torch.zeros(2), "b": torch.zeros(4), "new": torch.zeros(1)}
    assert weight_differences(stored, current) == [
        "weights only in the checkpoint: old",
        "weights only in the model: new",
        "weights of another shape: b [3] (the model has [4])",
    ]


def test_f15_only_changes_that_make_it_another_run_are_conflicts():
    def written_by(cfg, **changes):
        written = {"config": config_to_text(cfg), "vrt": "depths: [1, 2]", "precision": "fp32"}
        return {**written, "model": {}, "data": "", "clips_per_step": 6, **changes}

    stored, cfg = written_by(get_defaults()), get_defaults()
    cfg.TRAIN.NUM_WORKERS, cfg.TRAIN.MAX_STEPS, cfg.LOG.SAVE_DIR = 0, 9, "elsewhere"
    cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.GRADIENT_ACCUMULATION_STEPS = 2, 3  # the product is the same
    cfg.MODEL.FUSE.CHUNK_SIZE, cfg.MODEL.SPYNET = 8, "download"
    assert resume_conflicts(stored, written_by(cfg, vrt="depths:\n- 1\n- 2\n")) == []
    cfg.TRAIN.OPTIM.LR, cfg.DATA.K, cfg.MODEL.SPYNET = 1.0, 16, "none"
    changed = written_by(cfg, vrt="depths: [1, 1]", clips_per_step=8, precision="bf16")
    conflicts = resume_conflicts(stored, changed)
    assert "(clips per step): the checkpoint has 6, this run 8" in conflicts[0]
    assert "the checkpoint has fp32, this run bf16" in conflicts[1]
    assert "MODEL.VRT_CFG" in conflicts[2]
    assert conflicts[3:] == [
        "DATA.K: the checkpoint has 32, the configuration 16",
        "TRAIN.OPTIM.LR: the checkpoint has 0.0002, the configuration 1.0",
        "MODEL.SPYNET: the checkpoint has '', the configuration 'none'",
    ]
