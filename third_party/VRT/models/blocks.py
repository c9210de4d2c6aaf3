"""Attention blocks and groups of them (SPEC section 5), on channels-last features."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from third_party.VRT.models.chunks import WINDOW_ELEMENTS, pieces_of, recompute
from third_party.VRT.models.window_attention import PreparedAttention, WindowAttention
from third_party.VRT.models.windows import (
    Chunk,
    FromWindows,
    Size,
    ToWindows,
    WindowPlan,
    build_plan,
)

MAX_PLANS = 8  # sizes whose window order a group remembers
LEAST_WIDTH = 64  # what a token of a narrow network counts: its logits need room in the cache, too


class GatedMlp(nn.Module):
    """fc2(gelu(fc11(x)) * fc12(x)); `[..., C]` to `[..., C']`."""

    def __init__(self, dim: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc11 = nn.Linear(dim, hidden)
        self.fc12 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim_out)

    def joined(self) -> tuple[Tensor, Tensor] | None:
        """Join fc11 and fc12, so that both are one product; None without gradients."""
        if not torch.is_grad_enabled():
            return None
        weight = torch.cat((self.fc11.weight, self.fc12.weight))
        return weight, torch.cat((self.fc11.bias, self.fc12.bias))

    def forward(self, x: Tensor, joined: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Apply the MLP; in training `joined` is given where many pieces share it."""
        if not torch.is_grad_enabled():  # two products, whose results fit the cache better
            return self.fc2(F.gelu(self.fc11(x)).mul_(self.fc12(x)))
        gate, value = F.linear(x, *(joined or self.joined())).chunk(2, dim=-1)
        return self.fc2(F.gelu(gate) * value)


@dataclass(frozen=True)
class BlockSettings:
    """What the blocks of a group share.

    Attributes:
        num_heads: heads of the attention.
        window: nominal window (frames, rows, columns).
        is_mutual: whether there is mutual attention.
        mlp_ratio: hidden width of the MLP over the width of the block.
        qkv_bias: whether the projections to q, k, v have a bias.
        qk_scale: factor of the logits, or None for the usual one.
        norm_layer: class of the norms.
        recompute_attn: in training, drop the intermediates of the attention part.
        recompute_ffn: in training, drop those of the MLP part.
    """

    num_heads: int
    window: Size
    is_mutual: bool = False
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    norm_layer: type[nn.Module] = nn.LayerNorm
    recompute_attn: bool = False
    recompute_ffn: bool = False


@dataclass(frozen=True)
class PreparedBlock:
    """What the chunks of one call of a block share.

    Attributes:
        attention: see there.
        mlp: joined weight and bias of the MLP, or None.
        keep_attn: stochastic-depth factor of the attention part by batch item `[B]`, or None.
        keep_mlp: the same for the MLP part.
    """

    attention: PreparedAttention
    mlp: tuple[Tensor, Tensor] | None
    keep_attn: Tensor | None
    keep_mlp: Tensor | None


