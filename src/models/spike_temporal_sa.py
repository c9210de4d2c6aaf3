"""Self-attention over time on spike features."""

from collections.abc import Sequence

import torch
from torch import nn

from src.utils.attention import (
    BaseChunkableAttention,
    ChunkConfig,
    TemporalAttention,
    feed_forward,
    require_ints,
)


class TemporalSelfAttentionBlock(BaseChunkableAttention):
    """Per pixel, over time: x + MHA(LN x), then x + MLP(LN x). No position code.

    Args:
        dim: C, channels of the features.
        heads: number of heads; must divide `dim`.
        dropout: probability, on attention weights and after the MLP.
        mlp_ratio: hidden width of the MLP is `int(dim * mlp_ratio)`.
        chunk_cfg: how pixels are cut into chunks, see `ChunkSettings.of`.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        dropout: float = 0.0,
        mlp_ratio: float = 2,
        chunk_cfg: ChunkConfig = None,
    ) -> None:
        super().__init__(dim, heads, dropout, mlp_ratio, chunk_cfg)
        self.ln1 = nn.LayerNorm(dim)
        self.attn = TemporalAttention(dim, heads, dropout)
        self.ln2 = nn.LayerNorm(dim)
        self.mlp = feed_forward(dim, mlp_ratio, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, T, C, H, W] to the same shape and memory layout."""
        return self.run_chunks(x)

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the attention branch of tokens [b, t, p, C]."""
        normed = self.ln1(tokens)
        return self.attn(normed, normed)

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the MLP branch of tokens [b, t, p, C]."""
        return self.mlp(self.ln2(tokens))


class SpikeTemporalSA(nn.Module):
    """One `TemporalSelfAttentionBlock` per scale of the spike pyramid, in `blocks`."""

    def __init__(
        self,
        channels_per_scale: Sequence[int],
        heads: int = 4,
        dropout: float = 0.0,
        mlp_ratio: float = 2,
        chunk_cfg: ChunkConfig = None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            TemporalSelfAttentionBlock(dim, heads, dropout, mlp_ratio, chunk_cfg)
            for dim in require_ints("channels_per_scale", channels_per_scale)
        )

    def forward(self, feats: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map one [B, C, T, h, w] per scale to the same shapes."""
        if len(feats) != len(self.blocks):
            raise ValueError(f"{len(feats)} spike maps for {len(self.blocks)} scales")
        return [
            block(x.transpose(1, 2)).transpose(1, 2)
            for block, x in zip(self.blocks, feats, strict=True)
        ]
