"""Multi-head attention over a handful of frames, for very many pixels at once.

General attention kernels are made for few long sequences. Two exact forms are kept here;
`benchmarks/temporal_attention.py` compares them with others.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.autograd.function import once_differentiable

# The pixels-last form costs one vector product per pair of frames; beyond this many frames the
# matrix kernels of `scaled_dot_product_attention` win on a CPU.
MAX_PIXELS_LAST_FRAMES = 12
# Some CUDA attention kernels put batch x heads into a grid axis that ends here.
MAX_KERNEL_BATCH = 65535


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
        self, query: torch.Tensor, source: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Let each pixel of `query` attend to the same pixel of `source` at all times.

        Args:
            query: [B, Tq, P, C].
            source: keys and values, [B, Tk, P, C]; may be the same tensor.
            bias: constant that is added to the scores, [heads, Tq, Tk].

        Returns:
            [B, Tq, P, C].
        """
        if self._is_vector_form_best(query, source):
            return self._pixels_last(query, source, bias)
        return self._fused_kernel(query, source, bias)

    def _is_vector_form_best(self, query: torch.Tensor, source: torch.Tensor) -> bool:
        """Short sequences in full precision on a CPU; it has no dropout."""
        return (
            query.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and query.dtype in (torch.float32, torch.float64)
            and max(query.shape[1], source.shape[1]) <= MAX_PIXELS_LAST_FRAMES
            and not (self.training and self.dropout)
        )

    def _project(self, query: torch.Tensor, source: torch.Tensor, apply: Callable) -> tuple:
        """Return query, key and value; one product when both come from the same tokens."""
        if query is source:
            return apply(query, self.in_proj_weight, self.in_proj_bias, 3)
        channels = query.shape[-1]
        weights = self.in_proj_weight.split([channels, 2 * channels])
        biases = self.in_proj_bias.split([channels, 2 * channels])
        return (
            *apply(query, weights[0], biases[0], 1),
            *apply(source, weights[1], biases[1], 2),
        )

    def _pixels_last(
        self, query: torch.Tensor, source: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, frames, pixels, channels = query.shape

        def project(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, n: int) -> list:
            flat = torch.addmm(bias[:, None], weight, tokens.reshape(-1, channels).t())
            shape = (n, self.heads, channels // self.heads, batch, tokens.shape[1], pixels)
            return list(flat.view(shape).unbind(0))

        query, key, value = self._project(query, source, project)
        scale = (channels // self.heads) ** -0.5
        attended = PixelsLastAttention.apply(query, key, value, scale, bias)
        attended = self.out_proj(attended.view(channels, -1).t())
        return attended.view(batch, frames, pixels, channels)

    def _fused_kernel(
        self, query: torch.Tensor, source: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, _, pixels, _ = query.shape

        def project(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, n: int) -> list:
            flat = F.linear(tokens, weight, bias)
            pattern = "b t p (n heads d) -> n (b p) heads t d"
            return list(rearrange(flat, pattern, n=n, heads=self.heads).unbind(0))

        query, key, value = self._project(query, source, project)
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
