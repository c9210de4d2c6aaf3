"""The pyramid over voxel grids."""

import pytest
import torch

from src.models.spike_encoder3d import SMALL_MAP, Conv3x3x3, ResidualBlock3D, SpikeEncoder3D


def test_a_block_by_hand():
    """With kernels that only see the centre: ReLU(x + b * ReLU(a * x))."""
    block = ResidualBlock3D(1)
    for conv, factor in ((block.conv1, 2.0), (block.conv2, -0.25)):
        conv.weight.data.zero_()
        conv.weight.data[0, 0, 1, 1, 1] = factor
        conv.bias.data.zero_()
    x = torch.tensor([4.0, -3.0]).view(1, 1, 1, 1, 2)
    assert block(x).flatten().tolist() == [2.0, 0.0]  # relu(4 - 0.25 * 8), relu(-3 - 0)


@pytest.mark.parametrize("stride", [1, (1, 2, 2), (2, 1, 2)])
def test_small_maps_frame_by_frame_equal_the_3d_convolution(stride, monkeypatch):
    torch.manual_seed(0)
    conv = Conv3x3x3(3, 4, stride=stride).double()
    x = torch.randn(2, 3, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    assert SMALL_MAP > 2 * 3 * 5 * 6
    wanted = torch.nn.functional.conv3d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    weight, ran = torch.randn_like(wanted), []
    per_frame = conv.per_frame
    monkeypatch.setattr(conv, "per_frame", lambda x: ran.append(1) or per_frame(x))
    inputs = (x, conv.weight, conv.bias)
    results = [(y, *torch.autograd.grad((y * weight).sum(), inputs)) for y in (conv(x), wanted)]
    assert ran == [1]
    for ours, twin in zip(*results, strict=True):
        assert torch.allclose(ours, twin, rtol=0, atol=1e-12)


def test_each_bin_and_frame_goes_where_it_belongs():
    """[B, T, K, H, W] is read as K channels over T frames.

    Scale 0 has five convolutions, so a pixel of frame 6 reaches frames 1 and up, not frame 0.
    """
    torch.manual_seed(0)
    encoder = SpikeEncoder3D(2, [4] * 4)
    x = torch.rand(1, 7, 2, 5, 5)
    changed = x.clone()
    changed[:, 6, 0] += 1
    difference = (encoder(x)[0] != encoder(changed)[0]).any(1)[0].flatten(1).any(1)
    assert difference.tolist() == [False] + [True] * 6


def test_refusals():
    with pytest.raises(ValueError, match=r"shape \[1, 2, 4, 8, 8\].*K=3"):
        SpikeEncoder3D(3, [4] * 4)(torch.zeros(1, 2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"TEMPORAL_STRIDES is \[1, 1\]; 4 scales need 3"):
        SpikeEncoder3D(3, [4] * 4, temporal_strides=[1, 1])
    with pytest.raises(ValueError, match="SPATIAL_STRIDES is 0; it must be at least 1"):
        SpikeEncoder3D(3, [4] * 4, spatial_strides=[2, 0, 2])
    with pytest.raises(ValueError, match="in_bins is 0; it must be at least 1"):
        SpikeEncoder3D(0, [4] * 4)
