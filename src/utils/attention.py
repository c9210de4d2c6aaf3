"""Attention blocks that treat every pixel alone, run in spatial chunks to bound memory."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)
# Rows and columns of a chunk relative to its side; the area is the same for all three.
CHUNK_SHAPES = {"square": (1.0, 1.0), "wide": (0.5, 2.0), "tall": (2.0, 0.5)}


@dataclass(frozen=True)
class ChunkSettings:
    """How the pixels of a map are cut into chunks; the fields are the keys of the YAML section.

    Attributes:
        adaptive_chunk: take the largest chunk with at most `max_batch_tokens` tokens; otherwise a
            chunk has the area of a square of `chunk_size`, one clip of the batch at a time.
        max_batch_tokens: tokens (pixels x frames) of one chunk.
        chunk_size: side of a square chunk in pixels.
        chunk_shape: "square", "wide" (half as high, twice as wide) or "tall".
    """

    adaptive_chunk: bool = True
    max_batch_tokens: int = 49152
    chunk_size: int = 64
    chunk_shape: str = "square"

    def __post_init__(self) -> None:
        if not isinstance(self.adaptive_chunk, bool):
            raise TypeError(f"ADAPTIVE_CHUNK is {self.adaptive_chunk!r}; true or false is needed")
        require_int("MAX_BATCH_TOKENS", self.max_batch_tokens)
        require_int("CHUNK_SIZE", self.chunk_size)
        if self.chunk_shape not in CHUNK_SHAPES:
            raise ValueError(
                f"CHUNK_SHAPE is {self.chunk_shape!r}; write one of {list(CHUNK_SHAPES)}"
            )

    @classmethod
    def of(cls, chunk_cfg: "ChunkConfig") -> "ChunkSettings":
        """Return the settings that a `chunk_cfg` describes.

        Args:
            chunk_cfg: settings, a mapping with the keys of the YAML section in any case, or None
                for the defaults.

        Raises:
            ValueError: an unknown key or an impossible value.
            TypeError: something else than a mapping.
        """
        if isinstance(chunk_cfg, cls):
            return chunk_cfg
        if chunk_cfg is None:
            return cls()
        if not isinstance(chunk_cfg, Mapping):
            raise TypeError(f"chunk_cfg is {chunk_cfg!r}; a dict or ChunkSettings is needed")
        known = [field.name for field in fields(cls)]
        given = {str(key).lower(): value for key, value in chunk_cfg.items()}
        for name in given:
            if name not in known:
                names = ", ".join(name.upper() for name in known)
                raise ValueError(f"chunk_cfg has an unknown key {name.upper()!r}; it takes {names}")
        return cls(**given)


ChunkConfig = ChunkSettings | Mapping[str, Any] | None


def require_int(name: str, value: Any, hint: str = "") -> None:
    """Check that an argument is a whole number above 0.

    Raises:
        TypeError: it is something else, a list for example.
        ValueError: it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; a whole number is needed{hint}")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1{hint}")


def require_ints(name: str, value: Any) -> list[int]:
    """Return a list or tuple of whole numbers above 0 as a list.

    Raises:
        TypeError: it is something else.
        ValueError: a number below 1.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; a list of whole numbers is needed, one per scale")
    for number in value:
        require_int(f"an entry of {name}", number)
    return list(value)


def require_number(name: str, value: Any) -> None:
    """Check that an argument is a number.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}; a number is needed")


