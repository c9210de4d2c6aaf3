"""The temporal attentions against nn.MultiheadAttention, and their chunks against the whole map."""

import itertools

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from src.models import temporal_attention
from src.models.fusion.cross_attn_temporal import (
    MultiScaleTemporalCrossAttnFuse,
    TemporalCrossAttnFuse,
    resize_frames,
)
from src.models.spike_temporal_sa import SpikeTemporalSA
from src.models.temporal_attention import PixelsLastAttention, TemporalAttention, time_bias
from src.utils.attention import AttentionSettings, ChunkSettings, plan_chunks

CHANNELS, HEADS = 8, 2


def random_maps(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]


def with_random_weights(module, seed=1):
    """Replace zeros and ones of a new module, so that every parameter matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return module


def twin_attention(module, query, source, bias=None):
    """Run nn.MultiheadAttention with the same parameters on tokens [B, T, P, C]."""
    mha = nn.MultiheadAttention(query.shape[-1], module.heads, batch_first=True).to(query.dtype)
    mha.load_state_dict(module.state_dict())
    q, s = (rearrange(x, "b t p c -> (b p) t c") for x in (query, source))
    mask = None if bias is None else bias.to(q.dtype).repeat(len(q), 1, 1)
    out = mha(q, s, s, need_weights=False, attn_mask=mask)[0]
    return rearrange(out, "(b p) t c -> b t p c", b=query.shape[0])


def twin_bias(block, x, source):
    """-slope * distance in time, written with loops."""
    heads, frames = block.settings.heads, (x.shape[2], source.shape[2])
    bias = torch.zeros(heads, *frames, dtype=torch.float64)
    for h, i, j in itertools.product(range(heads), *map(range, frames)):
        distance = abs((i + 0.5) / frames[0] - (j + 0.5) / frames[1]) * frames[0]
        bias[h, i, j] = -block.time_slope / 4**h * distance
    return bias


def twin_block(block, x, source=None):
    """The block written down for one long list of pixel sequences, nothing chunked."""
    tokens = rearrange(x, "b c t h w -> b t (h w) c")
    if source is None:
        normed = block.norm1(tokens)
        tokens = tokens + twin_attention(block.attn, normed, normed)
        norm = block.norm2
    else:
        other = rearrange(source, "b c t h w -> b t (h w) c")
        tokens = tokens + twin_attention(
            block.attn, block.norm_rgb(tokens), block.norm_spike(other), twin_bias(block, x, source)
        )
        norm = block.norm_mlp
    tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(norm(tokens))))
    return rearrange(tokens, "b t (h w) c -> b c t h w", h=x.shape[3])


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
    x, spikes = random_maps((1, CHANNELS, 3, 2, 2), (1, CHANNELS, 3, 2, 2))
    for slope, matters in ((0.0, False), (8.0, True)):
        fuse = with_random_weights(TemporalCrossAttnFuse(CHANNELS, time_slope=slope))
        same = torch.allclose(fuse(x, spikes), fuse(x, spikes.flip(2)), atol=1e-5)
        assert same is not matters


def test_one_frame_returns_its_own_value_projection():
    """With a single key the weights are 1, whatever the scores: out = Wo (Wv x + bv) + bo."""
    module = with_random_weights(TemporalAttention(4, 2))
    (x,) = random_maps((1, 1, 3, 4))
    value = x @ module.in_proj_weight[8:].t() + module.in_proj_bias[8:]
    torch.testing.assert_close(module(x, x), module.out_proj(value))


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
    monkeypatch.setattr(temporal_attention, "MAX_KERNEL_BATCH", 6)  # three pixels at a time
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


CHUNKINGS = [
    ChunkSettings(max_batch_tokens=tokens, shape=shape)
    for tokens, shape in [(1, "square"), (60, "square"), (60, "wide"), (60, "tall"), (500, "wide")]
] + [
    ChunkSettings(adaptive=False, chunk_size_px=side, shape=shape)
    for side, shape in [(1, "wide"), (4, "square"), (4, "tall"), (64, "square")]
]


@pytest.mark.parametrize("chunks", CHUNKINGS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_blocks_equal_their_twins_however_chunked(chunks, memory_format):
    settings = AttentionSettings(heads=HEADS, chunks=chunks)
    rgb, spike = (
        m.contiguous(memory_format=memory_format)
        for m in random_maps((2, CHANNELS, 4, 7, 9), (2, CHANNELS, 2, 7, 9), dtype=torch.float64)
    )
    attend = with_random_weights(SpikeTemporalSA(CHANNELS, settings)).double()
    fuse = with_random_weights(TemporalCrossAttnFuse(CHANNELS, settings)).double()
    with torch.no_grad():
        torch.testing.assert_close(attend(rgb), twin_block(attend, rgb), rtol=0, atol=1e-12)
        fused = fuse(rgb, spike)
        torch.testing.assert_close(fused, twin_block(fuse, rgb, spike), rtol=0, atol=1e-12)
    assert fused.stride() == rgb.stride()


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=2)))
def test_gradients_do_not_depend_on_chunks_or_recomputation(flags):
    rgb, spike = random_maps((1, CHANNELS, 3, 6, 5), (1, CHANNELS, 3, 6, 5), dtype=torch.float64)
    rgb.requires_grad_()

    def gradients(settings):
        block = with_random_weights(TemporalCrossAttnFuse(CHANNELS, settings)).double()
        out = block(rgb, spike).square().sum()
        return torch.autograd.grad(out, [rgb, *block.parameters()])

    plain = gradients(AttentionSettings(heads=HEADS))
    chunked = gradients(
        AttentionSettings(
            heads=HEADS,
            chunks=ChunkSettings(max_batch_tokens=21),
            use_checkpoint_attn=flags[0],
            use_checkpoint_ffn=flags[1],
        )
    )
    for got, want in zip(chunked, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def saved_elements(block, x):
    """Count what autograd keeps for the backward pass; one storage counts once."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(x)
    assert out.requires_grad
    return sum(kept.values())


