"""VRT with spikes: the one module that changes a VRT.

The class of one VRT instance is exchanged for a subclass whose `forward_features` passes the
features on after stages 1 to 4. What is done with them is given for one call and gone after it, so
a deep copy is independent, and weights, keys and every other VRT stay as they are. It relies on
`stage1` ... `stage8`, `norm`, `forward`, `forward_features` and on the shapes in the state dict, so
a clone of the upstream works too. Clips of sizes that VRT cannot take are padded and cropped.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import distributed, nn

from src.models.first_estimate import FirstEstimate
from src.models.fusion.cross_attn_temporal import TIME_SLOPE, MultiScaleTemporalCrossAttnFuse
from src.models.spike_encoder3d import SpikeEncoder3D
from src.models.spike_temporal_sa import SpikeTemporalSA
from src.utils.attention import ChunkConfig, require_int, require_ints

AfterStage = Callable[[int, torch.Tensor], torch.Tensor]
NUM_SCALES = 4


class StageHook:
    """What is added to the class of a VRT: features may be replaced after stages 1 to 4."""

    after_stage: AfterStage | None = None  # set for the time of one call only

    def forward_hooked(self, clip: torch.Tensor, after_stage: AfterStage) -> torch.Tensor:
        """Run VRT on a clip [B, T, C, H, W] with `after_stage(0..3, features [B, C, T, H, W])`.

        What it returns replaces the features, in the skip connections too.
        """
        self.after_stage = after_stage
        try:
            return self(clip)
        finally:
            self.after_stage = None

    def forward_features(
        self,
        x: torch.Tensor,
        flows_backward: Sequence[torch.Tensor],
        flows_forward: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Do what VRT does from stage 1 to `norm`; flows are ordered by distance, then scale."""
        after_stage = self.after_stage
        if after_stage is None:
            return super().forward_features(x, flows_backward, flows_forward)

        def run(stage: nn.Module, features: torch.Tensor, scale: int) -> torch.Tensor:
            return stage(features, flows_backward[scale::4], flows_forward[scale::4])

        x1 = after_stage(0, run(self.stage1, x, 0))
        x2 = after_stage(1, run(self.stage2, x1, 1))
        x3 = after_stage(2, run(self.stage3, x2, 2))
        x4 = after_stage(3, run(self.stage4, x3, 3))
        x = run(self.stage5, x4, 2)
        x = run(self.stage6, x + x3, 1)
        x = run(self.stage7, x + x2, 0)
        x = x + x1
        for layer in self.stage8:
            x = layer(x)
        x = self.norm(rearrange(x, "n c d h w -> n d h w c"))
        return rearrange(x, "n d h w c -> n c d h w")

    def __reduce__(self) -> tuple[Callable, tuple[type], dict[str, Any]]:
        """Pickle by the class below: that of a hooked VRT has no importable name."""
        return _blank_hooked, (type(self).__bases__[1],), self.__dict__


@functools.cache
def _hooked_class(base: type) -> type:
    return type("Hooked" + base.__name__, (StageHook, base), {})


def _blank_hooked(base: type) -> nn.Module:
    hooked = _hooked_class(base)
    return hooked.__new__(hooked)


def add_stage_hook(vrt: nn.Module) -> None:
    """Exchange the class of this one instance, see `StageHook`."""
    if isinstance(vrt, StageHook):
        raise RuntimeError("this VRT has a stage hook already; build a new one, or copy it before")
    vrt.__class__ = _hooked_class(type(vrt))


def check_scales(vrt: nn.Module, channels: Sequence[int], spatial_strides: Sequence[int]) -> None:
    """Compare the spike pyramid with VRT's stages 1 to 4."""
    if not isinstance(vrt, nn.Module) or not hasattr(vrt, "forward_features"):
        raise TypeError(
            f"vrt_backbone is a {type(vrt).__name__}; a VRT is needed, a module with stage1 ... "
            "stage8 and forward_features"
        )
    shapes = {key: value.shape for key, value in vrt.state_dict().items()}
    widths = [shapes[f"stage{i}.linear1.weight"][0] for i in range(1, NUM_SCALES + 1)]
    if require_ints("channels_per_scale", channels) != widths:
        has = f"{widths[0]} channels" if len(set(widths)) == 1 else f"{widths} channels"
        raise ValueError(
            f"MODEL.CHANNELS_PER_SCALE is {list(channels)}; VRT has {has} in stages 1-4; "
            f"write {widths}"
        )
    stride = 1
    strides = require_ints("MODEL.SPIKE_ENCODER.SPATIAL_STRIDES", spatial_strides)
    for scale, step in enumerate(strides, start=1):
        stride *= step
        if stride > 2**scale:
            raise ValueError(
                f"MODEL.SPIKE_ENCODER.SPATIAL_STRIDES is {list(spatial_strides)}: scale "
                f"{scale + 1} of the spikes has stride {stride}, VRT's stage {scale + 1} has "
                f"{2**scale}; write {[2] * (NUM_SCALES - 1)} or less"
            )


