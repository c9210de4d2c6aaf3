"""Attention in chunks: the same result as at once, within the limits of memory."""

import itertools
import logging

import pytest
import torch

from src.models.fusion.cross_attn_temporal import (
    TemporalCrossAttnFuse,
)
from src.models.spike_temporal_sa import TemporalSelfAttentionBlock
from src.utils.attention import ChunkSettings, plan_chunks, set_recomputation
from tests.attention_cases import (
    CHANNELS,
    HEADS,
    random_maps,
    twin_block,
    with_random_weights,
)

CHUNKINGS = [
    ChunkSettings(max_batch_tokens=tokens, chunk_shape=shape)
    for tokens, shape in [(1, "square"), (60, "square"), (60, "wide"), (60, "tall"), (500, "wide")]
] + [
    ChunkSettings(adaptive_chunk=False, chunk_size=side, chunk_shape=shape)
    for side, shape in [(1, "wide"), (4, "square"), (4, "tall"), (64, "square")]
]


@pytest.mark.parametrize("chunks", CHUNKINGS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_blocks_equal_their_twins_however_chunked(chunks, memory_format):
    settings = {"heads": HEADS, "chunk_cfg": chunks}
    rgb, spike = (
        m.contiguous(memory_format=memory_format).transpose(1, 2)
        for m in random_maps((2, CHANNELS, 4, 7, 9), (2, CHANNELS, 2, 7, 9), dtype=torch.float64)
    )
    attend = with_random_weights(TemporalSelfAttentionBlock(CHANNELS, **settings)).double()
    fuse = with_random_weights(TemporalCrossAttnFuse(CHANNELS, **settings)).double()
    with torch.no_grad():
        torch.testing.assert_close(attend(rgb), twin_block(attend, rgb), rtol=0, atol=1e-12)
        fused = fuse(rgb, spike)
        torch.testing.assert_close(fused, twin_block(fuse, rgb, spike), rtol=0, atol=1e-12)
    assert fused.stride() == rgb.stride()


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=2)))
def test_gradients_do_not_depend_on_chunks_or_recomputation(flags):
    rgb, spike = random_maps((1, 3, CHANNELS, 6, 5), (1, 3, CHANNELS, 6, 5), dtype=torch.float64)
    rgb.requires_grad_()

    def gradients(chunk_cfg=None, attn=False, ffn=False):
        block = with_random_weights(TemporalCrossAttnFuse(CHANNELS, HEADS, chunk_cfg=chunk_cfg))
        set_recomputation(block.double(), attn=attn, ffn=ffn)
        out = block(rgb, spike).square().sum()
        return torch.autograd.grad(out, [rgb, *block.parameters()])

    chunked = gradients({"max_batch_tokens": 21}, *flags)
    for got, want in zip(chunked, gradients(), strict=True):
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
    (x,) = random_maps((1, 5, CHANNELS, 16, 16))
    chunks = {"max_batch_tokens": 5 * 16}
    block = TemporalSelfAttentionBlock(CHANNELS, HEADS, chunk_cfg=chunks)
    parameters = sum(p.numel() for p in block.parameters())
    kept = {}
    for flag in (False, True):
        set_recomputation(block, attn=flag, ffn=flag)
        kept[flag] = saved_elements(block, x)
    assert kept[True] <= x.numel() + parameters
    assert kept[False] > 10 * x.numel()


@pytest.mark.parametrize("adaptive", [True, False])
def test_no_chunk_is_larger_than_the_limit(adaptive):
    """Counted where the work is done: the tokens that the attention branch gets at a time."""
    chunks = ChunkSettings(adaptive, max_batch_tokens=100, chunk_size=4)
    block = TemporalCrossAttnFuse(CHANNELS, HEADS, chunk_cfg=chunks)
    rgb, spike = random_maps((2, 2, CHANNELS, 13, 11), (2, 5, CHANNELS, 13, 11))
    seen = []
    block.attn.register_forward_hook(
        lambda _, inputs, out: seen.append(inputs[0].shape[0] * inputs[0].shape[2])
    )
    block(rgb, spike)
    assert sum(seen) == 2 * 13 * 11
    assert max(seen) * 5 <= 100, "the longer of the two sequences counts"
    assert len(seen) < 40


def test_chunk_sizes_by_hand():
    """49152 tokens of 5 frames are 9830 pixels: a square of 99, or 49 rows of 198 and more."""
    default = ChunkSettings()
    assert plan_chunks((1, 64, 64), 5, default) == ([1], [64], [64])
    assert plan_chunks((5, 64, 64), 5, default) == ([2, 2, 1], [64], [64])
    assert plan_chunks((1, 256, 256), 5, default) == ([1], [86, 86, 84], [86, 86, 84])
    wide = plan_chunks((1, 256, 256), 5, ChunkSettings(chunk_shape="wide"))
    assert wide == ([1], [43] * 5 + [41], [128, 128])
    tall = ChunkSettings(adaptive_chunk=False, chunk_shape="tall")
    assert plan_chunks((2, 256, 256), 5, tall) == ([1, 1], [128] * 2, [32] * 8)


def test_settings_refuse_what_cannot_be():
    for bad, message in [
        ({"chunk_shape": "round"}, "CHUNK_SHAPE is 'round'"),
        ({"max_batch_tokens": 0}, "MAX_BATCH_TOKENS is 0"),
        ({"chunk_size": 0}, "CHUNK_SIZE is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ChunkSettings(**bad)
    for bad, message in [
        ({"heads": 0}, "HEADS is 0"),
        ({"dropout": 1.0}, "DROPOUT is 1.0"),
        ({"mlp_ratio": 0.0}, "MLP_RATIO is 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            TemporalSelfAttentionBlock(CHANNELS, **bad)


def test_chosen_chunks_are_logged_once_per_shape(caplog):
    block = TemporalSelfAttentionBlock(CHANNELS, HEADS, chunk_cfg={"MAX_BATCH_TOKENS": 60})
    with caplog.at_level(logging.INFO, "src.utils.attention"):
        for height in (13, 13, 14):
            block(torch.zeros(1, 3, CHANNELS, height, 11))
    assert [message.split(":")[0] for message in caplog.messages] == [
        f"attention over time on {height} x 11 pixels, 1 clips of 3 frames" for height in (13, 14)
    ]
