"""Attention among the tokens of windows: all heads, both kinds, all masks of a chunk."""

import torch
import torch.nn.functional as F
from torch import Tensor

from third_party.VRT.models.windows import Segment

LOGITS_AT_ONCE = 2**20  # elements of explicit logits in the backward pass on a CPU

Masks = dict[int, Tensor | None]  # by mask kind [N, N], added to the logits; None for no mask


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Compute softmax(q k^T * scale + bias) v.

    Args:
        q: queries `[M, heads, N, d]`; k and v likewise.
        k: keys.
        v: values.
        bias: added to the logits, `[1, heads or 1, N, N]`, the same for all M windows; or None.
        scale: factor of the products.

    Returns:
        `[M, heads, N, d]`.
    """
    bias = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def attend_windows(
    qkv: Tensor, relative: Tensor, masks: Masks, segments: tuple[Segment, ...], scale: float
) -> Tensor:
    """Attend within windows: self attention and, of the second kind, mutual attention.

    Args:
        qkv: projected tokens `[M, N, kinds, 3, heads, d]`.
        relative: learned logits of self attention `[1, heads, N, N]`.
        masks: fixed logits by mask kind.
        segments: runs of windows that share a mask.
        scale: factor of the products.

    Returns:
        `[M, N, kinds * heads * d]`, mutual attention first.
    """
    if relative.requires_grad and torch.is_grad_enabled() and not qkv.is_cuda:
        return LeanAttention.apply(qkv, relative, masks, segments, scale)
    return _compose(qkv, relative, masks, segments, scale)


def _compose(
    qkv: Tensor, relative: Tensor, masks: Masks, segments: tuple[Segment, ...], scale: float
) -> Tensor:
    """Do what `attend_windows` says with the fused kernel."""
    out = []
    for segment, part in zip(
        segments, qkv.split([s.stop - s.start for s in segments]), strict=True
    ):
        kinds = part.unbind(2)
        heads = attend(*_of_window(kinds[0]), _self_bias(relative, masks[segment.kind]), scale)
        heads = heads.transpose(1, 2).flatten(2)
        if len(kinds) == 2:
            bias = _mutual_bias(masks[segment.kind], segment.kind)
            mutual = attend(*_of_frames(kinds[1]), bias, scale)
            mutual = mutual.transpose(1, 2).reshape(len(part), part.shape[1], -1)
            heads = torch.cat((mutual, heads), dim=-1)
        out.append(heads)
    return out[0] if len(out) == 1 else torch.cat(out)


def _of_window(qkv: Tensor) -> tuple[Tensor, ...]:
    """View `[M, N, 3, heads, d]` as queries, keys and values `[M, heads, N, d]`."""
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def _of_frames(qkv: Tensor) -> tuple[Tensor, ...]:
    """Take queries, keys and values `[M * 2, heads, N / 2, d]` of mutual attention.

    Each frame's queries meet the other frame's keys; the result is stored at the frame of the
    keys, as published.
    """
    by_frame = qkv.unflatten(1, (2, -1))  # [M, 2, N / 2, 3, heads, d]
    q, k, v = by_frame.unbind(3)
    return tuple(x.flatten(0, 1).transpose(1, 2) for x in (q.flip(1), k, v))


def _self_bias(relative: Tensor, mask: Tensor | None) -> Tensor:
    return relative if mask is None else relative + mask


def _mutual_bias(mask: Tensor | None, kind: int) -> Tensor | None:
    """Cut the mask of one frame; bit 0 of the kind is time, which mutual attention ignores."""
    half = 0 if mask is None else len(mask) // 2
    return None if kind < 2 else mask[None, None, :half, :half]


class LeanAttention(torch.autograd.Function):
    """`attend_windows` for training on a CPU.

    The fused kernels of a CPU give no gradient to a bias, so autograd would keep the logits of all
    windows. Here forward is the fused kernel, backward computes the logits again, a few windows at
    a time, and every gradient is written once, to its place.
    """

    @staticmethod
    def forward(
        ctx: object,
        qkv: Tensor,
        relative: Tensor,
        masks: Masks,
        segments: tuple[Segment, ...],
        scale: float,
    ) -> Tensor:
        """See `attend_windows`."""
        out = _compose(qkv, relative.detach(), masks, segments, scale)
        ctx.save_for_backward(qkv, relative, out)
        ctx.masks, ctx.segments, ctx.scale = masks, segments, scale
        return out

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Differentiate by the projected tokens and the learned logits."""
        qkv, relative, out = ctx.saved_tensors
        grad_qkv = torch.empty_like(qkv)
        grad_relative = torch.zeros_like(relative, dtype=_wide(qkv))
        num_tokens, kinds, _, heads, width = qkv.shape[1:]
        by_kind = (num_tokens, kinds, heads, width)
        out, grad = (x.unflatten(2, by_kind[1:]) for x in (out, grad))
        for segment in ctx.segments:
            part, mask = slice(segment.start, segment.stop), ctx.masks[segment.kind]
            grad_relative += _differentiate(
                _of_window(qkv[part, :, 0]),
                [x[part, :, -1].transpose(1, 2) for x in (out, grad)],
                _self_bias(relative, mask),
                ctx.scale,
                _of_window(grad_qkv[part, :, 0]),
            )
            if kinds == 2:
                places = grad_qkv[part, :, 1].unflatten(1, (2, -1)).unbind(3)
                places = [x.flatten(0, 1).transpose(1, 2) for x in places]
                grad_q = torch.empty_like(places[0])
                _differentiate(
                    _of_frames(qkv[part, :, 1]),
                    [
                        x[part, :, 0].unflatten(1, (2, -1)).flatten(0, 1).transpose(1, 2)
                        for x in (out, grad)
                    ],
                    _mutual_bias(mask, segment.kind),
                    ctx.scale,
                    (grad_q, *places[1:]),
                )
                swapped = grad_q.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
                places[0].copy_(swapped)
        return grad_qkv, grad_relative.to(relative.dtype), None, None, None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _differentiate(
    qkv: tuple[Tensor, ...],
    out_and_grad: list[Tensor],
    bias: Tensor | None,
    scale: float,
    places: tuple[Tensor, ...],
) -> Tensor:
    """Differentiate softmax(q k^T * scale + bias) v, in float32 or float64.

    Args:
        qkv: queries, keys and values `[M, heads, N, d]`.
        out_and_grad: result and its gradient `[M, heads, N, d]`.
        bias: `[1, heads or 1, N, N]` or None.
        scale: factor of the products.
        places: where the gradients of queries, keys and values are written, `[M, heads, N, d]`.

    Returns:
        The gradient of a bias by head, `[1, heads, N, N]`.
    """
    q = qkv[0]
    dtype = _wide(q)
    grad_q, grad_k, grad_v = places
    shared = None if bias is None else bias.to(dtype)
    grad_bias: Tensor | float = 0.0
    num = max(1, LOGITS_AT_ONCE // (q.shape[1] * q.shape[2] ** 2))
    for start in range(0, len(q), num):
        part = slice(start, start + num)
        pq, pk, pv, po, pg = (x[part].to(dtype) for x in (*qkv, *out_and_grad))
        pq = pq * scale
        weights = pq @ pk.transpose(-1, -2)
        weights = (weights if shared is None else weights.add_(shared)).softmax(-1)
        grad_v[part] = weights.transpose(-1, -2) @ pg
        slope = pg @ pv.transpose(-1, -2)
        slope.sub_((pg * po).sum(-1, keepdim=True)).mul_(weights)
        grad_bias = grad_bias + slope.sum(0, keepdim=True)
        grad_q[part] = (slope @ pk).mul_(scale)
        grad_k[part] = slope.transpose(-1, -2) @ pq
    return grad_bias
