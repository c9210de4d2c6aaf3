"""Builders for the tests of the spike model, and the smallest thing that looks like a VRT."""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from src.models.integrate_vrt import VRTWithSpike
from third_party.VRT.models.network_vrt import VRT

SCALES = (0, 1, 2, 3, 2, 1, 0)


WINDOW = (2, 2, 2)


class MutualAttention(nn.Module):
    """Only the shapes from which the smallest size is read."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("position_bias", torch.zeros(1, WINDOW[1] * WINDOW[2], width))
        rows = (2 * WINDOW[0] - 1) * (2 * WINDOW[1] - 1) * (2 * WINDOW[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, 1))

    def bias_mean(self):
        return self.relative_position_bias_table.mean()


class Stage(nn.Module):
    """Takes features and the flows of its scale; halves or doubles the size where VRT does."""

    def __init__(self, width, scale, previous_scale):
        super().__init__()
        self.scale, self.previous_scale = scale, previous_scale
        block = nn.ModuleDict({"attn": MutualAttention(width)})
        self.residual_group1 = nn.ModuleDict({"blocks": nn.ModuleList([block])})
        self.linear1 = nn.Linear(width, width)
        self.conv = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x, flows_backward, flows_forward):
        if self.scale > self.previous_scale:
            x = F.avg_pool3d(x, (1, 2, 2))
        elif self.scale < self.previous_scale:
            x = F.interpolate(x, scale_factor=(1, 2, 2))
        _, _, frames, height, width = x.shape
        assert frames >= WINDOW[0]
        assert min(height, width) >= WINDOW[1]
        assert len(flows_backward) == len(flows_forward) == 1
        for flow in (*flows_backward, *flows_forward):
            assert flow.shape[1:] == (frames - 1, 2, height, width), "flows of another scale"
        y = self.linear1(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        x = x + F.gelu(self.conv(y)) * (1 + self.residual_group1["blocks"][0]["attn"].bias_mean())
        backward, forward = flows_backward[0], flows_forward[0]
        return x + (backward - forward).mean((1, 2, 3, 4), keepdim=True)


class LookAlike(nn.Module):
    """Has the attributes and call signatures that the integration relies on, nothing else."""

    def __init__(self, width=8):
        super().__init__()
        self.conv_first = nn.Conv3d(3, width, (1, 3, 3), padding=(0, 1, 1))
        for i, scale in enumerate(SCALES):
            self.add_module(f"stage{i + 1}", Stage(width, scale, SCALES[max(0, i - 1)]))
        self.stage8 = nn.ModuleList(
            nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.conv_after_body = nn.Linear(width, width)
        self.conv_last = nn.Conv3d(width, 3, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x):
        n, d, _, h, w = x.shape
        assert h % 8 == 0
        assert w % 8 == 0
        step = x.mean(2, keepdim=True)[:, 1:] - x.mean(2, keepdim=True)[:, :-1]
        step = step.expand(n, d - 1, 2, h, w)
        flows = [F.avg_pool3d(step, (1, 2**k, 2**k)) for k in range(4)]
        features = self.conv_first(x.transpose(1, 2))
        body = self.forward_features(features, flows, [-f for f in flows])
        body = self.conv_after_body(body.transpose(1, 4)).transpose(1, 4)
        return self.conv_last(features + body).transpose(1, 2) + x

    def forward_features(self, x, flows_backward, flows_forward):
        x1 = self.stage1(x, flows_backward[0::4], flows_forward[0::4])
        x2 = self.stage2(x1, flows_backward[1::4], flows_forward[1::4])
        x3 = self.stage3(x2, flows_backward[2::4], flows_forward[2::4])
        x4 = self.stage4(x3, flows_backward[3::4], flows_forward[3::4])
        x = self.stage5(x4, flows_backward[2::4], flows_forward[2::4])
        x = self.stage6(x + x3, flows_backward[1::4], flows_forward[1::4])
        x = self.stage7(x + x2, flows_backward[0::4], flows_forward[0::4])
        x = x + x1
        for layer in self.stage8:
            x = layer(x)
        x = rearrange(x, "n c d h w -> n d h w c")
        return rearrange(self.norm(x), "n d h w c -> n c d h w")


def build_look_alike(seed=0):
    torch.manual_seed(seed)
    return LookAlike()


TINY_VRT = {
    "upscale": 1,
    "window_size": [2, 2, 2],
    "depths": [2] * 7 + [1, 1],
    "indep_reconsts": [8],
    "embed_dims": [8] * 7 + [12] * 2,
    "num_heads": [2] * 9,
    "pa_frames": 2,
    "deformable_groups": 2,
    "drop_path_rate": 0.0,
}


def build_tiny_vrt(seed=0, **changes):
    torch.manual_seed(seed)
    return VRT(**(TINY_VRT | changes))


VRTS = {"look-alike": build_look_alike, "ours": build_tiny_vrt}


def build_with_spike(vrt, bins=3, seed=1, **settings):
    torch.manual_seed(seed)
    width = vrt.state_dict()["stage1.linear1.weight"].shape[0]
    settings = {"tsa_heads": 2, "fuse_heads": 2} | settings
    return VRTWithSpike(vrt, bins, [width] * 4, **settings)


def clip_and_voxels(batch=1, frames=2, size=(16, 24), spike_size=None, bins=3, seed=2):
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(batch, frames, 3, *size, generator=generator)
    voxels = torch.randn(batch, frames, bins, *(spike_size or size), generator=generator)
    return rgb, voxels


def wake_up(model, seed=3):
    """Give the fusion's last projections values, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for fuse in model.cross_attn_fuse.fuse_blocks:
        for last in (fuse.attn.out_proj, fuse.ffn[2]):
            last.weight.data.normal_(0, 0.3, generator=generator)
    return model
