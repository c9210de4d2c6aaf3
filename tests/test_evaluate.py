import json

import numpy as np
import pytest
import torch
from torch import nn

from src.inference.evaluate import evaluate_recordings
from src.inference.restore import (
    NonFiniteOutputError,
    Normalization,
    Restorer,
)
from src.inference.tiling import TileSettings
from src.metrics.psnr_ssim import psnr
from src.metrics.report import merge_reports, score_frame
from tests.inference_cases import Identity, OutOfMemoryAbove, TemporalMean, Video

WHOLE = TileSettings(0, 0, 0, 0)
SMALL = TileSettings(3, 16, 1, 6)


def test_smaller_tiles_are_noted_in_the_report():
    video = Video(2, (128, 96), (64, 48))
    restorer = Restorer(OutOfMemoryAbove(64), WHOLE, Normalization(0.0, 1.0), "cpu")
    report = evaluate_recordings(restorer, [video])
    assert "whole frames" in report.protocol
    assert any("ran out of memory" in note and "64 px" in note for note in report.notes)


def test_f44_broken_output_is_refused_before_it_becomes_pixels():
    class Broken(nn.Module):
        def forward(self, rgb, spikes=None):
            rgb = rgb.clone()
            rgb[0, -1, 0, 3, 3] = float("nan")
            return rgb

    restorer = Restorer(Broken(), WHOLE, Normalization(0.0, 1.0), "cpu")
    with pytest.raises(NonFiniteOutputError, match="video: frame 6: the model returned NaN"):
        evaluate_recordings(restorer, [Video()])


def test_evaluation_scores_what_is_restored():
    videos = [Video(3, seed=1), Video(2, seed=2)]
    videos[1].name = "other"
    restorer = Restorer(Identity(), SMALL, Normalization(0.0, 1.0), "cpu")
    seen = []
    report = evaluate_recordings(
        restorer, videos, score_blurry=True, on_frame=lambda *a: seen.append(a), notes=["n"]
    )
    assert [(row.sequence, row.frame) for row in report.frames] == [
        *(("video", f"00000{i}") for i in range(3)),
        *(("other", f"00000{i}") for i in range(2)),
    ]
    first = score_frame(videos[0].read_blurry(0), videos[0].read_sharp(0))
    assert report.frames[0].scores == first == report.frames[0].blurry_scores
    assert report.means["psnr_rgb"] == pytest.approx(
        np.mean([psnr(v.read_blurry(i), v.read_sharp(i)) for v in videos for i in range(len(v))])
    )
    assert report.means == report.blurry_means
    assert [(video.name, i) for video, i, _, _ in seen][3] == ("other", 0)
    assert seen[4][3] is report.frames[4]
    for words in ("border 0", "rounding", "BT.601", "3 frames overlap 1 x 16 px overlap 6"):
        assert words in report.protocol
    assert "network in float32" in report.protocol
    stored = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (stored["num_frames"], stored["num_sequences"], stored["notes"]) == (5, 2, ["n"])
    assert stored["blurry"] == stored["restored"]
    assert restorer.seconds > 0


def test_ranks_give_the_report_of_one_process():
    videos = [Video(3, seed=k) for k in range(3)]
    for k, video in enumerate(videos):
        video.name = f"seq{k}"
    restorer = Restorer(TemporalMean(), SMALL, Normalization(0.0, 1.0), "cpu")
    whole = evaluate_recordings(restorer, videos)
    parts = [evaluate_recordings(restorer, videos[rank::2]) for rank in range(2)]
    assert merge_reports(parts).to_json() == whole.to_json()
    empty = evaluate_recordings(restorer, [])
    assert merge_reports([whole, empty]).to_json() == whole.to_json()


def test_without_scores_nothing_sharp_is_read():
    class NoSharp(Video):
        def read_sharp(self, i):
            raise AssertionError("must not be read")

    seen = []
    restorer = Restorer(Identity(), SMALL, Normalization(0.0, 1.0), "cpu")
    report = evaluate_recordings(
        restorer, [NoSharp(3)], score=False, on_frame=lambda *a: seen.append(a[3])
    )
    assert seen == [None] * 3
    assert report.frames == []
    assert report.means["psnr_rgb"] is None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_number_format_reaches_the_model_and_is_put_back(dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []

    class Model(nn.Module):
        def forward(self, rgb, spikes=None):
            autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            seen.append((autocast, torch.backends.cudnn.allow_tf32))
            return rgb.bfloat16() if autocast else rgb

    restorer = Restorer(Model(), WHOLE, Normalization(0.0, 1.0), "cpu", dtype)
    report = evaluate_recordings(restorer, [Video(1)])
    assert seen == [(dtype, dtype is not None)]
    assert torch.backends.cudnn.allow_tf32
    assert report.protocol.endswith("bfloat16" if dtype else "float32")
