"""Ranks share the clips of recordings out, and the result is that of one rank, bit for bit."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from src.inference.evaluate import evaluate_recordings
from src.inference.restore import Normalization, Restorer
from src.inference.tiling import TileSettings, frames_of_clips, plan_axis, share_out
from src.metrics.report import merge_reports
from tests.inference_cases import Video


class Recurrent(nn.Module):
    """Every frame depends on its place in the clip and on all frames of it."""

    def __init__(self):
        super().__init__()
        self.clips = 0

    def forward(self, rgb, spikes=None):
        self.clips += 1
        weights = torch.linspace(0.1, 0.9, rgb.shape[1]).view(1, -1, 1, 1, 1)
        return rgb * weights + rgb.mean(dim=1, keepdim=True) * (1 - weights)


def test_pieces_by_hand():
    assert share_out([3, 1, 2], 0, 2) == [(0, range(3))]
    assert share_out([3, 1, 2], 1, 2) == [(1, range(1)), (2, range(2))]
    assert share_out([5], 1, 3) == [(0, range(1, 3))]
    assert share_out([0, 1], 0, 1) == [(1, range(1))]


def test_f52_every_clip_has_one_rank_and_nobody_has_much_more():
    for counts in itertools.product(range(4), repeat=3):
        for world in range(1, 9):
            parts = [share_out(counts, rank, world) for rank in range(world)]
            given = [(n, clip) for part in parts for n, clips in part for clip in clips]
            assert given == [(n, clip) for n, count in enumerate(counts) for clip in range(count)]
            sizes = [sum(len(clips) for _, clips in part) for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_clips_complete_each_frame_once():
    plan = plan_axis(11, 4, 2)
    assert plan.starts == (0, 2, 4, 6, 7)
    frames = [list(frames_of_clips(plan, 11, range(n, n + 1))) for n in range(5)]
    assert frames == [[0, 1], [2, 3], [4, 5], [6], [7, 8, 9, 10]]
    assert list(frames_of_clips(plan, 11, range(1, 4))) == [2, 3, 4, 5, 6]
    assert list(frames_of_clips(plan, 11, range(2, 2))) == []


def restorer(settings):
    return Restorer(Recurrent(), settings, Normalization(0.0, 1.0), "cpu")


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
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_f52_shared_validation_equals_that_of_one_rank(settings, world):
    videos = [Video(n, seed=n) for n in (11, 3)]
    for video in videos:
        video.name = f"video{video.num_frames}"
    images = {}
    whole = restorer(settings)
    report = merge_reports(
        [
            evaluate_recordings(
                whole, videos, on_frame=lambda v, i, image, _: images.update({(v.name, i): image})
            )
        ]
    )
    counts = [whole.num_clips(video) for video in videos]
    reports = []

    def compare(video, i, image, _):
        assert np.array_equal(image, images.pop((video.name, i)))

    for rank in range(world):
        part = share_out(counts, rank, world)
        reports.append(
            evaluate_recordings(
                restorer(settings),
                [videos[n] for n, _ in part],
                clips=[clips for _, clips in part],
                on_frame=compare,
            )
        )
    assert images == {}  # every frame came once
    assert merge_reports(reports).to_json() == report.to_json()


def test_a_part_runs_only_the_clips_that_reach_into_it():
    model = Recurrent()
    found = Restorer(model, TileSettings(4, 0, 2, 0), Normalization(0.0, 1.0), "cpu")
    frames = [i for i, _ in found.restore(Video(11), range(2, 4))]
    assert frames == [4, 5, 6]
    assert model.clips == 3  # clips 2 and 3, and clip 1 for frames 4 and 5
