"""Cutting a volume into (shifted) windows: sizes, order, masks, and the row gather that does it.

Tokens are the rows of a table `[B * D * H * W, C]`. A `WindowPlan` says which rows form which
window, so that padding, the cyclic shift and the cut are one gather, and undoing them is another.
Windows are sorted by their mask: of the up to 2^3 kinds (last window of a shifted axis or not),
all windows of one kind share one mask.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

BLOCKED = -100.0  # added to the logits of tokens that must not attend to each other

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Segment:
    """Windows `start..stop` of a chunk, all of one mask kind."""

    kind: int
    start: int
    stop: int


@dataclass(frozen=True)
class Chunk:
    """Windows that are processed together, M of them with N tokens each.

    Attributes:
        gather: row of each token, `[M * N]`; padded tokens name row 0.
        scatter: the same, but padded tokens name the row after the last.
        padding: True for padded tokens, `[M, N, 1]`, or None where there are none.
        clip: batch item of each window, `[M]`.
        segments: runs of windows that share a mask.
    """

    gather: Tensor
    scatter: Tensor
    padding: Tensor | None
    clip: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class WindowPlan:
    """How the rows of a batch of volumes form windows.

    Attributes:
        num_tokens: N, tokens of a window.
        gather: row of each token in window order, `[M * N]`; padded tokens name row 0.
        inverse: position in window order of each row, `[B * D * H * W]`.
        padding: True for padded tokens, `[M * N, 1]`, or None.
        chunks: the windows in pieces.
        blocked: by mask kind, `[N, N]` bool of token pairs kept apart, or None for kind 0.
    """

    num_tokens: int
    gather: Tensor
    inverse: Tensor
    padding: Tensor | None
    chunks: tuple[Chunk, ...]
    blocked: dict[int, Tensor | None]


def effective_window(size: Size, window: Size, shift: Size) -> tuple[Size, Size]:
    """Shrink the window to axes that are not longer than it, and do not shift these.

    Returns:
        Window and shift per axis (frames, rows, columns).
    """
    fits = [length > side for length, side in zip(size, window, strict=True)]
    window = tuple(
        side if fit else length for length, side, fit in zip(size, window, fits, strict=True)
    )
    return window, tuple(step if fit else 0 for step, fit in zip(shift, fits, strict=True))


def padded_size(size: Size, window: Size) -> Size:
    """Round each axis up to whole windows."""
    return tuple(-(-length // side) * side for length, side in zip(size, window, strict=True))


def partition(volume: np.ndarray, window: Size) -> np.ndarray:
    """Cut `[D, H, W]` into windows `[M, N]`; windows and tokens in d, h, w order, w fastest."""
    d, h, w = window
    pattern = "(nd d) (nh h) (nw w) -> (nd nh nw) (d h w)"
    return rearrange(volume, pattern, d=d, h=h, w=w)


def window_kinds(padded: Size, window: Size, shift: Size) -> np.ndarray:
    """Return the mask kind of each window `[M]`: bit a is set if it wraps around on axis a."""
    counts = [length // side for length, side in zip(padded, window, strict=True)]
    kinds = np.zeros(counts, dtype=np.int64)
    for axis, step in enumerate(shift):
        if step > 0:
            np.moveaxis(kinds, axis, 0)[-1] += 2**axis
    return kinds.ravel()


def blocked_pairs(kind: int, window: Size, shift: Size) -> np.ndarray | None:
    """Return which tokens of a window of this kind are kept apart, `[N, N]` bool, or None.

    On an axis where the window wraps around, its last `shift` positions come from the other end
    of the volume; tokens from different ends do not attend to each other.
    """
    if kind == 0:
        return None
    label = np.zeros(window, dtype=np.int64)
    for axis, (side, step) in enumerate(zip(window, shift, strict=True)):
        if kind >> axis & 1:
            np.moveaxis(label, axis, 0)[side - step :] += 2**axis
    label = label.ravel()
    return label[:, None] != label[None, :]


def _sorted_windows(
    batch: int, size: Size, window: Size, shift: Size
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return windows `[M, N]` of row numbers (-1 padded), their kinds and their batch items."""
    padded = padded_size(size, window)
    num_rows = size[0] * size[1] * size[2]
    rows = np.full(padded, -1, dtype=np.int64)
    rows[: size[0], : size[1], : size[2]] = np.arange(num_rows).reshape(size)
    windows = partition(np.roll(rows, [-step for step in shift], (0, 1, 2)), window)
    kinds = np.tile(window_kinds(padded, window, shift), batch)
    clips = np.arange(batch).repeat(len(windows))
    windows = np.concatenate(
        [np.where(windows < 0, -1, windows + b * num_rows) for b in range(batch)]
    )
    order = kinds.argsort(kind="stable")
    return windows[order], kinds[order], clips[order]


