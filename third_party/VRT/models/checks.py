"""What VRT refuses, in sentences that say what to give instead."""

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_STAGES = 7


def check_widths(
    depths: Sequence[int],
    embed_dims: Sequence[int],
    num_heads: Sequence[int],
    mul_attn_ratio: float,
) -> None:
    """Check the lists that give depth, width and heads of each layer.

    Raises:
        ValueError: names the argument, what was given and what is needed.
    """
    if not len(depths) == len(embed_dims) == len(num_heads) >= NUM_STAGES + 1:
        raise ValueError(
            "depths, embed_dims and num_heads need one entry per layer, at least 8; they have "
            f"{len(depths)}, {len(embed_dims)} and {len(num_heads)}"
        )
    for i, (depth, dim, heads) in enumerate(zip(depths, embed_dims, num_heads, strict=True)):
        if heads < 1 or dim % heads:
            raise ValueError(f"embed_dims[{i}]={dim} is not divisible by num_heads[{i}]={heads}")
        if i < NUM_STAGES and int(depth * mul_attn_ratio) > 0 and dim % 4:
            raise ValueError(
                f"embed_dims[{i}]={dim}: layers with mutual attention need a multiple of 4"
            )
    for later, earlier in ((4, 2), (5, 1), (6, 0)):
        if embed_dims[later] != embed_dims[earlier]:
            raise ValueError(
                f"embed_dims[{later}]={embed_dims[later]} must equal embed_dims[{earlier}]="
                f"{embed_dims[earlier]}: a skip connection adds them"
            )
    for i in (3, 4, 5):
        if embed_dims[i] % 4:
            raise ValueError(
                f"embed_dims[{i}]={embed_dims[i]} must be divisible by 4: the next stage turns "
                "its channels into 2 x 2 pixels"
            )
    if len(set(embed_dims[NUM_STAGES:])) > 1:
        raise ValueError(f"embed_dims[7:]={list(embed_dims[NUM_STAGES:])} must all be equal")


def check_alignment(pa_frames: int, deformable_groups: int, embed_dims: Sequence[int]) -> None:
    """Check that neighbours, offset groups and widths divide each other as needed.

    Raises:
        ValueError: names the argument, what was given and what is needed.
    """
    if pa_frames not in (0, 2, 4, 6):
        raise ValueError(f"pa_frames={pa_frames}: give 2, 4 or 6 neighbours, or 0 for none")
    if pa_frames == 0:
        return
    neighbours = pa_frames // 2
    if deformable_groups < 1 or deformable_groups % neighbours:
        raise ValueError(
            f"deformable_groups={deformable_groups} must be divisible by pa_frames / 2 = "
            f"{neighbours}"
        )
    for i, dim in enumerate(embed_dims[:NUM_STAGES]):
        if dim % neighbours:
            raise ValueError(
                f"embed_dims[{i}]={dim} must be divisible by pa_frames / 2 = {neighbours}"
            )
        if neighbours * dim % deformable_groups:
            raise ValueError(
                f"pa_frames / 2 * embed_dims[{i}] = {neighbours * dim} must be divisible by "
                f"deformable_groups={deformable_groups}"
            )


def check_layers(
    window_size: Sequence[int],
    indep_reconsts: Sequence[int],
    num_layers: int,
    out_chans: int,
    num_input_frames: int | None,
) -> None:
    """Check the window, the numbers of the single-frame layers, and interpolation's frames.

    `num_input_frames` is None for other networks.

    Raises:
        ValueError: names the argument, what was given and what is needed.
    """
    if len(window_size) != 3 or min(window_size) < 1:
        raise ValueError(
            f"window_size={list(window_size)}: give frames, rows and columns, each at least 1"
        )
    wrong = [i for i in indep_reconsts if not NUM_STAGES <= i < num_layers]
    if wrong:
        raise ValueError(
            f"indep_reconsts={list(indep_reconsts)}: {wrong} are not layers of stage 8, which "
            f"has the layers {NUM_STAGES} to {num_layers - 1}"
        )
    if num_input_frames is None:
        return
    if num_input_frames < 2:
        raise ValueError(f"img_size[0]={num_input_frames}: interpolation needs 2 or more frames")
    if out_chans % 3:
        raise ValueError(
            f"out_chans={out_chans}: an interpolation network (pa_frames=0) makes frames of 3 "
            "channels; give a multiple of 3"
        )


def check_clip(x: Tensor, channels: int, dtype: torch.dtype, num_frames: int | None) -> None:
    """Check the shape and type of a clip that is to be `[B, T, channels, H, W]`.

    Args:
        x: the clip.
        channels: channels that the network takes.
        dtype: type of its weights.
        num_frames: frames that it takes, None for any number.

    Raises:
        ValueError: says what was given and what is needed.
    """
    if x.ndim != 5 or x.shape[2] != channels:
        raise ValueError(
            f"VRT was given a clip of shape {list(x.shape)}; it needs [B, T, {channels}, H, W]"
        )
    if min(x.shape) == 0:
        raise ValueError(f"VRT was given an empty clip, shape {list(x.shape)}")
    if x.dtype != dtype or dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"VRT was given {x.dtype} and has weights in {dtype}; give float32 (or float64) for "
            "both and use torch.autocast for half precision"
        )
    if num_frames is not None and x.shape[1] != num_frames:
        raise ValueError(
            f"this interpolation network takes {num_frames} frames (img_size[0]), it was given "
            f"{x.shape[1]}"
        )
