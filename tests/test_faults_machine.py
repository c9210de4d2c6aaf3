"""F54: what a machine lacks is reported before the first step, or is not needed."""

import json
import urllib.request
from urllib.error import URLError

import pytest
import torch

from src.models.downloads import WEIGHT_FILES
from tests.training_cases import make_trainer, train_command, write_run


@pytest.fixture(name="hub")
def _hub(tmp_path, monkeypatch):
    """Give an empty cache of weights on a machine without a network."""

    def refuse(*_, **__):
        raise URLError(OSError("Network is unreachable"))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_f54_cuda_without_a_gpu_ends_before_training(tmp_path, forks):
    training = forks(train_command(write_run(tmp_path), "DEVICE", "cuda"))
    assert training.wait(120) == 1
    assert "DEVICE is cuda, but torch sees no CUDA device" in training.output
    assert "set DEVICE cpu" in training.output
    assert "Traceback" not in training.output
    assert not (tmp_path / "outputs" / "ckpts").exists()


def test_f54_without_lpips_weights_a_run_trains_and_reports_why_there_is_no_score(tmp_path, hub):
    assert make_trainer(write_run(tmp_path, TRAIN__MAX_STEPS=1, VAL__LPIPS=True)).fit() == 0
    report = json.loads((tmp_path / "outputs" / "metrics" / "val_run_0000001.json").read_text())
    assert [frame["lpips"] for frame in report["frames"]] == [None] * 5
    (note,) = [note for note in report["notes"] if "LPIPS" in note]
    assert str(hub / WEIGHT_FILES["alexnet"].name) in note


@pytest.mark.parametrize(
    ("key", "value", "file", "remedy"),
    [
        ("LOSS.VGG_PERCEPTUAL.WEIGHT", "0.1", "vgg16", "LOSS.VGG_PERCEPTUAL.WEIGHT 0"),
        ("MODEL.SPYNET", "download", "spynet", "put it there"),
    ],
)
def test_f54_without_a_network_a_run_ends_before_its_first_step(
    tmp_path, hub, key, value, file, remedy
):
    with pytest.raises(RuntimeError, match="Network is unreachable") as caught:
        make_trainer(write_run(tmp_path), key, value)
    assert str(hub / WEIGHT_FILES[file].name) in str(caught.value)
    assert remedy in str(caught.value)
    assert not list(tmp_path.rglob("*.pth"))