@lru_cache(maxsize=256)
def log_chunks(extent: tuple[int, int, int], frames: int, *chunk: int) -> None:
    """Log once per shape of the maps into which chunks they are cut."""
    batch, height, width = extent
    logger.info(
        "attention over time on %d x %d pixels, %d clips of %d frames: chunks of %d clips, %d x %d",
        *(height, width, batch, frames, *chunk),
    )


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
    row_factor, column_factor = CHUNK_SHAPES[settings.chunk_shape]
    if settings.adaptive_chunk:
        area = max(1, settings.max_batch_tokens // num_frames)
        if height * width <= area:
            return _cut(batch, area // (height * width)), _cut(height, height), _cut(width, width)
        rows = min(height, max(1, int(math.isqrt(area) * row_factor)))
        columns = min(width, area // rows)
        rows = min(height, area // columns)
    else:
        rows = max(1, int(settings.chunk_size * row_factor))
        columns = max(1, int(settings.chunk_size * column_factor))
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

    Attributes:
        use_checkpoint_attn: recompute the attention of a chunk in the backward pass.
        use_checkpoint_ffn: recompute the MLP of a chunk in the backward pass.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        dropout: float = 0.0,
        mlp_ratio: float = 2,
        chunk_cfg: ChunkConfig = None,
    ) -> None:
        super().__init__()
        require_int("dim", dim, " (the multi-scale modules take one width per scale)")
        require_int("HEADS", heads)
        if dim % heads:
            raise ValueError(f"HEADS is {heads}; it must divide the {dim} channels")
        require_number("DROPOUT", dropout)
        require_number("MLP_RATIO", mlp_ratio)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"DROPOUT is {dropout}; it must lie in [0, 1)")
        if mlp_ratio <= 0:
            raise ValueError(f"MLP_RATIO is {mlp_ratio}; it must be above 0")
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.chunks = ChunkSettings.of(chunk_cfg)
        self.use_checkpoint_attn = self.use_checkpoint_ffn = False

    def attend(self, tokens: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        """Return the attention branch, [b, t, p, C]."""
        raise NotImplementedError

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the MLP branch, [b, t, p, C]."""
        raise NotImplementedError

    def run_chunks(self, x: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        """Return x + attention, then + MLP, for maps [B, T, C, H, W] of one size H, W.

        Inside they are views [B, C, T, H, W], the layout of convolutions; nothing is copied. The
        result lies in memory as `x` does, so that what follows computes the same bits.

        Raises:
            ValueError: another shape, or maps of different batch size.
        """
        for features in (x, *sources):
            if features.ndim != 5 or features.shape[2] != self.dim or len(features) != len(x):
                raise ValueError(
                    f"features have shape {list(features.shape)}; [B={len(x)}, T, C={self.dim}, "
                    "H, W] is needed"
                )
        x, *sources = (features.transpose(1, 2) for features in (x, *sources))
        frames = max(part.shape[2] for part in (x, *sources))
        extent = (x.shape[0], x.shape[3], x.shape[4])
        plan = plan_chunks(extent, frames, self.chunks)
        if not torch.compiler.is_compiling():
            log_chunks(extent, frames, *map(max, plan))
        cuts = [(axis, n) for axis, n in zip((0, 3, 4), plan, strict=True) if len(n) > 1]
        out = self._run_pieces((x, *sources), cuts)
        if out.stride() != x.stride():
            out = torch.empty_like(x, dtype=out.dtype).copy_(out)
        return out.transpose(1, 2)

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
        both = self.use_checkpoint_attn and self.use_checkpoint_ffn
        return self._recompute(both, self._chunk, *maps)

    def _chunk(self, *maps: torch.Tensor) -> torch.Tensor:
        both = self.use_checkpoint_attn and self.use_checkpoint_ffn
        height = maps[0].shape[3]
        tokens, *sources = (rearrange(m, "b c t h w -> b t (h w) c") for m in maps)
        attn_alone = self.use_checkpoint_attn and not both
        tokens = tokens + self._recompute(attn_alone, self.attend, tokens, *sources)
        ffn_alone = self.use_checkpoint_ffn and not both
        tokens = tokens + self._recompute(ffn_alone, self.transform, tokens)
        return rearrange(tokens, "b t (h w) c -> b c t h w", h=height)

    def _recompute(self, is_wanted: bool, function: Callable, *maps: torch.Tensor) -> torch.Tensor:
        if not (is_wanted and torch.is_grad_enabled()):
            return function(*maps)
        draws = self.training and self.dropout > 0
        return checkpoint(function, *maps, use_reentrant=False, preserve_rng_state=draws)


def set_recomputation(model: nn.Module, *, attn: bool, ffn: bool) -> None:
    """Choose for every chunked attention in a model what its backward pass computes again."""
    for module in model.modules():
        if isinstance(module, BaseChunkableAttention):
            module.use_checkpoint_attn, module.use_checkpoint_ffn = attn, ffn
