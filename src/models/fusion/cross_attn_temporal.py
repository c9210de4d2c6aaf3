"""Cross-attention over time: RGB features ask, spike features answer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from src.models.temporal_attention import TemporalAttention, TemporalMLP, time_bias
from src.utils.attention import AttentionSettings, BaseChunkableAttention

TIME_SLOPE = 8.0


class TemporalCrossAttnFuse(BaseChunkableAttention):
    """Per pixel, over time: X = Fr + MHA(LN Fr, LN Fs), out = X + MLP(LN X).

    The last projections of both branches start at zero, so a new block returns Fr. Therefore only
    they have a nonzero gradient in the first step; everything before them follows in the second.

    Args:
        channels: C of both features.
        settings: heads, MLP and chunks.
        time_slope: how strongly the first head prefers the spikes of its own frame, see
            `time_bias`; 0: no preference, the order of the spike frames then has no influence.
    """

    def __init__(
        self,
        channels: int,
        settings: AttentionSettings | None = None,
        time_slope: float = TIME_SLOPE,
    ) -> None:
        super().__init__(settings)
        self.time_slope = time_slope
        self.norm_rgb = nn.LayerNorm(channels)
        self.norm_spike = nn.LayerNorm(channels)
        self.attn = TemporalAttention(channels, self.settings.heads, self.settings.dropout)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = TemporalMLP(channels, self.settings.mlp_ratio, self.settings.dropout)
        for last in (self.attn.out_proj, self.mlp.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, rgb: torch.Tensor, spike: torch.Tensor) -> torch.Tensor:
        """Fuse spike features into RGB features.

        Args:
            rgb: [B, C, Tq, H, W].
            spike: [B, C, Tk, Hs, Ws]; resized per frame where Hs, Ws are not H, W.

        Returns:
            [B, C, Tq, H, W], in memory like `rgb`.

        Raises:
            ValueError: batch or channels differ.
        """
        if rgb.shape[:2] != spike.shape[:2]:
            raise ValueError(
                f"RGB features {list(rgb.shape)} and spike features {list(spike.shape)} "
                "differ in batch or channels"
            )
        return self.run_chunks(rgb, resize_frames(spike, rgb.shape[-2:]))

    def attend(self, tokens: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Return the attention branch of RGB tokens [b, tq, p, C], spike tokens [b, tk, p, C]."""
        bias = None
        if self.time_slope:
            frames = tokens.shape[1], source.shape[1]
            bias = time_bias(self.settings.heads, *frames, self.time_slope).to(tokens)
        return self.attn(self.norm_rgb(tokens), self.norm_spike(source), bias)

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the MLP branch of tokens [b, tq, p, C]."""
        return self.mlp(self.norm_mlp(tokens))


class MultiScaleTemporalCrossAttnFuse(nn.Module):
    """One `TemporalCrossAttnFuse` per scale."""

    def __init__(
        self,
        channels_per_scale: Sequence[int],
        settings: AttentionSettings | None = None,
        time_slope: float = TIME_SLOPE,
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            TemporalCrossAttnFuse(channels, settings, time_slope) for channels in channels_per_scale
        )

    def forward(
        self, rgb: Sequence[torch.Tensor], spike: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Fuse maps scale by scale; shapes as in `TemporalCrossAttnFuse`.

        Raises:
            ValueError: the number of maps is not the number of scales.
        """
        if not len(rgb) == len(spike) == len(self.scales):
            raise ValueError(
                f"{len(rgb)} RGB and {len(spike)} spike maps for {len(self.scales)} scales"
            )
        return [fuse(r, s) for fuse, r, s in zip(self.scales, rgb, spike, strict=True)]


def resize_frames(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize each frame of [B, C, T, H, W] to `size`, bilinearly, pixel centres kept.

    Returns `x` itself where the size fits already.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    frames = rearrange(x, "b c t h w -> (b t) c h w")
    frames = F.interpolate(frames, size=tuple(size), mode="bilinear", align_corners=False)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
