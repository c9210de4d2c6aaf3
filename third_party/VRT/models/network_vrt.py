"""VRT: A Video Restoration Transformer (Liang et al., arXiv 2201.12288).

An independent implementation with the constructor, the state dict and the results of the
published network. See third_party/VRT/README.md.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from third_party.VRT.models.alignment import align_images
from third_party.VRT.models.blocks import BlockSettings
from third_party.VRT.models.checks import (
    NUM_STAGES,
    check_alignment,
    check_clip,
    check_layers,
    check_widths,
)
from third_party.VRT.models.chunks import IMAGE_ELEMENTS, map_pieces, pieces_of
from third_party.VRT.models.flow import SpyNet, adjacent_flows, longer_flows
from third_party.VRT.models.padding import PadPlan, crop_clip, pad_clip, pad_plan
from third_party.VRT.models.stages import (
    SCALES,
    EntryProjection,
    LayerSettings,
    SelfAttentionLayer,
    Stage,
    to_channels_first,
    to_channels_last,
)
from third_party.VRT.models.upsampling import FrameConv, Upsample
from third_party.VRT.models.weights import load_spynet

logger = logging.getLogger(__name__)

FLOW_LEVELS = (2, 3, 4, 5)  # from 1/8 to full resolution
TAIL_CHANNELS = 64
COARSEST_STEP = 8


class VRT(nn.Module):
    """Restores a clip of T frames: deblurring, denoising, super-resolution, interpolation.

    Args:
        upscale: 1 for the same size; 2^n or 3 for super-resolution.
        in_chans: colour channels of the input, without a noise map.
        out_chans: channels of the output; for interpolation 3 per output frame.
        img_size: only the first entry counts, and only for interpolation: its frames.
        window_size: attention window (frames, rows, columns).
        depths: blocks per layer; entries 0..6 are stages 1..7, the others layers of stage 8.
        indep_reconsts: layers of stage 8 whose windows are one frame deep.
        embed_dims: channels per layer.
        num_heads: heads per layer.
        mul_attn_ratio: share of a stage's blocks that have mutual attention.
        mlp_ratio: hidden width of a block's MLP over its width.
        qkv_bias: whether the projections to q, k, v have a bias.
        qk_scale: factor of the logits; None or 0 for the usual one.
        drop_path_rate: stochastic-depth rate of the last block.
        norm_layer: class of the norms in blocks and of the last norm.
        spynet_path: file with weights of the flow estimator.
        pa_frames: 2, 4 or 6 neighbours for parallel warping; 0 for interpolation.
        deformable_groups: offset groups of the deformable convolutions.
        recal_all_flows: accepted for compatibility, has no effect.
        nonblind_denoising: whether the input has a noise map as one more channel.
        use_checkpoint_attn: in training, compute attention (and alignment) again in backward.
        use_checkpoint_ffn: in training, compute MLPs again in backward.
        no_checkpoint_attn_blocks: layers exempt from the former.
        no_checkpoint_ffn_blocks: layers exempt from the latter.

    Raises:
        ValueError: arguments that do not fit together, in a sentence that names them.
    """

    spynet_is_optional = True  # `net.spynet = None`: alignment starts from zero displacement

    def __init__(
        self,
        upscale: int = 4,
        in_chans: int = 3,
        out_chans: int = 3,
        img_size: Sequence[int] = (6, 64, 64),
        window_size: Sequence[int] = (6, 8, 8),
        depths: Sequence[int] = (8,) * 7 + (4,) * 6,
        indep_reconsts: Sequence[int] = (11, 12),
        embed_dims: Sequence[int] = (120,) * 7 + (180,) * 6,
        num_heads: Sequence[int] = (6,) * 13,
        mul_attn_ratio: float = 0.75,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_path_rate: float = 0.2,
        norm_layer: type[nn.Module] = nn.LayerNorm,
        spynet_path: str | Path | None = None,
        pa_frames: int = 2,
        deformable_groups: int = 16,
        recal_all_flows: bool = False,
        nonblind_denoising: bool = False,
        use_checkpoint_attn: bool = False,
        use_checkpoint_ffn: bool = False,
        no_checkpoint_attn_blocks: Sequence[int] = (),
        no_checkpoint_ffn_blocks: Sequence[int] = (),
    ) -> None:
        super().__init__()
        check_widths(depths, embed_dims, num_heads, mul_attn_ratio)
        check_alignment(pa_frames, deformable_groups, embed_dims)
        num_frames = None if pa_frames else img_size[0]
        check_layers(window_size, indep_reconsts, len(depths), out_chans, num_frames)
        self.in_chans, self.out_chans, self.upscale = in_chans, out_chans, upscale
        self.pa_frames, self.recal_all_flows = pa_frames, recal_all_flows
        self.nonblind_denoising = nonblind_denoising and pa_frames > 0
        self.num_input_frames = num_frames
        self.window_size = tuple(window_size)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))
        layers = [
            LayerSettings(
                index=i,
                dim=embed_dims[i],
                num_mutual=int(depths[i] * mul_attn_ratio) if i < NUM_STAGES else 0,
                depth=depths[i],
                drop_path=rates[i].tolist(),
                blocks=BlockSettings(
                    num_heads=num_heads[i],
                    window=(1 if i in indep_reconsts else window_size[0], *window_size[1:]),
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    qk_scale=qk_scale,
                    norm_layer=norm_layer,
                    recompute_attn=use_checkpoint_attn and i not in no_checkpoint_attn_blocks,
                    recompute_ffn=use_checkpoint_ffn and i not in no_checkpoint_ffn_blocks,
                ),
            )
            for i in range(len(depths))
        ]
        self._set_smallest_size(layers)
        self._build_head(in_chans, embed_dims[0], spynet_path)
        self._build_stages(layers, deformable_groups)
        self.norm = norm_layer(embed_dims[-1])
        self.conv_after_body = nn.Linear(embed_dims[-1], embed_dims[0])
        self._build_tail(embed_dims[0])

    def _build_head(self, in_chans: int, width: int, spynet_path: str | Path | None) -> None:
        """Build what turns frames into features."""
        if self.pa_frames == 0:
            self.conv_first = FrameConv(in_chans, width)
            return
        self.conv_first = FrameConv(9 * in_chans + self.nonblind_denoising, width)
        self.spynet: SpyNet | None = SpyNet(FLOW_LEVELS)
        if spynet_path is None:
            logger.debug("flow estimator: random weights, until a state dict is loaded")
        else:
            load_spynet(self.spynet, spynet_path)

    def _build_stages(self, layers: list[LayerSettings], deformable_groups: int) -> None:
        """Build stages 1 to 7, then stage 8 with its members."""
        dim_in = layers[0].dim
        for i, layer in enumerate(layers[:NUM_STAGES], start=1):
            stage = Stage(layer, dim_in, self.pa_frames // 2, deformable_groups)
            setattr(self, f"stage{i}", stage)
            dim_in = layer.dim
        self.stage8 = nn.ModuleList([EntryProjection(dim_in, layers[-1].dim)])
        self.stage8.extend(SelfAttentionLayer(layer) for layer in layers[NUM_STAGES:])

    def _set_smallest_size(self, layers: list[LayerSettings]) -> None:
        """Find the frames and pixels that every stage with mutual attention needs."""
        scales = [SCALES[layer.index] for layer in layers if layer.num_mutual]
        _, rows, columns = self.window_size
        coarsest = max(scales, default=0)
        self.min_frames = max(self.pa_frames // 2 + 1, 2) if self.pa_frames > 2 or scales else 1
        self.min_size = (coarsest * rows, coarsest * columns)

    def _build_tail(self, width: int) -> None:
        """Build what turns features into frames."""
        if self.pa_frames == 0:
            self.linear_fuse = nn.Conv2d(width * self.num_input_frames, TAIL_CHANNELS, 1)
            self.conv_last = nn.Conv2d(TAIL_CHANNELS, self.out_chans, 7)
        elif self.upscale == 1:
            self.conv_last = FrameConv(width, self.out_chans)
        else:
            self.conv_before_upsample = nn.Sequential(
                FrameConv(width, TAIL_CHANNELS), nn.LeakyReLU(0.01)
            )
            self.upsample = Upsample(self.upscale, TAIL_CHANNELS)
            self.conv_last = FrameConv(TAIL_CHANNELS, self.out_chans)

    def forward(self, x: Tensor) -> Tensor:
        """Restore a clip.

        Args:
            x: `[B, T, C, H, W]`, colours 0..1; with `nonblind_denoising` the noise map is the
                last channel. Sizes that the network cannot take are padded and cropped.

        Returns:
            `[B, T, out_chans, upscale * H, upscale * W]`, not clamped; for interpolation
            `[B, out_chans // 3, 3, H, W]`.

        Raises:
            ValueError: a clip with other channels or, for interpolation, another length.
        """
        plan = self._plan(x)
        x = pad_clip(x, plan)
        if self.pa_frames == 0:
            return self._interpolate(x)[..., : plan.size[1], : plan.size[2]]
        return crop_clip(self._restore(x), plan, self.upscale)

    def _plan(self, x: Tensor) -> PadPlan:
        """Check the input and find the size to pad it to."""
        channels = self.in_chans + self.nonblind_denoising
        check_clip(x, channels, self.conv_first.weight.dtype, self.num_input_frames)
        _, num_frames, _, height, width = x.shape
        return pad_plan(num_frames, height, width, self.min_frames, self.min_size, COARSEST_STEP)

    def _restore(self, x: Tensor) -> Tensor:
        """Restore a clip of an allowed size, `pa_frames` > 0."""
        colours = x[:, :, : self.in_chans]
        flows_backward, flows_forward = self.get_flows(colours)
        images = align_images(colours, flows_backward[:1], flows_forward[:1])
        if self.nonblind_denoising:
            images = torch.cat((images, x[:, :, self.in_chans :]), dim=2)
        features = self._body(images, flows_backward, flows_forward)
        pixels = 4 * TAIL_CHANNELS * x.shape[3] * x.shape[4] * self.upscale**2
        items = pieces_of(IMAGE_ELEMENTS, x.device, pixels)
        out = map_pieces(self._tail, (features, colours.flatten(0, 1)), items)
        return out.unflatten(0, x.shape[:2])

    def _tail(self, features: Tensor, colours: Tensor) -> Tensor:
        """Turn features `[N, C0, H, W]` into frames, added to the input frames `[N, C, H, W]`."""
        if self.upscale == 1:
            return self.conv_last(features) + colours
        enlarged = F.interpolate(
            colours, scale_factor=self.upscale, mode="bilinear", align_corners=False
        )
        features = self.upsample(self.conv_before_upsample(features))
        return self.conv_last(features) + enlarged

    def _interpolate(self, x: Tensor) -> Tensor:
        """Make the frames between those of a clip of an allowed size, `pa_frames` 0."""
        mean = x.mean(dim=(1, 3, 4), keepdim=True)
        features = self._body(x - mean, [], [])
        features = features.reshape(len(x), -1, *features.shape[2:])  # frame-major channels
        features = F.leaky_relu(self.linear_fuse(features), 0.2)
        out = self.conv_last(F.pad(features, (3, 3, 3, 3), mode="reflect"))
        return out.unflatten(1, (-1, 3)) + mean

    def _body(
        self, images: Tensor, flows_backward: list[Tensor], flows_forward: list[Tensor]
    ) -> Tensor:
        """Compute the features of each frame, `[B, T, C, H, W]` to `[B * T, C0, H, W]`."""
        frames = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        first = self.conv_first(frames).to(frames.dtype)
        x = first.unflatten(0, images.shape[:2]).transpose(1, 2)  # [B, C0, T, H, W]
        x = self.forward_features(x, flows_backward, flows_forward)
        body = self.conv_after_body(to_channels_last(x)).to(first.dtype)
        return first + body.flatten(0, 1).permute(0, 3, 1, 2)

    def forward_features(
        self, x: Tensor, flows_backward: list[Tensor], flows_forward: list[Tensor]
    ) -> Tensor:
        """Run the stages.

        Args:
            x: features of `conv_first`, `[B, C0, T, H, W]`.
            flows_backward: entry 4 * (g - 1) + k brings frame t+g onto t at 1 / 2^k of the
                resolution, `[B, T-g, 2, h, w]`; empty without parallel warping, or where
                alignment starts from zero displacement.
            flows_forward: likewise, frame t onto t+g.

        Returns:
            `[B, C_last, T, H, W]`, after `norm`.
        """

        def flows(k: int) -> tuple[list[Tensor], list[Tensor]]:
            return flows_backward[k::4], flows_forward[k::4]

        x1 = self.stage1(x, *flows(0))
        x2 = self.stage2(x1, *flows(1))
        x3 = self.stage3(x2, *flows(2))
        x4 = self.stage4(x3, *flows(3))
        x = self.stage5(x4, *flows(2))
        x = self.stage6(x + x3, *flows(1))
        x = self.stage7(x + x2, *flows(0))
        x = x + x1
        for layer in self.stage8:
            x = layer(x)
        return to_channels_first(self.norm(to_channels_last(x)))

    def get_flows(self, clip: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Estimate the flows of a clip `[B, T, C, H, W]` over 1 .. pa_frames / 2 frames.

        Returns:
            Two flat lists as `forward_features` takes them; empty without a flow estimator.
        """
        if self.spynet is None:
            return [], []
        is_learned = clip.requires_grad or any(p.requires_grad for p in self.spynet.parameters())
        with (
            torch.autocast(clip.device.type, enabled=False),
            torch.set_grad_enabled(torch.is_grad_enabled() and is_learned),
        ):
            backward, forward = adjacent_flows(self.spynet, clip)
            return longer_flows(backward, forward, self.pa_frames // 2)
