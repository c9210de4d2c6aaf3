"""Temporal attention written down slowly: nn.MultiheadAttention on one list of pixels."""

import itertools

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

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
    heads, frames = block.heads, (x.shape[1], source.shape[1])
    bias = torch.zeros(heads, *frames, dtype=torch.float64)
    for h, i, j in itertools.product(range(heads), *map(range, frames)):
        distance = abs((i + 0.5) / frames[0] - (j + 0.5) / frames[1]) * frames[0]
        bias[h, i, j] = -block.time_slope / 4**h * distance
    return bias


def twin_mlp(layers, x):
    hidden = F.gelu(x @ layers[0].weight.t() + layers[0].bias)
    return hidden @ layers[2].weight.t() + layers[2].bias


def twin_block(block, x, source=None):
    """The block written down for one long list of pixel sequences, nothing chunked."""
    tokens = rearrange(x, "b t c h w -> b t (h w) c")
    if source is None:
        normed = block.ln1(tokens)
        tokens = tokens + twin_attention(block.attn, normed, normed)
        tokens = tokens + twin_mlp(block.mlp, block.ln2(tokens))
    else:
        other = rearrange(source, "b t c h w -> b t (h w) c")
        tokens = tokens + twin_attention(
            block.attn, block.ln_q(tokens), block.ln_kv(other), twin_bias(block, x, source)
        )
        tokens = tokens + twin_mlp(block.ffn, block.ln_ffn(tokens))
    return rearrange(tokens, "b t (h w) c -> b t c h w", h=x.shape[3])
