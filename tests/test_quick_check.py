"""The check before every training: what it sees, how long it takes, and that all ranks end."""

import shutil

import pytest
import torch

from src.config import load_config
from src.data.errors import DataSetError
from src.data.exposures import read_exposures, write_exposures
from src.engine.processes import Ranks
from src.paths import REPO_ROOT
from src.prepare.quick_check import quick_check
from src.train import reject_wrong_data
from tests.prepare_cases import flip_bits, rewrite, run, write_prepared
from tests.training_cases import run_ranks, write_run


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def exchange_times(path, first, second):
    rows = read_exposures(path, None)
    write_exposures(path, {**rows, first: rows[second], second: rows[first]})


FAULTS = {
    "default mean and deviation": (
        lambda r, c: set_norm(c, "0.0", "1.0"),
        "DATA.NORM: MEAN 0.0, STD 1.0 in the configuration, the training split has 0.",
    ),
    "other mean": (lambda r, c: set_norm(c, "0.2", "0.4"), "DATA.NORM: MEAN 0.2, STD 0.4"),
    "spikes changed": (
        lambda r, c: flip_bits(r / "train/seq_001/spike/000001.dat"),
        "train/seq_001: its voxels were made from other spikes, another window or number of bins",
    ),
    "voxels cut": (lambda r, c: cut(r / "val/seq_000/spike_vox/000001.npy"), "has not the size"),
    "frame cut": (
        lambda r, c: cut(r / "val/seq_000/sharp/000002.png"),
        "cut short or cannot be read: ",
    ),
    "frame empty": (
        lambda r, c: (r / "train/seq_000/blur/000002.png").write_bytes(b""),
        "seq_000/blur/000002.png; copy them again",
    ),
    "frame gone": (
        lambda r, c: (r / "train/seq_000/blur/000002.png").unlink(),
        "dataset.yaml: train: frames was 8, is 7",
    ),
    "frame renamed": (
        lambda r, c: (r / "train/seq_000/blur/000002.png").rename(
            r / "train/seq_000/blur/000009.png"
        ),
        "names_sha256 was",
    ),
    "exposure changed": (
        lambda r, c: rewrite(r / "train/seq_000/exposures.csv", "0,0.0,", "0,0.0001,"),
        "the alignment log has another exposure (000000)",
    ),
    "log gone": (
        lambda r, c: (c.parent / "out/logs/align_mini.txt").unlink(),
        "align_mini.txt: cannot be read (No such file or directory); run scripts/prepare_data.py",
    ),
    "description gone": (lambda r, c: (r / "dataset.yaml").unlink(), "dataset.yaml: missing"),
    "description broken": (
        lambda r, c: (r / "dataset.yaml").write_text("source: [1]\n"),
        "source: expected a text",
    ),
    "sequence gone": (lambda r, c: shutil.rmtree(r / "train/seq_001"), "do not exist"),
    "no validation": (
        lambda r, c: shutil.rmtree(r / "val"),
        "val: no such folder; put one folder per sequence there, or name another one in",
    ),
    "time goes back": (
        lambda r, c: exchange_times(r / "train/seq_000/exposures.csv", 2, 3),
        "train/seq_000: exposures go back in time (000003); correct exposures.csv",
    ),
    "other bins": (lambda r, c: rewrite(c, "DATA:\n", "DATA:\n  K: 16\n"), "number of bins"),
}


def set_norm(prepared_config, mean, std):
    lines = prepared_config.read_text().splitlines()
    lines = [f"    MEAN: {mean}" if "MEAN" in line else line for line in lines]
    lines = [f"    STD: {std}" if "STD" in line else line for line in lines]
    prepared_config.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(prepared_config, fault):
    change, expected = FAULTS[fault]
    assert quick_check(load_config(prepared_config)) == []
    change(prepared_config.parent / "mini", prepared_config)
    problems = quick_check(load_config(prepared_config))
    assert any(expected in problem for problem in problems), problems


def test_a_model_that_starts_from_weights_may_keep_their_numbers(prepared_config, tmp_path, caplog):
    weights = tmp_path / "weights.pth"
    weights.touch()
    set_norm(prepared_config, "0.2", "0.4")
    pretrained = ["MODEL.PRETRAINED", str(weights)]
    assert quick_check(load_config(prepared_config, pretrained)) == []
    assert "right if MODEL.PRETRAINED was trained with the former" in caplog.text
    set_norm(prepared_config, "0.0", "1.0")
    assert "DATA.NORM: MEAN 0.0" in quick_check(load_config(prepared_config, pretrained))[0]


def test_all_of_it_at_once(prepared_config):
    chosen = ("spikes changed", "frame cut", "exposure changed", "other mean")
    for name in chosen:
        FAULTS[name][0](prepared_config.parent / "mini", prepared_config)
    problems = quick_check(load_config(prepared_config))
    for name in chosen:
        assert any(FAULTS[name][1] in problem for problem in problems), name


def test_a_frame_that_lacks_its_spikes_stops_no_training(tmp_path):
    """It is left out, which scanning logs; the rest is as good as before."""
    prepared_config = write_prepared(tmp_path)
    (tmp_path / "mini/train/seq_000/spike/000003.dat").unlink()
    assert run(prepared_config) == 0
    assert quick_check(load_config(prepared_config)) == []
    assert run(prepared_config, "--check_only") == 1


def test_three_thousand_stale_voxels_are_one_line(prepared_config):
    root = prepared_config.parent / "mini"
    for path in root.rglob("*.dat"):
        flip_bits(path)
    problems = quick_check(load_config(prepared_config))
    assert [problem.count("made from other spikes") for problem in problems[:4]] == [1, 1, 1, 0]
    assert "DATA.NORM is not checked" in problems[3]
    assert "changed: train/seq_000/spike/000000.dat" in problems[4]
    assert max(map(len, problems)) < 500


def test_every_rank_ends_with_the_problems_of_the_main_one(prepared_config, monkeypatch):
    cfg = load_config(prepared_config)
    reject_wrong_data(cfg, Ranks(0, 1, torch.device("cpu")))
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [["a is wrong"], value])
    with pytest.raises(DataSetError, match="1 problem.*\n  a is wrong"):
        reject_wrong_data(cfg, Ranks(1, 2, torch.device("cpu")))


def test_training_on_changed_data_ends_on_both_ranks(tmp_path):
    prepared_config = write_run(tmp_path)
    flip_bits(tmp_path / "data/train/seq_000/spike/000001.dat")
    command = [str(REPO_ROOT / "src/train.py"), "--config", str(prepared_config)]
    codes, output = run_ranks(command, tmp_path, processes=2)
    assert 0 not in codes
    assert "train/seq_000: its voxels were made from other spikes" in output
    assert "run scripts/prepare_data.py with this configuration" in output
    assert not list((tmp_path / "outputs").rglob("*.pth"))