def test_recomputation_keeps_only_the_input_of_a_chunk():
    (x,) = random_maps((1, CHANNELS, 5, 16, 16))
    chunks = ChunkSettings(max_batch_tokens=5 * 16)
    parameters = sum(p.numel() for p in SpikeTemporalSA(CHANNELS).parameters())
    kept = {}
    for flag in (False, True):
        settings = AttentionSettings(
            heads=HEADS, chunks=chunks, use_checkpoint_attn=flag, use_checkpoint_ffn=flag
        )
        kept[flag] = saved_elements(SpikeTemporalSA(CHANNELS, settings), x)
    assert kept[True] <= x.numel() + parameters
    assert kept[False] > 10 * x.numel()


@pytest.mark.parametrize("adaptive", [True, False])
def test_no_chunk_is_larger_than_the_limit(adaptive):
    """Counted where the work is done: the tokens that the attention branch gets at a time."""
    chunks = ChunkSettings(adaptive, max_batch_tokens=100, chunk_size_px=4)
    block = TemporalCrossAttnFuse(CHANNELS, AttentionSettings(HEADS, chunks=chunks))
    rgb, spike = random_maps((2, CHANNELS, 2, 13, 11), (2, CHANNELS, 5, 13, 11))
    seen = []
    block.attn.register_forward_hook(
        lambda _, inputs, out: seen.append(inputs[0].shape[0] * inputs[0].shape[2])
    )
    block(rgb, spike)
    assert sum(seen) == 2 * 13 * 11
    assert max(seen) * 5 <= 100, "the longer of the two sequences counts"
    assert len(seen) < 40