def _segments(kinds: np.ndarray) -> tuple[Segment, ...]:
    """Find the runs of equal kinds in `[M]`, which is sorted."""
    values, starts = np.unique(kinds, return_index=True)
    stops = [*starts[1:].tolist(), len(kinds)]
    return tuple(
        Segment(kind, start, stop)
        for kind, start, stop in zip(values.tolist(), starts.tolist(), stops, strict=True)
    )


def build_plan(
    batch: int, size: Size, window: Size, shift: Size, chunk_tokens: int, device: torch.device
) -> WindowPlan:
    """Plan the windows of `batch` volumes, see `_build_plan`; torch.compile leaves it out."""
    build = _build_plan
    if torch.compiler.is_compiling():  # as a decorator it would import the compiler, 2.4 s
        build = torch.compiler.disable(_build_plan)
    return build(batch, size, window, shift, chunk_tokens, device)


@torch.inference_mode(False)  # a plan made while testing must serve a later training
def _build_plan(
    batch: int, size: Size, window: Size, shift: Size, chunk_tokens: int, device: torch.device
) -> WindowPlan:
    """Plan the windows of `batch` volumes.

    Args:
        batch: B.
        size: frames, rows and columns of one volume.
        window: nominal window.
        shift: nominal shift, 0 on all axes for a block that is not shifted.
        chunk_tokens: about how many tokens are processed at once.
        device: where the index tensors live.
    """
    # Everything here follows from sizes, so it is NumPy: a model of tensors without values, which
    # a test or tool may use, gets real tables.
    window, shift = effective_window(size, window, shift)
    windows, kinds, clips = _sorted_windows(batch, size, window, shift)
    num_tokens = windows.shape[1]
    num_rows = batch * size[0] * size[1] * size[2]
    is_padding = windows < 0
    real = ~is_padding.ravel()
    inverse = np.empty(num_rows, dtype=np.int64)
    inverse[windows.ravel()[real]] = np.arange(windows.size)[real]
    has_padding = is_padding.any(1)

    def place(table: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(table)).to(device)

    gather, scatter = place(windows.clip(min=0)), place(np.where(is_padding, num_rows, windows))
    padding, clip = place(is_padding[:, :, None]), place(clips)
    per_chunk = max(1, chunk_tokens // num_tokens)
    chunks = []
    for start in range(0, len(windows), per_chunk):
        part = slice(start, start + per_chunk)
        chunks.append(
            Chunk(
                gather=gather[part].flatten(),
                scatter=scatter[part].flatten(),
                padding=padding[part] if has_padding[part].any() else None,
                clip=clip[part],
                segments=_segments(kinds[part]),
            )
        )
    blocked = {kind: blocked_pairs(kind, window, shift) for kind in np.unique(kinds).tolist()}
    return WindowPlan(
        num_tokens=num_tokens,
        gather=gather.flatten(),
        inverse=place(inverse),
        padding=padding.flatten(0, 1) if has_padding.any() else None,
        chunks=tuple(chunks),
        blocked={k: None if b is None else place(b) for k, b in blocked.items()},
    )


class ToWindows(torch.autograd.Function):
    """Gather rows `[R, C]` into window order `[M * N, C]`; backward is the inverse gather."""

    @staticmethod
    def forward(ctx: object, rows: Tensor, plan: WindowPlan) -> Tensor:
        """Padded tokens hold the values of row 0; whoever uses them masks them."""
        ctx.plan = plan
        return rows.index_select(0, plan.gather)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        """Bring each gradient back to its row; those of padded tokens are dropped."""
        return grad.index_select(0, ctx.plan.inverse), None


class FromWindows(torch.autograd.Function):
    """Gather tokens `[M * N, C]` back into rows `[R, C]`; padded tokens are dropped."""

    @staticmethod
    def forward(ctx: object, tokens: Tensor, plan: WindowPlan) -> Tensor:
        """See the class."""
        ctx.plan = plan
        return tokens.index_select(0, plan.inverse)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        """Padded tokens get a zero gradient."""
        grad = grad.index_select(0, ctx.plan.gather)
        if ctx.plan.padding is not None:
            grad.masked_fill_(ctx.plan.padding, 0.0)
        return grad, None
