"""Checkpoint files: atomic, safe to read, and a damaged one never stops a run."""

import pytest
import torch

from src.config import config_to_text, get_defaults
from src.engine.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from src.engine.resume import resume_conflicts


def state(step: int) -> dict:
    return {"model": {"weight": torch.full((3,), float(step))}, "progress": {"step": step}}


def test_what_is_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "last.pth", state(5))
    loaded = load_checkpoint(tmp_path / "last.pth")
    assert loaded["progress"] == {"step": 5}
    assert loaded["model"]["weight"].tolist() == [5, 5, 5]


def test_f07_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint(path, state(1))
    before = path.read_bytes()

    def break_off(_, partial):
        partial.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", break_off)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, state(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_f07_a_partial_file_is_not_picked(tmp_path):
    save_checkpoint(tmp_path / "last.pth", state(1))
    (tmp_path / ".partial-1-last.pth").write_bytes(b"half")
    assert find_checkpoint(tmp_path).path.name == "last.pth"


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_f18_f19_a_damaged_file_is_passed_over_by_name(tmp_path, caplog, damage):
    save_checkpoint(tmp_path / "best.pth", state(3))
    save_checkpoint(tmp_path / "last.pth", state(5))
    whole = (tmp_path / "last.pth").read_bytes()
    broken = {"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"not a zip"}
    (tmp_path / "last.pth").write_bytes(broken[damage])
    found = find_checkpoint(tmp_path)
    assert (found.path.name, found.state["progress"]["step"]) == ("best.pth", 3)
    assert "last.pth: cannot be read as a checkpoint" in caplog.text


def test_nothing_readable_is_an_error_and_nothing_there_is_none(tmp_path):
    assert find_checkpoint(tmp_path) is None
    (tmp_path / "last.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="no readable checkpoint among last.pth"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(("last", "best", "expected"), [(5, 5, "last"), (4, 5, "best")])
def test_the_furthest_one_is_taken(tmp_path, last, best, expected):
    save_checkpoint(tmp_path / "best.pth", state(best))
    save_checkpoint(tmp_path / "last.pth", state(last))
    assert find_checkpoint(tmp_path).path.stem == expected


class Evil:
    def __reduce__(self):
        return (open, ("pwned", "w"))


@pytest.mark.parametrize("is_zip", [True, False])
def test_f28_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, monkeypatch, is_zip):
    monkeypatch.chdir(tmp_path)
    content = {"progress": {"step": 1}, "model": Evil()}
    torch.save(content, tmp_path / "last.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"asks for io\.open, which could run code"):
        load_checkpoint(tmp_path / "last.pth")
    assert not (tmp_path / "pwned").exists()


def test_plain_weights_are_no_checkpoint(tmp_path):
    torch.save({"params": {"weight": torch.zeros(1)}}, tmp_path / "vrt.pth")
    with pytest.raises(ValueError, match=r"MODEL\.PRETRAINED"):
        load_checkpoint(tmp_path / "vrt.pth")


def test_a_later_format_is_refused(tmp_path):
    torch.save({"format": 99, "progress": {}}, tmp_path / "last.pth")
    with pytest.raises(ValueError, match="format 99; this version reads up to 2"):
        load_checkpoint(tmp_path / "last.pth")


def test_only_changes_that_make_it_another_run_are_conflicts():
    def written_by(cfg, **changes):
        written = {"config": config_to_text(cfg), "vrt": "depths: [1, 2]", "precision": "fp32"}
        written |= {"model": {}, "data": ""}
        return {**written, "clips_per_step": 6, **changes}

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
    assert "VRT's arguments in that file have changed" in conflicts[2]
    assert conflicts[3:] == [
        "DATA.K: the checkpoint has 32, the configuration 16",
        "TRAIN.OPTIM.LR: the checkpoint has 0.0002, the configuration 1.0",
        "MODEL.SPYNET: the checkpoint has '', the configuration 'none'",
    ]
