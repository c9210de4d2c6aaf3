"""Attention over a handful of frames for every pixel alone, in spatial chunks to bound memory.

General attention kernels are made for few long sequences. Two exact forms are kept here;
`benchmarks/temporal_attention.py` compares them with others.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)
# Rows and columns of a chunk relative to its side; the area is the same for all three.
CHUNK_SHAPES = {"square": (1.0, 1.0), "wide": (0.5, 2.0), "tall": (2.0, 0.5)}
# The pixels-last form costs one vector product per pair of frames; beyond this many frames the
# matrix kernels of `scaled_dot_product_attention` win on a CPU.
MAX_PIXELS_LAST_FRAMES = 12
# Some CUDA attention kernels put batch x heads into a grid axis that ends here.
MAX_KERNEL_BATCH = 65535


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
        """Return settings as they are, from a mapping with the keys of the YAML, or defaults."""
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
    """Check that an argument is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; a whole number is needed{hint}")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1{hint}")


def require_ints(name: str, value: Any) -> list[int]:
    """Return a list or tuple of whole numbers above 0 as a list."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; a list of whole numbers is needed, one per scale")
    for number in value:
        require_int(f"an entry of {name}", number)
    return list(value)


def require_number(name: str, value: Any) -> None:
    """Check that an argument is a number."""
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

    `extent` is batch, height and width of the map, `num_frames` the tokens per pixel.
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

    A subclass has `attend(tokens, *contexts)`, the attention branch, and `transform(tokens)`, the
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

    def run_chunks(self, x: torch.Tensor, *contexts: torch.Tensor) -> torch.Tensor:
        """Return x + attention, then + MLP, for maps [B, T, C, H, W] of one size H, W.

        Inside they are views [B, C, T, H, W], the layout of convolutions; nothing is copied. The
        result lies in memory as `x` does, so that what follows computes the same bits.
        """
        for features in (x, *contexts):
            if features.ndim != 5 or features.shape[2] != self.dim or len(features) != len(x):
                raise ValueError(
                    f"features have shape {list(features.shape)}; [B={len(x)}, T, C={self.dim}, "
                    "H, W] is needed"
                )
        x, *contexts = (features.transpose(1, 2) for features in (x, *contexts))
        frames = max(part.shape[2] for part in (x, *contexts))
        extent = (x.shape[0], x.shape[3], x.shape[4])
        plan = plan_chunks(extent, frames, self.chunks)
        if not torch.compiler.is_compiling():
            log_chunks(extent, frames, *map(max, plan))
        cuts = [(axis, n) for axis, n in zip((0, 3, 4), plan, strict=True) if len(n) > 1]
        out = self._run_pieces((x, *contexts), cuts)
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
        attn, ffn = self.use_checkpoint_attn, self.use_checkpoint_ffn
        if attn and ffn:
            return self._recompute(True, self._chunk, *maps)
        return self._chunk(*maps, attn=attn, ffn=ffn)

    def _chunk(self, *maps: torch.Tensor, attn: bool = False, ffn: bool = False) -> torch.Tensor:
        height = maps[0].shape[3]
        tokens, *contexts = (rearrange(m, "b c t h w -> b t (h w) c") for m in maps)
        tokens = tokens + self._recompute(attn, self.attend, tokens, *contexts)
        tokens = tokens + self._recompute(ffn, self.transform, tokens)
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


# ---------------------------------------------------------------- attention over time


class PixelsLastAttention(torch.autograd.Function):
    """Softmax attention with pixels in the last, contiguous axis: products of long vectors only.

    No matrix kernel is called, and the backward pass accumulates in place, so nothing larger than
    the attention weights is kept beside the inputs.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from `query` [heads, d, B, Tq, P] to `key`, `value` [heads, d, B, Tk, P].

        `bias` [heads, Tq, Tk] is added to the scores; it gets no gradient.
        """
        num_heads, width, batch, query_frames, pixels = query.shape
        key_frames = key.shape[3]
        scores = query.new_zeros(num_heads, batch, query_frames, key_frames, pixels)
        if bias is not None:
            scores += bias[:, None, :, :, None]
        for c in range(width):
            scores.addcmul_(query[:, c, :, :, None], key[:, c, :, None], value=scale)
        weights = torch.softmax(scores, 3)
        attended = torch.zeros_like(query, memory_format=torch.contiguous_format)
        for j in range(key_frames):
            attended.addcmul_(weights[:, None, :, :, j], value[:, :, :, j : j + 1])
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return attended

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        """Return the gradients of query, key and value."""
        query, key, value, weights = ctx.saved_tensors
        grad_weights = torch.zeros_like(weights)
        for c in range(query.shape[1]):
            grad_weights.addcmul_(grad[:, c, :, :, None], value[:, c, :, None])
        mean = (weights * grad_weights).sum(3, keepdim=True)
        grad_scores = grad_weights.sub_(mean).mul_(weights).mul_(ctx.scale)
        grad_query, grad_key, grad_value = (
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)
        )
        for i in range(query.shape[3]):
            grad_value.addcmul_(weights[:, None, :, i], grad[:, :, :, i : i + 1])
            grad_key.addcmul_(grad_scores[:, None, :, i], query[:, :, :, i : i + 1])
        for j in range(key.shape[3]):
            grad_query.addcmul_(grad_scores[:, None, :, :, j], key[:, :, :, j : j + 1])
        return grad_query, grad_key, grad_value, None, None


def time_bias(num_heads: int, query_frames: int, key_frames: int, slope: float) -> torch.Tensor:
    """Return what attention scores lose with distance in time, float32 [heads, Tq, Tk].

    -slope_h * |t_query - t_key|, in frames of the query, with slopes slope, slope/4, slope/16, ...
    (linear biases as in ALiBi, Press et al., arXiv 2108.12409, for both directions). Without it
    attention cannot tell frames apart: exchanging two of the keys changes nothing. Where the
    lengths differ, both are spread over the same time, frame centres on frame centres.
    """
    slopes = slope * 0.25 ** torch.arange(num_heads)
    key_times = (torch.arange(key_frames) + 0.5) * (query_frames / key_frames) - 0.5
    distance = (torch.arange(query_frames)[:, None] - key_times[None]).abs()
    return -slopes[:, None, None] * distance


class TemporalAttention(nn.Module):
    """Multi-head attention over time with the parameters of `nn.MultiheadAttention`.

    A state dict of `nn.MultiheadAttention(channels, heads)` loads strictly.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"HEADS is {heads}; it must divide the {channels} channels")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: torch.Tensor, context: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Let each pixel of `query` [B, Tq, P, C] attend to that of `context` [B, Tk, P, C].

        Both may be the same tensor. `bias` [heads, Tq, Tk] is a constant added to the scores.
        """
        if self._is_vector_form_best(query, context):
            return self._pixels_last(query, context, bias)
        return self._fused_kernel(query, context, bias)

    def _is_vector_form_best(self, query: torch.Tensor, context: torch.Tensor) -> bool:
        """Short sequences in full precision on a CPU; it has no dropout."""
        return (
            query.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and query.dtype in (torch.float32, torch.float64)
            and max(query.shape[1], context.shape[1]) <= MAX_PIXELS_LAST_FRAMES
            and not (self.training and self.dropout)
        )

    def _project(self, query: torch.Tensor, context: torch.Tensor, apply: Callable) -> tuple:
        """Return query, key and value; one product when both come from the same tokens."""
        if query is context:
            return apply(query, self.in_proj_weight, self.in_proj_bias, 3)
        channels = query.shape[-1]
        weights = self.in_proj_weight.split([channels, 2 * channels])
        biases = self.in_proj_bias.split([channels, 2 * channels])
        return (
            *apply(query, weights[0], biases[0], 1),
            *apply(context, weights[1], biases[1], 2),
        )

    def _pixels_last(
        self, query: torch.Tensor, context: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, frames, pixels, channels = query.shape

        def project(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, n: int) -> list:
            flat = torch.addmm(bias[:, None], weight, tokens.reshape(-1, channels).t())
            shape = (n, self.heads, channels // self.heads, batch, tokens.shape[1], pixels)
            return list(flat.view(shape).unbind(0))

        query, key, value = self._project(query, context, project)
        scale = (channels // self.heads) ** -0.5
        attended = PixelsLastAttention.apply(query, key, value, scale, bias)
        attended = self.out_proj(attended.view(channels, -1).t())
        return attended.view(batch, frames, pixels, channels)

    def _fused_kernel(
        self, query: torch.Tensor, context: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, _, pixels, _ = query.shape

        def project(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, n: int) -> list:
            flat = F.linear(tokens, weight, bias)
            pattern = "b t p (n heads d) -> n (b p) heads t d"
            return list(rearrange(flat, pattern, n=n, heads=self.heads).unbind(0))

        query, key, value = self._project(query, context, project)
        limit = max(1, MAX_KERNEL_BATCH // self.heads)
        dropout = self.dropout if self.training else 0.0
        mask = None if bias is None else bias.to(query.dtype)[None]
        parts = [
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
            for q, k, v in zip(
                query.split(limit), key.split(limit), value.split(limit), strict=True
            )
        ]
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.out_proj(
            rearrange(attended, "(b p) heads t d -> b t p (heads d)", b=batch, p=pixels)
        )


def feed_forward(channels: int, ratio: float, dropout: float = 0.0) -> nn.Sequential:
    """Return linear, GELU, linear, dropout on the last axis; the hidden width is C * ratio."""
    hidden = max(1, int(channels * ratio))
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels), nn.Dropout(dropout)
    )
