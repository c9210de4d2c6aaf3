"""Self-attention over time on spike features."""

import torch
from torch import nn

from src.models.temporal_attention import TemporalAttention, TemporalMLP
from src.utils.attention import AttentionSettings, BaseChunkableAttention


class SpikeTemporalSA(BaseChunkableAttention):
    """Per pixel, over time: x + MHA(LN x), then x + MLP(LN x). No position code."""

    def __init__(self, channels: int, settings: AttentionSettings | None = None) -> None:
        super().__init__(settings)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = TemporalAttention(channels, self.settings.heads, self.settings.dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = TemporalMLP(channels, self.settings.mlp_ratio, self.settings.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, T, H, W] to the same shape."""
        return self.run_chunks(x)

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the attention branch of tokens [b, t, p, C]."""
        normed = self.norm1(tokens)
        return self.attn(normed, normed)

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the MLP branch of tokens [b, t, p, C]."""
        return self.mlp(self.norm2(tokens))
