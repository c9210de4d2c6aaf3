"""Sizes that VRT cannot take."""

import pytest
import torch

from src.models.integrate_vrt import SizeRule, pad_clip, pad_spikes, size_rule_of
from tests.model_cases import build_look_alike, build_tiny_vrt


def test_the_last_frame_is_repeated_and_pixels_are_mirrored():
    clip = torch.arange(6.0).view(1, 2, 1, 1, 3)
    padded = pad_clip(clip, (3, 2, 5))
    assert padded[0, 0, 0].tolist() == [[0, 1, 2, 1, 0]] * 2
    assert padded[0, 2, 0].tolist() == padded[0, 1, 0].tolist() == [[3, 4, 5, 4, 3]] * 2
    assert pad_clip(clip, (2, 1, 3)) is clip


def test_spikes_are_continued_over_the_same_scene_region():
    """A spike pixel covers 2 x 2 RGB pixels before and after."""
    small = torch.rand(1, 2, 4, 5, 3)
    rgb = small.repeat_interleave(2, 3).repeat_interleave(2, 4)
    extent = (3, 16, 8)
    spikes = pad_spikes(small, (10, 6), extent)
    assert spikes.shape == (1, 3, 4, 8, 4)
    padded = pad_clip(rgb, extent)
    # The mirror repeats no border pixel, so the two agree up to that one pixel's shift.
    assert torch.equal(spikes[:, :, :, :5, :3], padded[:, :, :, :10:2, :6:2])
    assert torch.equal(spikes[..., 5, :], spikes[..., 3, :])
    assert pad_spikes(small, (11, 6), (2, 16, 8)).shape[-2:] == (7, 4)  # 5 * 16 / 11 = 7.3


@pytest.mark.parametrize(
    ("rule", "given", "want"),
    [
        (SizeRule(), (1, 10, 65), (2, 64, 72)),
        (SizeRule(), (5, 720, 1280), (5, 720, 1280)),
        (SizeRule(1, 1), (1, 1, 9), (1, 8, 16)),
    ],
)
def test_padded_extent(rule, given, want):
    assert rule.padded(*given) == want


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_size": [2, 4, 4]},
        {"pa_frames": 4},
        {"pa_frames": 6, "embed_dims": [12] * 9, "deformable_groups": 6},
        {"mul_attn_ratio": 0.0},
        {"depths": [2, 2, 2, 1, 2, 2, 2, 1, 1]},  # stage 4 has no mutual block, 3 and 5 have
    ],
)
def test_the_rule_read_off_the_shapes_is_the_one_that_our_vrt_states(changes):
    vrt = build_tiny_vrt(**changes)
    rule = size_rule_of(vrt)
    assert rule.min_frames == vrt.min_frames
    assert (max(rule.min_size_px, 8),) * 2 == tuple(max(side, 8) for side in vrt.min_size)
    assert rule.multiple_px == 8


def test_the_rule_of_an_unequal_window_takes_its_longer_side():
    assert size_rule_of(build_tiny_vrt(window_size=[2, 2, 6])).min_size_px == 48


def test_the_rule_of_the_look_alike():
    assert size_rule_of(build_look_alike()) == SizeRule(2, 16)
