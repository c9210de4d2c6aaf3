"""Sizes that VRT's architecture cannot take."""

import pytest
import torch
import yaml

from src.paths import REPO_ROOT
from tests.vrt_cases import golden_net, largest_difference, small_net, smallest_net, smooth_clip
from third_party.VRT.models.network_vrt import VRT


def test_smallest_sizes_of_networks():
    net = golden_net("deblur_pa2")
    assert (net.min_frames, net.min_size) == (2, (64, 64))
    # Stage 4 has one block only, none of them mutual: stages 3 and 5 decide.
    net = small_net(depths=[2, 2, 2, 1, 1, 1, 2, 2])
    assert (net.min_frames, net.min_size) == (2, (16, 16))
    assert small_net(depths=[1] * 8).min_frames == 1
    assert small_net(depths=[1] * 8, pa_frames=4).min_frames == 3
    assert small_net(pa_frames=6, embed_dims=[12] * 8, deformable_groups=6).min_frames == 4


@pytest.mark.parametrize(("height", "width"), [(1, 33), (7, 2), (9, 8), (16, 19)])
def test_any_size_comes_back(height, width):
    net = smallest_net()
    for frames in (1, 2, 3):
        x = smooth_clip(frames, height, width)
        with torch.no_grad():
            y = net(x)
        assert y.shape == x.shape
        assert y.isfinite().all()


def test_padded_result_is_that_of_the_padded_clip():
    net = smallest_net()
    x = smooth_clip(1, 13, 18)
    by_hand = torch.cat((x, x), dim=1)
    by_hand = torch.cat((by_hand, by_hand[..., 9:12, :].flip(-2)), dim=-2)
    by_hand = torch.cat((by_hand, by_hand[..., 11:17].flip(-1)), dim=-1)
    with torch.no_grad():
        wanted = net(by_hand)[:, :1, :, :13, :18]
        assert largest_difference(net(x), wanted) == 0.0


@pytest.mark.parametrize(("frames", "height", "width"), [(2, 11, 9), (1, 8, 8)])
def test_other_networks_take_any_size(frames, height, width):
    x = smooth_clip(frames, height, width)
    with torch.no_grad():
        assert smallest_net(upscale=2)(x).shape == (1, frames, 3, 2 * height, 2 * width)
        noisy = torch.cat((x, x[:, :, :1]), dim=2)
        assert smallest_net(nonblind_denoising=True)(noisy).shape == x.shape
        if frames > 1:
            net = smallest_net(pa_frames=0, img_size=[frames, 8, 8])
            assert net(x).shape == (1, 1, 3, height, width)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 4, 16, 16), r"shape \[1, 2, 4, 16, 16\]; it needs \[B, T, 3, H, W\]"),
        ((2, 3, 16, 16), "it needs"),
        ((1, 0, 3, 16, 16), "empty clip"),
    ],
)
def test_clips_that_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        smallest_net()(torch.zeros(shape))


def test_half_precision_outside_autocast_is_refused():
    with pytest.raises(ValueError, match=r"float16.*torch\.autocast"):
        smallest_net()(torch.zeros(1, 2, 3, 16, 16, dtype=torch.float16))
    with pytest.raises(ValueError, match="use torch.autocast"):
        smallest_net().bfloat16()(torch.zeros(1, 2, 3, 16, 16, dtype=torch.bfloat16))


def test_interpolation_needs_its_number_of_frames():
    with pytest.raises(ValueError, match=r"takes 4 frames \(img_size\[0\]\), it was given 3"):
        golden_net("vfi_pa0")(smooth_clip(3, 64, 64))


@torch.no_grad()
def test_the_shipped_small_network_takes_one_frame():
    """It has no mutual blocks, so one frame is no padding case: its neighbours are just zero."""
    options = REPO_ROOT / "configs/vrt/vrt_tiny.yaml"
    net = VRT(**yaml.safe_load(options.read_text())).eval()
    assert net.min_frames == 1
    clip = smooth_clip(1, 32, 40)
    seen = []
    net.conv_first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    restored = net(clip)
    given = seen[0].reshape(27, 32, 40)  # the frame, what lies ahead, what lies behind
    assert torch.equal(given[:3], clip[0, 0])
    assert not given[3:].any()
    assert restored.shape == clip.shape
    # Without neighbours clips cannot mix: two in a batch are the two alone.
    other = smooth_clip(1, 32, 40).flip(-1)
    both = net(torch.cat((clip, other)))
    torch.testing.assert_close(both, torch.cat((restored, net(other))), rtol=0, atol=1e-5)
