"""Fused attention with an additive bias that may need a gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_AT_ONCE = 2**20  # elements of explicit logits in the backward pass on a CPU


class BiasedAttention(torch.autograd.Function):
    """Attention whose bias, shared by all windows, is learned.

    The fused kernels of the CPU give no gradient to a bias, so autograd would keep the explicit
    logits of all windows. Here forward is the fused kernel, and backward computes the logits
    again, a few windows at a time.
    """

    @staticmethod
    def forward(ctx: object, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        """Map q, k, v `[M, heads, N, d]` and bias `[1, heads, N, N]` to `[M, heads, N, d]`."""
        fixed = bias.detach()  # the fused kernel is refused to a bias that requires a gradient
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=fixed, scale=scale)
        ctx.save_for_backward(q, k, v, bias, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """Differentiate softmax(q k^T * scale + bias) v, in float32 or float64."""
        q, k, v, bias, out = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        shared, grad_bias = bias.to(wide), torch.zeros_like(bias, dtype=wide)
        grad_q, grad_k, grad_v = (torch.empty_like(tensor) for tensor in (q, k, v))
        num = max(1, LOGITS_AT_ONCE // bias.numel())
        for start in range(0, len(q), num):
            part = slice(start, start + num)
            pq, pk, pv, pg, po = (x[part].to(wide) for x in (q, k, v, grad, out))
            pq = pq * ctx.scale
            weights = (pq @ pk.transpose(-1, -2)).add_(shared).softmax(-1)
            grad_v[part] = weights.transpose(-1, -2) @ pg
            slope = pg @ pv.transpose(-1, -2)
            slope.sub_((pg * po).sum(-1, keepdim=True)).mul_(weights)
            grad_bias += slope.sum(0, keepdim=True)
            grad_q[part] = (slope @ pk).mul_(ctx.scale)
            grad_k[part] = slope.transpose(-1, -2) @ pq
        return grad_q, grad_k, grad_v, grad_bias.to(bias.dtype), None


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
    if bias is not None and bias.requires_grad and torch.is_grad_enabled() and not q.is_cuda:
        return BiasedAttention.apply(q, k, v, bias, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
