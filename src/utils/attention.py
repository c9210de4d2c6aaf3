"""Attention blocks that treat every pixel alone, run in spatial chunks to bound memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

# Rows and columns of a chunk relative to its side; the area is the same for all three.
CHUNK_SHAPES = {"square": (1.0, 1.0), "wide": (0.5, 2.0), "tall": (2.0, 0.5)}


@dataclass(frozen=True)
class ChunkSettings:
    """How the pixels of a map are cut into chunks.

    Attributes:
        adaptive: take the largest chunk with at most `max_batch_tokens` tokens; otherwise a chunk
            has the area of a square of `chunk_size_px`, one clip of the batch at a time.
        max_batch_tokens: tokens (pixels x frames) of one chunk.
        chunk_size_px: side of a square chunk.
        shape: "square", "wide" (half as high, twice as wide) or "tall".
    """

    adaptive: bool = True
    max_batch_tokens: int = 49152
    chunk_size_px: int = 64
    shape: str = "square"

    def __post_init__(self) -> None:
        if self.shape not in CHUNK_SHAPES:
            raise ValueError(f"CHUNK_SHAPE is {self.shape!r}; write one of {list(CHUNK_SHAPES)}")
        if self.max_batch_tokens < 1:
            raise ValueError(f"MAX_BATCH_TOKENS is {self.max_batch_tokens}; it must be at least 1")
        if self.chunk_size_px < 1:
            raise ValueError(f"CHUNK_SIZE is {self.chunk_size_px}; it must be at least 1 pixel")


@dataclass(frozen=True)
class AttentionSettings:
    """One temporal attention block: attention over time, then a two-layer MLP.

    Attributes:
        heads: number of heads; must divide the channels.
        dropout: probability, on attention weights and after the MLP.
        mlp_ratio: hidden width of the MLP = `int(channels * mlp_ratio)`.
        chunks: how pixels are cut into chunks.
        use_checkpoint_attn: recompute the attention of a chunk in the backward pass.
        use_checkpoint_ffn: recompute the MLP of a chunk in the backward pass.
    """

    heads: int = 4
    dropout: float = 0.0
    mlp_ratio: float = 2.0
    chunks: ChunkSettings = field(default_factory=ChunkSettings)
    use_checkpoint_attn: bool = False
    use_checkpoint_ffn: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"HEADS is {self.heads}; it must be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"DROPOUT is {self.dropout}; it must lie in [0, 1)")
        if self.mlp_ratio <= 0:
            raise ValueError(f"MLP_RATIO is {self.mlp_ratio}; it must be above 0")


def plan_chunks(
    extent: tuple[int, int, int], num_frames: int, settings: ChunkSettings
) -> tuple[list[int], list[int], list[int]]:
    """Return the sizes into which batch, rows and columns are split; the products are the chunks.

    Args:
        extent: batch, height and width of the map.
        num_frames: tokens per pixel.
        settings: the limits.
    """
    batch, height, width = extent
    row_factor, column_factor = CHUNK_SHAPES[settings.shape]
    if settings.adaptive:
        area = max(1, settings.max_batch_tokens // num_frames)
        if height * width <= area:
            return _cut(batch, area // (height * width)), _cut(height, height), _cut(width, width)
        rows = min(height, max(1, int(math.isqrt(area) * row_factor)))
        columns = min(width, area // rows)
        rows = min(height, area // columns)
    else:
        rows = max(1, int(settings.chunk_size_px * row_factor))
        columns = max(1, int(settings.chunk_size_px * column_factor))
    return _cut(batch, 1), _cut(height, rows), _cut(width, columns)


def _cut(length: int, limit: int) -> list[int]:
    """Cut `length` into the fewest nearly equal sizes of at most `limit`."""
    size = math.ceil(length / math.ceil(length / limit))
    return [min(size, length - start) for start in range(0, length, size)]


class BaseChunkableAttention(nn.Module):
    """A block that treats every pixel alone and may therefore run in spatial chunks.

    A subclass writes `attend(tokens, *sources)`, the attention branch, and `transform(tokens)`, the
    MLP branch, both on tokens [b, t, p, C]; both are added to the tokens. Peak memory follows the
    chunk, not the frame, in the backward pass too when both recomputations are on.
    """

    def __init__(self, settings: AttentionSettings | None = None) -> None:
        super().__init__()
        self.settings = AttentionSettings() if settings is None else settings

    def attend(self, tokens: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        """Return the attention branch, [b, t, p, C]."""
        raise NotImplementedError

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the MLP branch, [b, t, p, C]."""
        raise NotImplementedError

    def run_chunks(self, x: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        """Return x + attention, then + MLP, for maps [B, C, T, H, W] of one size H, W.

        The result lies in memory as `x` does, so that what follows computes the same bits.
        """
        frames = max(part.shape[2] for part in (x, *sources))
        extent = (x.shape[0], x.shape[3], x.shape[4])
        plan = plan_chunks(extent, frames, self.settings.chunks)
        cuts = [(axis, n) for axis, n in zip((0, 3, 4), plan, strict=True) if len(n) > 1]
        out = self._run_pieces((x, *sources), cuts)
        if out.stride() == x.stride():
            return out
        return torch.empty_like(x, dtype=out.dtype).copy_(out)

    def _run_pieces(
        self, maps: tuple[torch.Tensor, ...], cuts: list[tuple[int, list[int]]]
    ) -> torch.Tensor:
        """Cut the maps along the first axis of `cuts`, run the pieces, put them together."""
        if not cuts:
            return self._run_chunk(*maps)
        (axis, sizes), *rest = cuts
        # One split, not many slices: the backward pass of each slice would fill a whole map.
        parts = zip(*(m.split(sizes, axis) for m in maps), strict=True)
        pieces = [self._run_pieces(part, rest) for part in parts]
        return torch.cat(pieces, axis)

    def _run_chunk(self, *maps: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        both = settings.use_checkpoint_attn and settings.use_checkpoint_ffn
        return self._recompute(both, self._chunk, *maps)

    def _chunk(self, *maps: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        both = settings.use_checkpoint_attn and settings.use_checkpoint_ffn
        height = maps[0].shape[3]
        tokens, *sources = (rearrange(m, "b c t h w -> b t (h w) c") for m in maps)
        attn_alone = settings.use_checkpoint_attn and not both
        tokens = tokens + self._recompute(attn_alone, self.attend, tokens, *sources)
        ffn_alone = settings.use_checkpoint_ffn and not both
        tokens = tokens + self._recompute(ffn_alone, self.transform, tokens)
        return rearrange(tokens, "b t (h w) c -> b c t h w", h=height)

    def _recompute(self, is_wanted: bool, function: Callable, *maps: torch.Tensor) -> torch.Tensor:
        if not (is_wanted and torch.is_grad_enabled()):
            return function(*maps)
        draws = self.training and self.settings.dropout > 0
        return checkpoint(function, *maps, use_reentrant=False, preserve_rng_state=draws)
