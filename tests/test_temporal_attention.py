"""The temporal attentions against nn.MultiheadAttention, form by form and by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from src.models.fusion.cross_attn_temporal import (
    MultiScaleTemporalCrossAttnFuse,
    TemporalCrossAttnFuse,
    resize_frames,
)
from src.models.spike_temporal_sa import TemporalSelfAttentionBlock
from src.utils import attention
from src.utils.attention import PixelsLastAttention, TemporalAttention, set_recomputation, time_bias
from tests.attention_cases import (
    CHANNELS,
    HEADS,
    random_maps,
    twin_attention,
    twin_block,
    with_random_weights,
)

FORMS = ("_pixels_last", "_fused_kernel")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frames", [(5, 5), (4, 2), (1, 3)])
@pytest.mark.parametrize("slope", [0.0, 2.0])
def test_both_forms_equal_multihead_attention(form, frames, slope):
    module = with_random_weights(TemporalAttention(CHANNELS, HEADS)).double()
    query, source = random_maps(
        (2, frames[0], 6, CHANNELS), (2, frames[1], 6, CHANNELS), dtype=torch.float64
    )
    query.requires_grad_()
    bias = time_bias(HEADS, *frames, slope).double() if slope else None
    got = getattr(module, form)(query, source, bias)
    want = twin_attention(module, query, source, bias)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), query)[0] for out in (got, want)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_gradients_of_the_vector_form():
    shapes = [(2, 3, 2, 2, 4), (2, 3, 2, 3, 4), (2, 3, 2, 3, 4)]
    inputs = [x.requires_grad_() for x in random_maps(*shapes, dtype=torch.float64)]
    assert torch.autograd.gradcheck(PixelsLastAttention.apply, (*inputs, 0.7))


def test_time_bias_by_hand():
    assert time_bias(2, 2, 2, 8.0).tolist() == [[[0, -8], [-8, 0]], [[0, -2], [-2, 0]]]
    # four keys in the time of two frames: centres at -0.25, 0.25, 0.75, 1.25
    assert time_bias(1, 2, 4, 4.0)[0].tolist() == [[-1, -1, -3, -5], [-5, -3, -1, -1]]


def test_the_order_of_spike_frames_matters_only_with_a_time_slope():
    x, spikes = random_maps((1, 3, CHANNELS, 2, 2), (1, 3, CHANNELS, 2, 2))
    for slope, matters in ((0.0, False), (8.0, True)):
        fuse = with_random_weights(TemporalCrossAttnFuse(CHANNELS, time_slope=slope))
        same = torch.allclose(fuse(x, spikes), fuse(x, spikes.flip(1)), atol=1e-5)
        assert same is not matters


def test_which_form_runs(monkeypatch):
    """Precision on a CPU and short clips take the vector form; all others the fused kernel."""
    called = []
    for form in FORMS:
        monkeypatch.setattr(
            TemporalAttention,
            form,
            lambda self, query, source, bias, form=form: called.append(form) or query,
        )
    module = TemporalAttention(CHANNELS, HEADS, dropout=0.5)
    short, long = random_maps((1, 5, 2, CHANNELS), (1, 13, 2, CHANNELS))
    module.eval()(short, short)
    module(long, long)
    module.train()(short, short)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.eval()(short, short)
    assert called == [FORMS[0], FORMS[1], FORMS[1], FORMS[1]]


def test_long_pixel_lists_are_split_for_the_kernel(monkeypatch):
    module = with_random_weights(TemporalAttention(CHANNELS, HEADS))
    (x,) = random_maps((2, 3, 5, CHANNELS))
    whole = module._fused_kernel(x, x)
    monkeypatch.setattr(attention, "MAX_KERNEL_BATCH", 6)  # three pixels at a time
    seen = []
    kernel = F.scaled_dot_product_attention

    def watch(query, *rest, **settings):
        seen.append(query.shape[0] * query.shape[1])
        return kernel(query, *rest, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    torch.testing.assert_close(module._fused_kernel(x, x), whole)
    assert seen == [6, 6, 6, 2]


def test_parameters_are_those_of_multihead_attention():
    own = TemporalAttention(CHANNELS, HEADS).state_dict()
    theirs = nn.MultiheadAttention(CHANNELS, HEADS).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in theirs.items()}
    with pytest.raises(ValueError, match="HEADS is 3; it must divide the 8 channels"):
        TemporalAttention(8, 3)


def test_under_autocast_the_block_is_as_close_as_its_twin():
    block = with_random_weights(TemporalSelfAttentionBlock(CHANNELS, HEADS))
    (x,) = random_maps((1, 5, CHANNELS, 4, 4))
    with torch.no_grad():
        exact = block(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, twin = block(x), twin_block(block, x)
    assert rough.dtype == torch.float32
    error = (twin - exact).abs().max()
    assert 0 < (rough - exact).abs().max() <= 2 * error


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout(recompute):
    """Without dropout no random number is drawn; with it, recomputation repeats the same draw."""
    (x,) = random_maps((1, 3, CHANNELS, 4, 4))
    before = torch.get_rng_state()
    block = with_random_weights(TemporalSelfAttentionBlock(CHANNELS, HEADS))
    set_recomputation(block, attn=recompute, ffn=recompute)
    torch.set_rng_state(before)
    block(x).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)

    dropping = TemporalSelfAttentionBlock(CHANNELS, HEADS, dropout=0.5)
    set_recomputation(dropping, attn=recompute, ffn=recompute)
    dropping.load_state_dict(block.state_dict())
    torch.manual_seed(5)
    out = dropping(x)
    gradient = torch.autograd.grad(out.sum(), dropping.mlp[0].weight)[0]
    assert not torch.allclose(out, block(x))
    plain = TemporalSelfAttentionBlock(CHANNELS, HEADS, dropout=0.5)
    plain.load_state_dict(block.state_dict())
    torch.manual_seed(5)
    want = torch.autograd.grad(plain(x).sum(), plain.mlp[0].weight)[0]
    torch.testing.assert_close(gradient, want)
    torch.testing.assert_close(dropping.eval()(x), block(x))


def test_resize_by_hand():
    frame = torch.tensor([[0.0, 2.0], [4.0, 6.0]]).view(1, 1, 1, 2, 2)
    want = torch.tensor([0.0, 0.5, 1.5, 2.0])
    got = resize_frames(frame.expand(1, 3, 1, 2, 2), (4, 4))
    torch.testing.assert_close(got[0, 2, 0], want[None] + 2 * want[:, None])
    assert resize_frames(frame, (2, 2)) is frame


def test_multi_scale_fusion_starts_as_the_identity_for_any_frames_and_sizes():
    fuse = MultiScaleTemporalCrossAttnFuse([8, 4], heads=2)
    rgb = random_maps((1, 5, 8, 6, 8), (1, 5, 4, 3, 4))
    spike = random_maps((1, 3, 8, 3, 4), (1, 2, 4, 3, 4))
    assert all(torch.equal(x, y) for x, y in zip(fuse(rgb, spike), rgb, strict=True))
    woken = with_random_weights(fuse)(rgb, spike)
    assert all(
        x.shape == y.shape and not torch.allclose(x, y) for x, y in zip(woken, rgb, strict=True)
    )
    with pytest.raises(ValueError, match="1 RGB and 2 spike maps for 2 scales"):
        fuse(rgb[:1], spike)
    with pytest.raises(ValueError, match=r"\[1, 2, 4, 6, 8\]; \[B=1, T, C=8, H, W\] is needed"):
        fuse.fuse_blocks[0](rgb[0], spike[1])
    with pytest.raises(ValueError, match=r"\[B=1, T, C=8, H, W\] is needed"):
        fuse.fuse_blocks[0](rgb[0], spike[0].repeat(2, 1, 1, 1, 1))
