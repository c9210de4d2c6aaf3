"""Restoring and scoring recordings, alone and divided among ranks."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from src.inference.restore import NonFiniteOutputError, Normalization, Restorer, evaluate, report_on
from src.inference.tiling import TileSettings, share_out
from src.metrics.psnr_ssim import psnr
from src.metrics.report import merge_reports, notes_on_sizes, score_frame
from tests.inference_cases import Identity, OutOfMemoryAbove, Video

WHOLE = TileSettings(0, 0, 0, 0)
SMALL = TileSettings(3, 16, 1, 6)


def report_of(restorer, videos, notes=(), **options):
    rows = [row for _, _, _, row in evaluate(restorer, videos, **options)]
    return report_on(restorer, rows, notes)


def test_smaller_tiles_are_noted_in_the_report():
    restorer = Restorer(OutOfMemoryAbove(64), WHOLE, Normalization(), "cpu")
    report = report_of(restorer, [Video(2, (128, 96), (64, 48))])
    assert "whole frames" in report.protocol
    assert any("ran out of memory" in note and "64 px" in note for note in report.notes)


def test_f44_broken_output_is_an_error_before_it_becomes_pixels():
    class Broken(nn.Module):
        def forward(self, rgb, spikes=None):
            rgb = rgb.clone()
            rgb[0, -1, 0, 3, 3] = float("nan")
            return rgb

    restorer = Restorer(Broken(), WHOLE, Normalization(), "cpu")
    with pytest.raises(NonFiniteOutputError, match="video: frame 6: the model returned NaN"):
        report_of(restorer, [Video()])


def test_a_sequence_that_is_too_small_for_a_metric_lacks_only_that():
    small, middle = Video(1, (10, 10), (5, 5), seed=1), Video(1, (31, 40), (15, 20), seed=2)
    videos = [small, middle, Video(1)]
    small.name, middle.name = "small", "middle"
    restorer = Restorer(Identity(), WHOLE, Normalization(), "cpu")
    report = report_of(restorer, videos, score_blurry=True, lpips=lambda *_: 0.5)
    has = [[v is not None for v in row.scores["restored"].values()] for row in report.frames]
    assert has == [[True, False] * 2 + [False], [True] * 4 + [False], [True] * 5]
    assert report.means()["psnr_rgb"] > 0
    assert report.means()["ssim_rgb"] is None
    notes = notes_on_sizes(report.frames, has_lpips=True)
    assert "SSIM needs 11 x 11 pixels: not measured for small, so" in notes[0]
    assert "LPIPS needs 32 x 32 pixels: not measured for small, middle, so" in notes[1]
    assert report.to_json()["frames"][0]["ssim_rgb"] is None


def test_evaluation_scores_what_is_restored():
    videos = [Video(3, seed=1), Video(2, seed=2)]
    videos[1].name = "other"
    restorer = Restorer(Identity(), SMALL, Normalization(), "cpu")
    frames = list(evaluate(restorer, videos, score_blurry=True))
    report = report_on(restorer, [row for *_, row in frames], ["n"])
    names = [*(("video", f"00000{i}") for i in range(3)), ("other", "000000"), ("other", "000001")]
    assert [(row.sequence, row.frame) for row in report.frames] == names
    assert [(video.name, video.frames[i].name) for video, i, _, _ in frames] == names
    first = score_frame(videos[0].read_blurry(0), videos[0].read_sharp(0))
    assert report.frames[0].scores == {"restored": first, "blurry": first}
    assert report.means()["psnr_rgb"] == pytest.approx(
        np.mean([psnr(v.read_blurry(i), v.read_sharp(i)) for v in videos for i in range(len(v))])
    )
    assert report.means() == report.means("blurry")
    for words in ("border 0", "rounding", "BT.601", "3 frames overlap 1 x 16 px overlap 6"):
        assert words in report.protocol
    stored = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (stored["num_frames"], stored["num_sequences"], stored["notes"][0]) == (5, 2, "n")
    assert stored["blurry"] == stored["restored"]
    assert restorer.seconds > 0


def test_without_scores_nothing_sharp_is_read():
    class NoSharp(Video):
        def read_sharp(self, i):
            raise AssertionError("must not be read")

    restorer = Restorer(Identity(), SMALL, Normalization(), "cpu")
    assert [row for *_, row in evaluate(restorer, [NoSharp(3)], score=False)] == [None] * 3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_number_format_reaches_the_model_and_is_restored(dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []

    class Model(nn.Module):
        def forward(self, rgb, spikes=None):
            autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
            seen.append((autocast, torch.backends.cudnn.allow_tf32))
            return rgb.bfloat16() if autocast else rgb

    restorer = Restorer(Model(), WHOLE, Normalization(), "cpu", dtype)
    report = report_of(restorer, [Video(1)])
    assert seen == [(dtype, dtype is not None)]
    assert torch.backends.cudnn.allow_tf32
    assert report.protocol.endswith("bfloat16" if dtype else "float32")


# ---------------------------------------------------------------- ranks share the clips


class Recurrent(nn.Module):
    """Every frame depends on its position in the clip and on all frames of it."""

    def __init__(self):
        super().__init__()
        self.clips = 0

    def forward(self, rgb, spikes=None):
        self.clips += 1
        weights = torch.linspace(0.1, 0.9, rgb.shape[1]).view(1, -1, 1, 1, 1)
        return rgb * weights + rgb.mean(dim=1, keepdim=True) * (1 - weights)


def test_f52_every_clip_has_one_rank_and_shares_are_even():
    for counts in itertools.product(range(4), repeat=3):
        for world in range(1, 9):
            parts = [share_out(counts, rank, world) for rank in range(world)]
            given = [(n, clip) for part in parts for n, clips in part for clip in clips]
            assert given == [(n, clip) for n, count in enumerate(counts) for clip in range(count)]
            sizes = [sum(len(clips) for _, clips in part) for part in parts]
            assert max(sizes) - min(sizes) <= 1


def recurrent(settings):
    return Restorer(Recurrent(), settings, Normalization(), "cpu")


@pytest.mark.parametrize(
    "settings",
    [
        TileSettings(4, 32, 2, 8),
        TileSettings(4, 0, 3, 0),  # three clips share a frame
        TileSettings(0, 0, 0, 0),
        TileSettings(4, 32, 2, 8, blend="reference", window=(2, 8, 8)),
        TileSettings(0, 0, 0, 0, blend="reference", window=(6, 8, 8)),  # mirrored in time
    ],
)
@pytest.mark.parametrize("world", [1, 3, 7])
def test_f52_shared_validation_equals_that_of_one_rank(settings, world):
    videos = [Video(n, seed=n) for n in (11, 3)]
    for video in videos:
        video.name = f"video{video.num_frames}"
    whole = recurrent(settings)
    frames = list(evaluate(whole, videos))
    report = merge_reports([report_on(whole, [row for *_, row in frames])])
    images = {(video.name, i): image for video, i, image, _ in frames}
    counts = [whole.num_clips(video) for video in videos]
    reports = [report_of(recurrent(settings), [])]  # of a rank without a share
    for rank in range(world):
        part, rows = share_out(counts, rank, world), []
        chosen, clips = [videos[n] for n, _ in part], [clips for _, clips in part]
        restorer = recurrent(settings)
        for video, i, image, row in evaluate(restorer, chosen, clips=clips):
            assert np.array_equal(image, images.pop((video.name, i)))
            rows.append(row)
        reports.append(report_on(restorer, rows))
    assert images == {}  # every frame came once
    assert merge_reports(reports).to_json() == report.to_json()


def test_a_part_runs_only_the_clips_that_reach_into_it():
    model = Recurrent()
    found = Restorer(model, TileSettings(4, 0, 2, 0), Normalization(), "cpu")
    frames = [i for i, _ in found.restore(Video(11), range(2, 4))]
    assert frames == [4, 5, 6]
    assert model.clips == 3  # clips 2 and 3, and clip 1 for frames 4 and 5
