"""Training and testing on different kinds of data is logged and reported."""

import dataclasses
import json

import torch

from src import test as entry
from src.data.description import (
    describe_root,
    description_from_text,
    find_description,
    read_description,
    write_description,
)
from tests.data_cases import write_miniature
from tests.training_cases import make_trainer, write_run


def test_the_description_of_a_folder_is_found_above_it(tmp_path):
    root = write_miniature(tmp_path / "a" / "mini", sequences=1, val_sequences=1, frames=2)
    text = describe_root(root)
    assert description_from_text(text, "here") == read_description(root)
    for folder in ("val/seq_000/blur", "val/seq_000", "val", "."):
        assert find_description(root / folder) == read_description(root)
    assert find_description(tmp_path / "a") is None
    assert describe_root(tmp_path / "a") == ""


def test_f16_a_test_on_another_kind_of_data_says_so(tmp_path, capsys):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1, TRAIN__VAL_EVERY=1)
    trainer = make_trainer(config)
    trainer.fit()
    trained = describe_root(tmp_path / "data")
    (scores,) = (tmp_path / "outputs/metrics").glob("val_*.json")
    assert json.loads(scores.read_text())["data"] == trained
    last = tmp_path / "outputs/ckpts/run/last.pth"
    assert torch.load(last, weights_only=True)["data"] == trained
    description = read_description(tmp_path / "data")
    write_description(tmp_path / "data", dataclasses.replace(description, transfer="linear"))
    sequence = tmp_path / "data/val/seq_000"
    arguments = ["--ckpt", str(last), "--input_blur", str(sequence / "blur")]
    arguments += ["--input_spike_vox", str(sequence / "spike"), "--output", str(tmp_path / "out")]
    assert entry.main(arguments) == 0
    (report,) = (tmp_path / "outputs/metrics").glob("test_*.json")
    data = json.loads(report.read_text())["data"]
    assert data["trained_on"] == trained
    assert data["tested_on"] == describe_root(tmp_path / "data")
    assert data["differences"] == ["transfer was encoded, is linear"]
    printed = capsys.readouterr()
    assert (
        "trained on another kind of data than this: transfer was encoded"
        in printed.out + printed.err
    )
