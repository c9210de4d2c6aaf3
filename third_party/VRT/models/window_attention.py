"""Self and mutual attention within windows (SPEC section 5), for windows that are given."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from third_party.VRT.models.attention import Masks, attend_windows
from third_party.VRT.models.windows import BLOCKED, Segment, Size, WindowPlan


def relative_position_index(window: Size) -> Tensor:
    """Number the displacement of each pair of tokens, `[N, N]` int64 (query, key)."""
    axes = [torch.arange(side) for side in window]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)  # [3, N]
    displacement = position[:, :, None] - position[:, None, :]
    index = torch.zeros_like(displacement[0])
    for axis, side in enumerate(window):
        index = index * (2 * side - 1) + displacement[axis] + side - 1
    return index


def position_code(height: int, width: int, dim: int) -> Tensor:
    """Return the sine code of a spatial window, `[1, height * width, dim]` float32.

    The first half of the channels codes the row, the second the column. `dim` is divisible by 4.
    """
    half = dim // 2
    channel = torch.arange(half)
    period = 10000 ** (2 * (channel // 2).float() / half)

    def code(length: int) -> Tensor:
        angle = torch.arange(1, length + 1).float() / (length + 1e-6) * (2 * math.pi)
        angle = angle[:, None] / period
        return torch.where(channel % 2 == 0, angle.sin(), angle.cos())

    rows = code(height)[:, None].expand(height, width, half)
    columns = code(width)[None].expand(height, width, half)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1)[None]


@dataclass(frozen=True)
class PreparedAttention:
    """What the windows of one call share: joined weights and what is added to the logits.

    Attributes:
        weight: joined projections to q, k, v, `[3 * width or 6 * width, C]`.
        bias: their bias `[N or 1, 3 * width or 6 * width]`, or None.
        proj_weight: output projection `[C, width or 2 * width]`.
        relative: learned logits of self attention `[1, heads, N, N]`.
        masks: fixed logits by mask kind.
        head_dim: channels per head, padding included.
    """

    weight: Tensor
    bias: Tensor | None
    proj_weight: Tensor
    relative: Tensor
    masks: Masks
    head_dim: int


class WindowAttention(nn.Module):
    """Self attention of windows, beside it (optionally) mutual attention of their two frames.

    Args:
        dim: channels C.
        window: nominal window (frames, rows, columns).
        num_heads: heads.
        qkv_bias: whether the projections to q, k, v have a bias.
        qk_scale: factor of the logits; the usual one if None or 0.
        is_mutual: whether there is a mutual part; the window is then two frames deep.

    Raises:
        ValueError: a mutual part was asked for with another depth.
    """

    def __init__(
        self,
        dim: int,
        window: Size,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        is_mutual: bool = False,
    ) -> None:
        super().__init__()
        if is_mutual and window[0] != 2:
            raise ValueError(f"mutual attention is between 2 frames; the window has {window[0]}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = qk_scale if qk_scale else self.head_dim**-0.5
        self.is_mutual = is_mutual
        num_displacements = math.prod(2 * side - 1 for side in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_displacements, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv_self = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(2 * dim if is_mutual else dim, dim)
        if is_mutual:
            self.register_buffer("position_bias", position_code(window[1], window[2], dim))
            self.qkv_mut = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def relative_bias(self, num_tokens: int) -> Tensor:
        """Look the bias of each pair of tokens up, `[1, heads, N, N]`.

        A window that shrank uses the top left corner of the index, as published.
        """
        index = self.relative_position_index[:num_tokens, :num_tokens].reshape(-1)
        bias = F.embedding(index, self.relative_position_bias_table)
        # torch 2.4 has no fused kernel for a bias with strides; later ones are 8% slower with them.
        return bias.t().contiguous().view(1, self.num_heads, num_tokens, num_tokens)

    def prepare(self, plan: WindowPlan, head_multiple: int = 1) -> PreparedAttention:
        """Join the projections and look the logits up, once for all windows of a call.

        Args:
            plan: the windows.
            head_multiple: heads are widened by zeros to a multiple of this; fused kernels of a GPU
                want 8. The widening is in the weights, so it costs no pass over the features.
        """
        head_dim = -(-self.head_dim // head_multiple) * head_multiple
        weight, bias = self._joined_projections(plan.num_tokens)
        proj = self.proj.weight
        extra = head_dim - self.head_dim
        if extra:
            dim = self.num_heads * self.head_dim
            weight = F.pad(weight.view(-1, self.head_dim, dim), (0, 0, 0, extra)).view(-1, dim)
            proj = F.pad(proj.view(dim, -1, self.head_dim), (0, extra)).view(dim, -1)
            if bias is not None:
                bias = F.pad(bias.view(len(bias), -1, self.head_dim), (0, extra)).flatten(1)
        relative = self.relative_bias(plan.num_tokens)
        masks: Masks = {
            kind: None
            if blocked is None
            else torch.zeros_like(blocked, dtype=relative.dtype).masked_fill_(blocked, BLOCKED)
            for kind, blocked in plan.blocked.items()
        }
        return PreparedAttention(weight, bias, proj, relative, masks, head_dim)

    def _joined_projections(self, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """Join qkv_self and qkv_mut; the position code of the latter becomes a bias."""
        if not self.is_mutual:
            bias = self.qkv_self.bias
            return self.qkv_self.weight, None if bias is None else bias[None]
        weight = torch.cat((self.qkv_self.weight, self.qkv_mut.weight))
        coded = F.linear(self.position_bias[0], self.qkv_mut.weight, self.qkv_mut.bias)
        coded = coded.repeat(2, 1)  # both frames have the same code
        plain = self.qkv_self.bias
        plain = torch.zeros_like(coded) if plain is None else plain.expand_as(coded)
        return weight, torch.cat((plain, coded), dim=1)

    def forward(
        self, x: Tensor, prepared: PreparedAttention, segments: tuple[Segment, ...]
    ) -> Tensor:
        """Attend within windows `[M, N, C]`, whose masks `segments` tell; returns `[M, N, C]`."""
        num, num_tokens = x.shape[:2]
        if prepared.bias is None or len(prepared.bias) == 1:
            bias = None if prepared.bias is None else prepared.bias[0]
            qkv = F.linear(x, prepared.weight, bias)
        else:
            qkv = F.linear(x, prepared.weight).add_(prepared.bias)
        # [M, N, 1 or 2 kinds, q k v, heads, d]
        qkv = qkv.view(num, num_tokens, -1, 3, self.num_heads, prepared.head_dim)
        heads = attend_windows(qkv, prepared.relative, prepared.masks, segments, self.scale)
        return F.linear(heads, prepared.proj_weight, self.proj.bias)
