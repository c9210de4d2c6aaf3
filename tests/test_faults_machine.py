"""F54: what a machine lacks is said before the first step, or is done without."""

import json
import urllib.request
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch

from src.engine.step import choose_precision
from src.metrics.lpips_metric import WEIGHTS_FILE
from src.models.downloads import WEIGHT_FILES
from src.pictures.animation import write_pages
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
    config = write_run(tmp_path)
    training = forks(train_command(config, "DEVICE", "cuda"))
    output, _ = training.communicate(timeout=120)
    assert training.returncode == 1
    assert "DEVICE is cuda, but torch sees no CUDA device" in output
    assert "set DEVICE cpu" in output
    assert "Traceback" not in output
    assert not (tmp_path / "outputs" / "ckpts").exists()


def test_f54_a_gpu_without_bf16_is_named_and_auto_takes_fp16(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ValueError, match="bf16 is not supported by Tesla T4; use auto or fp16"):
        choose_precision("bf16", gpu)
    assert choose_precision("auto", gpu).name == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert choose_precision("auto", gpu).name == choose_precision("bf16", gpu).name == "bf16"


def test_f54_without_lpips_weights_a_run_trains_and_says_why_there_is_no_score(tmp_path, hub):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1, VAL__LPIPS=True)
    assert make_trainer(config).fit() == 0
    report = json.loads((tmp_path / "outputs" / "metrics" / "val_run_0000001.json").read_text())
    assert [frame["lpips"] for frame in report["frames"]] == [None] * 5
    (note,) = [note for note in report["notes"] if "LPIPS" in note]
    assert str(hub / WEIGHTS_FILE) in note


@pytest.mark.parametrize(
    ("key", "value", "file", "words"),
    [
        (
            "LOSS.VGG_PERCEPTUAL.WEIGHT",
            "0.1",
            WEIGHT_FILES["vgg16"].name,
            "turn the term off with LOSS.VGG_PERCEPTUAL.WEIGHT 0",
        ),
        ("MODEL.SPYNET", "download", "spynet_sintel_final", "put it there"),
    ],
)
def test_f54_without_a_network_a_run_ends_before_its_first_step(
    tmp_path, hub, key, value, file, words
):
    config = write_run(tmp_path)
    with pytest.raises((RuntimeError, ConnectionError), match="Network is unreachable") as told:
        make_trainer(config, key, value)
    assert str(hub / file) in str(told.value)
    assert words in str(told.value)
    assert not list(tmp_path.rglob("*.pth"))


def test_f54_an_opencv_that_cannot_write_videos_says_what_to_write_instead(tmp_path, monkeypatch):
    class Closed:
        def isOpened(self):  # noqa: N802
            return False

    monkeypatch.setattr(cv2, "VideoWriter", lambda *_: Closed())
    pages = [np.zeros((8, 8, 3), np.uint8)] * 2
    with pytest.raises(ValueError, match="cannot write MP4; write a .gif or .webp instead"):
        write_pages(tmp_path / "a.mp4", iter(pages), 5.0)
    number, _ = write_pages(tmp_path / "a.gif", iter(pages), 5.0)
    assert number == 2
