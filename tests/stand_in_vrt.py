"""The smallest thing that looks like a VRT, in one file that imports nothing of this project.

It has the upstream's constructor, attributes and call signatures, and nothing that only ours has.
`test_drop_in.py` puts a copy of it in the place of third_party/VRT.
"""

import torch
from torch import nn
from torch.nn import functional as F

SCALES = (0, 1, 2, 3, 2, 1, 0)


class SpyNet(nn.Module):
    """Two frames [N, 3, H, W] to flows [N, 2, H / 2^k, W / 2^k], k = 0..3."""

    def __init__(self):
        super().__init__()
        self.basic_module = nn.ModuleList([nn.Conv2d(6, 2, 3, padding=1)])

    def forward(self, ref, supp):
        flow = torch.tanh(self.basic_module[0](torch.cat((ref, supp), dim=1)))
        return [F.avg_pool2d(flow, 2**k) for k in range(4)]


class MutualAttention(nn.Module):
    """Only the shapes from which the smallest size is read."""

    def __init__(self, width, window):
        super().__init__()
        self.register_buffer("position_bias", torch.zeros(1, window[1] * window[2], width))
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, 1))

    def bias_mean(self):
        return self.relative_position_bias_table.mean()


class Stage(nn.Module):
    """Takes features and the flows of its scale; halves or doubles the size where VRT does."""

    def __init__(self, width, window, scale, previous_scale):
        super().__init__()
        self.window, self.scale, self.previous_scale = window, scale, previous_scale
        block = nn.ModuleDict({"attn": MutualAttention(width, window)})
        self.residual_group1 = nn.ModuleDict({"blocks": nn.ModuleList([block])})
        self.linear1 = nn.Linear(width, width)
        self.conv = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x, flows_backward, flows_forward):
        if self.scale > self.previous_scale:
            x = F.avg_pool3d(x, (1, 2, 2))
        elif self.scale < self.previous_scale:
            x = F.interpolate(x, scale_factor=(1, 2, 2))
        _, _, frames, height, width = x.shape
        assert frames >= self.window[0]
        assert min(height, width) >= self.window[1]
        assert len(flows_backward) == len(flows_forward) == 1
        for flow in (*flows_backward, *flows_forward):
            assert flow.shape[1:] == (frames - 1, 2, height, width), "flows of another scale"
        y = self.linear1(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        x = x + F.gelu(self.conv(y)) * (1 + self.residual_group1["blocks"][0]["attn"].bias_mean())
        backward, forward = flows_backward[0], flows_forward[0]
        return x + (backward - forward).mean((1, 2, 3, 4), keepdim=True)


class VRT(nn.Module):
    """Clips [B, T, 3, H, W], sides multiples of 8, to the same; of its arguments few count."""

    def __init__(
        self,
        upscale=4,
        in_chans=3,
        out_chans=3,
        img_size=(6, 64, 64),
        window_size=(2, 2, 2),
        depths=(1,) * 9,
        indep_reconsts=(),
        embed_dims=(8,) * 9,
        num_heads=(1,) * 9,
        mul_attn_ratio=0.75,
        mlp_ratio=2.0,
        qkv_bias=True,
        qk_scale=None,
        drop_path_rate=0.2,
        norm_layer=nn.LayerNorm,
        spynet_path=None,
        pa_frames=2,
        deformable_groups=16,
        recal_all_flows=False,
        nonblind_denoising=False,
        use_checkpoint_attn=False,
        use_checkpoint_ffn=False,
        no_checkpoint_attn_blocks=(),
        no_checkpoint_ffn_blocks=(),
    ):
        super().__init__()
        width = embed_dims[0]
        self.conv_first = nn.Conv3d(in_chans, width, (1, 3, 3), padding=(0, 1, 1))
        self.spynet = SpyNet()
        if spynet_path is not None:
            self.spynet.load_state_dict(torch.load(spynet_path, weights_only=True)["params"])
        for i, scale in enumerate(SCALES):
            stage = Stage(width, window_size, scale, SCALES[max(0, i - 1)])
            self.add_module(f"stage{i + 1}", stage)
        self.stage8 = nn.ModuleList(
            nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1)) for _ in depths[7:]
        )
        self.norm = norm_layer(width)
        self.conv_after_body = nn.Linear(width, width)
        self.conv_last = nn.Conv3d(width, out_chans, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x):
        assert x.shape[3] % 8 == 0
        assert x.shape[4] % 8 == 0
        features = self.conv_first(x.transpose(1, 2))
        body = self.forward_features(features, *self.get_flows(x))
        body = self.conv_after_body(body.transpose(1, 4)).transpose(1, 4)
        return self.conv_last(features + body).transpose(1, 2) + x

    def get_flows(self, x):
        pairs = (len(x), x.shape[1] - 1)
        before, after = x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)
        both = (self.spynet(before, after), self.spynet(after, before))
        return [[flow.unflatten(0, pairs) for flow in flows] for flows in both]

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
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)