class _Restorer(nn.Module):
    """Sizes, the first estimate and VRT: what models with and without spikes share."""

    def _set_up(
        self,
        vrt: nn.Module,
        pixel_unshuffle: int,
        first_estimate: int,
        first_estimate_growth: float,
        spike_bins: int,
    ) -> None:
        require_int("MODEL.PIXEL_UNSHUFFLE", pixel_unshuffle)
        self.pixel_unshuffle = pixel_unshuffle
        self.size_rule = size_rule_of(vrt).scaled(pixel_unshuffle)
        self.refines = True  # false in steps that train the first estimate alone: VRT does not run
        self.vrt = vrt
        self.first_estimate = self.estimate_features = None
        if first_estimate:
            channels = 3 * pixel_unshuffle**2
            self.first_estimate = FirstEstimate(
                channels, spike_bins, first_estimate, first_estimate_growth
            )
            width = vrt.state_dict()["stage1.linear1.weight"].shape[0]
            self.estimate_features = nn.Conv2d(first_estimate, width, 1)
            nn.init.zeros_(self.estimate_features.weight)
            nn.init.zeros_(self.estimate_features.bias)
            if not isinstance(vrt, StageHook):
                add_stage_hook(vrt)

    def _restore(self, rgb_clip: torch.Tensor, spike_vox: torch.Tensor | None) -> torch.Tensor:
        _, frames, _, *size = rgb_clip.shape
        extent = self.size_rule.padded(frames, *size)
        clip = F.pixel_unshuffle(pad_clip(rgb_clip, extent), self.pixel_unshuffle)
        voxels = None if spike_vox is None else pad_spikes(spike_vox, size, extent)
        estimate, features = self.first_estimate, None
        if estimate is not None and (voxels is not None or not estimate.spike_bins):
            clip, features = estimate(clip, voxels)
        if features is None or self.refines:
            clip = self._run_vrt(clip, features, voxels)
        elif torch.is_grad_enabled() and distributed.is_initialized():
            # DDP waits for all gradients.
            clip = clip + 0.0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return crop_clip(F.pixel_shuffle(clip, self.pixel_unshuffle), rgb_clip, extent)

    def _run_vrt(
        self, clip: torch.Tensor, features: torch.Tensor | None, voxels: torch.Tensor | None
    ) -> torch.Tensor:
        """Run VRT on unshuffled frames; add the estimate's features and fuse those of spikes."""
        if features is None and voxels is None:
            return self.vrt(clip)
        maps = [] if voxels is None else self.encode_spikes(voxels)
        if features is not None:
            features = self.estimate_features(features.flatten(0, 1))
            features = features.unflatten(0, clip.shape[:2])

        def after_stage(index: int, x: torch.Tensor) -> torch.Tensor:
            x = x.transpose(1, 2)
            if index == 0 and features is not None:
                x = x + features
            if maps:
                x = self.cross_attn_fuse.fuse_blocks[index](x, maps[index].transpose(1, 2))
            return x.transpose(1, 2)

        return self.vrt.forward_hooked(clip, after_stage)