class Block(nn.Module):
    """Window attention and MLP, each with a norm before and a residual around.

    Args:
        dim: channels C.
        settings: see there.
        drop_path: probability of leaving a part out, per batch item, in training.
    """

    def __init__(self, dim: int, settings: BlockSettings, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.recompute_attn = settings.recompute_attn
        self.recompute_ffn = settings.recompute_ffn
        self.norm1 = settings.norm_layer(dim)
        self.attn = WindowAttention(
            dim,
            settings.window,
            settings.num_heads,
            qkv_bias=settings.qkv_bias,
            qk_scale=settings.qk_scale,
            is_mutual=settings.is_mutual,
        )
        self.norm2 = settings.norm_layer(dim)
        self.mlp = GatedMlp(dim, int(dim * settings.mlp_ratio), dim)

    def prepare(self, batch: int, plan: WindowPlan, like: Tensor) -> PreparedBlock:
        """Do what is done once per call: joined weights, logit biases, stochastic depth."""
        keeps = [None, None]
        if self.training and self.drop_path > 0.0:
            kept = 1.0 - self.drop_path
            keeps = [like.new_empty(batch).bernoulli_(kept).div_(kept) for _ in keeps]
        head_multiple = 8 if like.is_cuda else 1
        return PreparedBlock(self.attn.prepare(plan, head_multiple), self.mlp.joined(), *keeps)

    def run(self, tokens: Tensor, chunk: Chunk, prepared: PreparedBlock) -> Tensor:
        """Apply the block to the windows `[M, N, C]` of a chunk."""
        if not torch.is_grad_enabled() or not (self.recompute_attn or self.recompute_ffn):
            return self._both(tokens, chunk, prepared)
        if self.recompute_attn and self.recompute_ffn:
            return recompute(self._both, tokens, chunk, prepared)
        if self.recompute_attn:
            return self._mix(recompute(self._attend, tokens, chunk, prepared), chunk, prepared)
        return recompute(self._mix, self._attend(tokens, chunk, prepared), chunk, prepared)

    def _both(self, tokens: Tensor, chunk: Chunk, prepared: PreparedBlock) -> Tensor:
        return self._mix(self._attend(tokens, chunk, prepared), chunk, prepared)

    def _attend(self, tokens: Tensor, chunk: Chunk, prepared: PreparedBlock) -> Tensor:
        """Attention part with its residual. Padded tokens are zero after the norm."""
        normed = self.norm1(tokens)
        if chunk.padding is not None:
            normed = normed.masked_fill(chunk.padding, 0.0)
        change = self.attn(normed, prepared.attention, chunk.segments)
        return _add(tokens, change, prepared.keep_attn, chunk)

    def _mix(self, tokens: Tensor, chunk: Chunk, prepared: PreparedBlock) -> Tensor:
        """MLP part with its residual."""
        rows = self.norm2(tokens).flatten(0, 1)  # one axis that varies: easier to compile
        change = self.mlp(rows, prepared.mlp).view_as(tokens)
        return _add(tokens, change, prepared.keep_mlp, chunk)


def _add(tokens: Tensor, change: Tensor, keep: Tensor | None, chunk: Chunk) -> Tensor:
    """Add what a part computed; under autocast the sum stays in the precision of `tokens`."""
    change = change.to(tokens.dtype)
    if keep is not None:
        change = change * keep.index_select(0, chunk.clip)[:, None, None]
    return tokens + change if torch.is_grad_enabled() else change.add_(tokens)


class Group(nn.Module):
    """Blocks in a row, every second one with shifted windows; `[B, D, H, W, C]` in and out.

    Args:
        dim: channels C.
        depth: number of blocks; without any, the group is the identity.
        settings: what the blocks share.
        drop_path: rate of each block, `depth` or more of them.
    """

    def __init__(
        self, dim: int, depth: int, settings: BlockSettings, drop_path: list[float]
    ) -> None:
        super().__init__()
        self.window = settings.window
        self.blocks = nn.ModuleList(Block(dim, settings, drop_path[i]) for i in range(depth))
        self._plans: OrderedDict[tuple, WindowPlan] = OrderedDict()

    def __getstate__(self) -> dict:
        """Leave the remembered plans out of copies and pickles."""
        return {**self.__dict__, "_plans": OrderedDict()}

    def plan(self, x: Tensor, is_shifted: bool) -> WindowPlan:
        """Return the window order for features `[B, D, H, W, C]`."""
        batch, size = len(x), tuple(x.shape[1:4])
        key = (batch, size, is_shifted, x.device)
        if key not in self._plans:
            shift = tuple(side // 2 if is_shifted else 0 for side in self.window)
            tokens = pieces_of(WINDOW_ELEMENTS, x.device, max(x.shape[-1], LEAST_WIDTH))
            self._plans[key] = build_plan(batch, size, self.window, shift, tokens, x.device)
        self._plans.move_to_end(key)
        if len(self._plans) > MAX_PLANS:
            self._plans.popitem(last=False)
        return self._plans[key]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks."""
        if not self.blocks:
            return x
        plans = [self.plan(x, is_shifted) for is_shifted in (False, True)[: len(self.blocks)]]
        rows = x.reshape(-1, x.shape[-1])
        run = self._run_recorded if torch.is_grad_enabled() else self._run_in_place
        return run(rows, len(x), plans).view(x.shape)

    def _run_recorded(self, rows: Tensor, batch: int, plans: list[WindowPlan]) -> Tensor:
        """Apply the blocks with a graph for backward."""
        for i, block in enumerate(self.blocks):
            plan = plans[i % 2]
            prepared = block.prepare(batch, plan, rows)
            tokens = ToWindows.apply(rows, plan).view(-1, plan.num_tokens, rows.shape[-1])
            parts = tokens.split([len(chunk.clip) for chunk in plan.chunks])
            parts = [
                block.run(part, chunk, prepared)
                for part, chunk in zip(parts, plan.chunks, strict=True)
            ]
            tokens = parts[0] if len(parts) == 1 else torch.cat(parts)
            rows = FromWindows.apply(tokens.flatten(0, 1), plan)
        return rows

    def _run_in_place(self, rows: Tensor, batch: int, plans: list[WindowPlan]) -> Tensor:
        """Apply the blocks without a graph: a chunk reads and writes only its own rows."""
        num_rows, dim = rows.shape
        result = rows.new_empty(num_rows + 1, dim)  # padded tokens are written to the last row
        for i, block in enumerate(self.blocks):
            plan = plans[i % 2]
            prepared = block.prepare(batch, plan, rows)
            for chunk in plan.chunks:
                tokens = rows.index_select(0, chunk.gather).view(-1, plan.num_tokens, dim)
                result.index_copy_(
                    0, chunk.scatter, block.run(tokens, chunk, prepared).view(-1, dim)
                )
            rows = result
        return result[:num_rows]
