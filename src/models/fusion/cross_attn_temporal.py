"""Cross-attention over time: queries come from RGB features, keys and values from spikes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from src.utils.attention import (
    BaseChunkableAttention,
    ChunkConfig,
    TemporalAttention,
    feed_forward,
    require_ints,
    require_number,
    time_bias,
)

TIME_SLOPE = 8.0


class TemporalCrossAttnFuse(BaseChunkableAttention):
    """Per pixel, over time: X = Fr + MHA(LN Fr, LN Fs), out = X + FFN(LN X).

    The last projections of both branches start at zero, so a new block returns Fr. Therefore only
    they have a nonzero gradient in the first step; everything before them follows in the second.

    Args:
        dim: C, channels of both features.
        heads: number of heads; must divide `dim`.
        dropout: probability, on attention weights and after the FFN.
        mlp_ratio: hidden width of the FFN is `int(dim * mlp_ratio)`.
        chunk_cfg: how pixels are cut into chunks, see `ChunkSettings.of`.
        time_slope: how strongly the first head prefers the spikes of its own frame, see
            `time_bias`; 0: no preference, the order of the spike frames then has no influence.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        dropout: float = 0.0,
        mlp_ratio: float = 2,
        chunk_cfg: ChunkConfig = None,
        time_slope: float = TIME_SLOPE,
    ) -> None:
        super().__init__(dim, heads, dropout, mlp_ratio, chunk_cfg)
        require_number("TIME_SLOPE", time_slope)
        self.time_slope = time_slope
        self.ln_q = nn.LayerNorm(dim)
        self.ln_kv = nn.LayerNorm(dim)
        self.attn = TemporalAttention(dim, heads, dropout)
        self.ln_ffn = nn.LayerNorm(dim)
        self.ffn = feed_forward(dim, mlp_ratio, dropout)
        for last in (self.attn.out_proj, self.ffn[2]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, Fr: torch.Tensor, Fs: torch.Tensor) -> torch.Tensor:
        """Fuse spike features [B, Tk, C, h, w], resized per frame, into RGB [B, Tq, C, H, W].

        The result has the shape and the memory layout of `Fr`.
        """
        return self.run_chunks(Fr, resize_frames(Fs, Fr.shape[-2:]))

    def attend(self, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return the attention branch of RGB tokens [b, tq, p, C], spike tokens [b, tk, p, C]."""
        bias = None
        if self.time_slope:
            frames = tokens.shape[1], context.shape[1]
            bias = time_bias(self.heads, *frames, self.time_slope).to(tokens)
        return self.attn(self.ln_q(tokens), self.ln_kv(context), bias)

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the FFN branch of tokens [b, tq, p, C]."""
        return self.ffn(self.ln_ffn(tokens))


class MultiScaleTemporalCrossAttnFuse(nn.Module):
    """One `TemporalCrossAttnFuse` per scale, in `fuse_blocks`."""

    def __init__(
        self,
        channels_per_scale: Sequence[int] = (96, 96, 96, 96),
        heads: int = 4,
        dropout: float = 0.0,
        mlp_ratio: float = 2,
        chunk_cfg: ChunkConfig = None,
        time_slope: float = TIME_SLOPE,
    ) -> None:
        super().__init__()
        self.fuse_blocks = nn.ModuleList(
            TemporalCrossAttnFuse(dim, heads, dropout, mlp_ratio, chunk_cfg, time_slope)
            for dim in require_ints("channels_per_scale", channels_per_scale)
        )

    def forward(
        self, Fr_list: Sequence[torch.Tensor], Fs_list: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Fuse maps scale by scale; shapes as in `TemporalCrossAttnFuse`."""
        if not len(Fr_list) == len(Fs_list) == len(self.fuse_blocks):
            raise ValueError(
                f"{len(Fr_list)} RGB and {len(Fs_list)} spike maps for "
                f"{len(self.fuse_blocks)} scales"
            )
        maps = zip(self.fuse_blocks, Fr_list, Fs_list, strict=True)
        return [fuse(Fr, Fs) for fuse, Fr, Fs in maps]


def resize_frames(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize each frame of [B, T, C, H, W] to `size`, bilinearly, pixel centres kept.

    Returns `x` itself where the size fits already.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    frames = rearrange(x, "b t c h w -> (b t) c h w")
    frames = F.interpolate(frames, size=tuple(size), mode="bilinear", align_corners=False)
    return rearrange(frames, "(b t) c h w -> b t c h w", b=x.shape[0])