class RGBOnly(_Restorer):
    """Plain VRT behind the interface of `VRTWithSpike`: it ignores the spikes."""

    def __init__(
        self,
        vrt_backbone: nn.Module,
        pixel_unshuffle: int = 1,
        first_estimate: int = 0,
        first_estimate_growth: float = 2,
    ) -> None:
        super().__init__()
        self._set_up(
            vrt_backbone, pixel_unshuffle, first_estimate, first_estimate_growth, spike_bins=0
        )

    def forward(
        self, rgb_clip: torch.Tensor, spike_vox: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Restore a clip [B, T, 3, H, W]; `spike_vox` is ignored."""
        del spike_vox
        return self._restore(rgb_clip, None)


class VRTWithSpike(_Restorer):
    """VRT whose encoder features are fused with spike features at four scales.

    A new model computes exactly what its VRT computes: every fusion block starts as the identity,
    and so does a first estimate.

    Args:
        vrt_backbone: a VRT, this project's or the upstream's; its class changes (`StageHook`).
        spike_bins: K, bins of a voxel grid.
        channels_per_scale: width of the spike features; must be VRT's of stages 1 to 4.
        temporal_strides, spatial_strides: of the spike encoder, scales 2 to 4; in space no scale
            may be coarser than VRT's.
        tsa_heads, tsa_dropout, tsa_mlp_ratio, tsa_chunk_cfg: of the self-attention over time on
            the spike features, see `TemporalSelfAttentionBlock`.
        fuse_heads, fuse_dropout, fuse_mlp_ratio, fuse_chunk_cfg, fuse_time_slope: of the fusion,
            see `TemporalCrossAttnFuse`.
        pixel_unshuffle: r; frames are rearranged to 1/r of their size and 3 r^2 channels, which
            must be the `in_chans` and `out_chans` of the VRT. Every pixel of VRT then costs r^2
            times less; meant for spikes that are r times coarser than the frames.
        first_estimate: width of a network that restores every frame before VRT, see
            `FirstEstimate`; 0: none.
        first_estimate_growth: of its width from level to level.
    """

    def __init__(
        self,
        vrt_backbone: nn.Module,
        spike_bins: int = 32,
        channels_per_scale: Sequence[int] = (96, 96, 96, 96),
        temporal_strides: Sequence[int] = (1, 1, 1),
        spatial_strides: Sequence[int] = (2, 2, 2),
        tsa_heads: int = 4,
        tsa_dropout: float = 0.0,
        tsa_mlp_ratio: float = 2,
        tsa_chunk_cfg: ChunkConfig = None,
        fuse_heads: int = 4,
        fuse_dropout: float = 0.0,
        fuse_mlp_ratio: float = 2,
        fuse_chunk_cfg: ChunkConfig = None,
        fuse_time_slope: float = TIME_SLOPE,
        pixel_unshuffle: int = 1,
        first_estimate: int = 0,
        first_estimate_growth: float = 2,
    ) -> None:
        super().__init__()
        check_scales(vrt_backbone, channels_per_scale, spatial_strides)
        self.spike_encoder = SpikeEncoder3D(
            spike_bins, channels_per_scale, temporal_strides, spatial_strides
        )
        self.spike_temporal_sa = SpikeTemporalSA(
            channels_per_scale, tsa_heads, tsa_dropout, tsa_mlp_ratio, tsa_chunk_cfg
        )
        self.cross_attn_fuse = MultiScaleTemporalCrossAttnFuse(
            channels_per_scale,
            fuse_heads,
            fuse_dropout,
            fuse_mlp_ratio,
            fuse_chunk_cfg,
            fuse_time_slope,
        )
        add_stage_hook(vrt_backbone)
        self._set_up(
            vrt_backbone, pixel_unshuffle, first_estimate, first_estimate_growth, spike_bins
        )

    def forward(
        self, rgb_clip: torch.Tensor, spike_vox: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Restore blurry frames in 0..1, [B, T, 3, H, W] of any size; not clamped.

        `spike_vox` are normalised voxel grids of the same frames and scene region,
        [B, T, K, Hs, Ws]; without them the result is plain VRT's.
        """
        batch, frames = rgb_clip.shape[:2]
        if spike_vox is not None and (
            spike_vox.ndim != 5 or spike_vox.shape[:2] != (batch, frames)
        ):
            raise ValueError(
                f"the clip has shape {list(rgb_clip.shape)}, the voxel grids "
                f"{list(spike_vox.shape)}; needed are grids [B={batch}, T={frames}, K, Hs, Ws]"
            )
        return self._restore(rgb_clip, spike_vox)

    def encode_spikes(self, spike_vox: torch.Tensor) -> list[torch.Tensor]:
        """Return the spike features that are fused, one map [B, C_i, T_i, H_i, W_i] per scale."""
        return self.spike_temporal_sa(self.spike_encoder(spike_vox))


def crop_clip(
    restored: torch.Tensor, clip: torch.Tensor, extent: tuple[int, int, int]
) -> torch.Tensor:
    """Cut from the result of a padded clip what belongs to `clip`, whatever VRT's up-scaling."""
    scale = restored.shape[-1] // extent[2]
    height, width = clip.shape[-2] * scale, clip.shape[-1] * scale
    return restored[:, : clip.shape[1], :, :height, :width]


# ---------------------------------------------------------------- sizes that VRT cannot take


@dataclass(frozen=True)
class SizeRule:
    """What a VRT can take: at least `min_frames` and `min_size_px`, sides a multiple of 8."""

    min_frames: int = 2
    min_size_px: int = 64
    multiple_px: int = 8

    def padded(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Return the smallest allowed extent (T, H, W) that holds the given one."""
        unit = self.multiple_px
        height, width = (-(-max(x, self.min_size_px) // unit) * unit for x in (height, width))
        return max(frames, self.min_frames), height, width

    def scaled(self, factor: int) -> "SizeRule":
        """Return the rule for frames that are `factor` times as large as what VRT sees."""
        return SizeRule(self.min_frames, self.min_size_px * factor, self.multiple_px * factor)


def size_rule_of(vrt: nn.Module) -> SizeRule:
    """Derive the rule from the shapes in a VRT's state dict.

    Blocks with mutual attention have a position code with one row per pixel of their window, and
    the window must fit into the map of their scale and two frames deep. Alignment to G > 1
    neighbours on each side, read off the input channels of the offset network, needs G + 1 frames.
    """
    shapes = {key: tuple(value.shape) for key, value in vrt.state_dict().items()}
    min_frames = min_size = 1
    for stage in range(1, 8):
        block = f"stage{stage}.residual_group1.blocks.0.attn."
        if block + "position_bias" in shapes:
            # A two-frame window (2, h, w) has h * w rows and a table of 3(2h - 1)(2w - 1).
            area = shapes[block + "position_bias"][1]
            table_rows = shapes[block + "relative_position_bias_table"][0]
            total = (4 * area + 1 - table_rows // 3) // 2  # h + w
            longer_side = (total + math.isqrt(max(0, total * total - 4 * area))) // 2
            min_size = max(min_size, 2 ** min(stage - 1, 7 - stage) * longer_side)
            min_frames = max(min_frames, 2)
        offsets = f"stage{stage}.pa_deform.conv_offset.0.weight"
        if offsets in shapes:
            width, inputs = shapes[offsets][:2]  # inputs = (1 + G) * width + 2 * G
            neighbours = (inputs - width) // (width + 2)
            min_frames = max(min_frames, neighbours + 1 if neighbours > 1 else 1)
    return SizeRule(min_frames, min_size)


def reflect_index(length: int, target: int) -> list[int]:
    """Return `target` indices into `length` entries: forth, back, forth; ends are not repeated."""
    period = max(1, 2 * (length - 1))
    return [min(i % period, period - i % period) if length > 1 else 0 for i in range(target)]


def pad_clip(clip: torch.Tensor, extent: tuple[int, int, int]) -> torch.Tensor:
    """Continue a clip [B, T, C, H, W]: the last frame is repeated, height and width mirrored.

    Any extent works, also one many times as long. Returns `clip` itself if nothing is missing.
    """
    frames, height, width = extent
    repeated = [min(t, clip.shape[1] - 1) for t in range(frames)]
    rows, columns = reflect_index(clip.shape[3], height), reflect_index(clip.shape[4], width)
    for axis, index in ((1, repeated), (3, rows), (4, columns)):
        if clip.shape[axis] != len(index):
            clip = clip.index_select(axis, torch.tensor(index, device=clip.device))
    return clip


def pad_spikes(
    voxels: torch.Tensor, size: tuple[int, int], extent: tuple[int, int, int]
) -> torch.Tensor:
    """Continue voxel grids [B, T, K, Hs, Ws] over the scene region that a padded clip covers.

    They cover the same region as RGB frames of `size` (H, W) before padding; `extent` (T, H', W')
    is that of the clip after it. Hs * H' / H is rounded: at most half a spike pixel at the border.
    """
    height, width = (
        round(voxels.shape[axis] * padded / before)
        for axis, padded, before in zip((3, 4), extent[1:], size, strict=True)
    )
    return pad_clip(voxels, (extent[0], height, width))