def test_under_autocast_the_block_is_as_close_as_its_twin():
    block = with_random_weights(SpikeTemporalSA(CHANNELS, AttentionSettings(heads=HEADS)))
    (x,) = random_maps((1, CHANNELS, 5, 4, 4))
    with torch.no_grad():
        exact = block(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, twin = block(x), twin_block(block, x)
    assert rough.dtype == torch.float32
    error = (twin - exact).abs().max()
    assert 0 < (rough - exact).abs().max() <= 2 * error


def areas_of(extent, frames, settings):
    """Pixels of every chunk; the sizes of each axis must add up to its length."""
    plan = plan_chunks(extent, frames, settings)
    assert [sum(sizes) for sizes in plan] == list(extent)
    assert min(min(sizes) for sizes in plan) > 0
    return [b * y * x for b, y, x in itertools.product(*plan)]


@pytest.mark.parametrize("shape", ["square", "wide", "tall"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("extent", [(1, 30, 50), (3, 7, 5), (2, 1, 40)])
def test_chunks_cover_the_map_within_the_limit(shape, adaptive, extent):
    settings = ChunkSettings(adaptive, max_batch_tokens=300, chunk_size_px=8, shape=shape)
    areas = areas_of(extent, 5, settings)
    assert sum(areas) == extent[0] * extent[1] * extent[2]
    assert max(areas) <= (300 // 5 if adaptive else 64)


def test_chunk_sizes_by_hand():
    """49152 tokens of 5 frames are 9830 pixels: a square of 99, or 49 rows of 198 and more."""
    default = ChunkSettings()
    assert plan_chunks((1, 64, 64), 5, default) == ([1], [64], [64])
    assert plan_chunks((5, 64, 64), 5, default) == ([2, 2, 1], [64], [64])
    assert plan_chunks((1, 256, 256), 5, default) == ([1], [86, 86, 84], [86, 86, 84])
    wide = plan_chunks((1, 256, 256), 5, ChunkSettings(shape="wide"))
    assert wide == ([1], [43] * 5 + [41], [128, 128])
    tall = ChunkSettings(adaptive=False, shape="tall")
    assert plan_chunks((2, 256, 256), 5, tall) == ([1, 1], [128] * 2, [32] * 8)


def test_settings_refuse_what_cannot_be():
    for bad, message in [
        ({"shape": "round"}, "CHUNK_SHAPE is 'round'"),
        ({"max_batch_tokens": 0}, "MAX_BATCH_TOKENS is 0"),
        ({"chunk_size_px": 0}, "CHUNK_SIZE is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ChunkSettings(**bad)
    for bad, message in [
        ({"heads": 0}, "HEADS is 0"),
        ({"dropout": 1.0}, "DROPOUT is 1.0"),
        ({"mlp_ratio": 0.0}, "MLP_RATIO is 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            AttentionSettings(**bad)


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout(recompute):
    """Without dropout no random number is drawn; with it, recomputation repeats the same draw."""
    (x,) = random_maps((1, CHANNELS, 3, 4, 4))
    flags = {"use_checkpoint_attn": recompute, "use_checkpoint_ffn": recompute}
    before = torch.get_rng_state()
    block = with_random_weights(SpikeTemporalSA(CHANNELS, AttentionSettings(heads=HEADS, **flags)))
    torch.set_rng_state(before)
    block(x).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)

    dropping = SpikeTemporalSA(CHANNELS, AttentionSettings(HEADS, dropout=0.5, **flags))
    dropping.load_state_dict(block.state_dict())
    torch.manual_seed(5)
    out = dropping(x)
    gradient = torch.autograd.grad(out.sum(), dropping.mlp.fc1.weight)[0]
    assert not torch.allclose(out, block(x))
    plain = SpikeTemporalSA(CHANNELS, AttentionSettings(HEADS, dropout=0.5))
    plain.load_state_dict(block.state_dict())
    torch.manual_seed(5)
    want = torch.autograd.grad(plain(x).sum(), plain.mlp.fc1.weight)[0]
    torch.testing.assert_close(gradient, want)
    torch.testing.assert_close(dropping.eval()(x), block(x))


def test_pixels_do_not_see_each_other():
    block = with_random_weights(SpikeTemporalSA(CHANNELS, AttentionSettings(heads=HEADS)))
    (x,) = random_maps((1, CHANNELS, 3, 4, 4))
    other = x.clone()
    other[:, :, 2, 1, 2] += 1
    changed = (block(x) != block(other)).any(1)[0]
    assert changed[:, 1, 2].all(), "every frame of the pixel"
    changed[:, 1, 2] = False
    assert not changed.any()


def test_resize_by_hand():
    frame = torch.tensor([[0.0, 2.0], [4.0, 6.0]]).view(1, 1, 1, 2, 2)
    want = torch.tensor([0.0, 0.5, 1.5, 2.0])
    got = resize_frames(frame.expand(1, 1, 3, 2, 2), (4, 4))
    torch.testing.assert_close(got[0, 0, 2], want[None] + 2 * want[:, None])
    assert resize_frames(frame, (2, 2)) is frame


def test_multi_scale_fusion_starts_as_the_identity_for_any_frames_and_sizes():
    fuse = MultiScaleTemporalCrossAttnFuse([8, 4], AttentionSettings(heads=2))
    rgb = random_maps((1, 8, 5, 6, 8), (1, 4, 5, 3, 4))
    spike = random_maps((1, 8, 3, 3, 4), (1, 4, 2, 3, 4))
    assert all(torch.equal(x, y) for x, y in zip(fuse(rgb, spike), rgb, strict=True))
    woken = with_random_weights(fuse)(rgb, spike)
    assert all(
        x.shape == y.shape and not torch.allclose(x, y) for x, y in zip(woken, rgb, strict=True)
    )
    with pytest.raises(ValueError, match="1 RGB and 2 spike maps for 2 scales"):
        fuse(rgb[:1], spike)
    with pytest.raises(ValueError, match="differ in batch or channels"):
        fuse.scales[0](rgb[0], spike[1])
