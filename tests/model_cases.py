"""Builders for the tests of the spike model."""

import torch

from src.models.integrate_vrt import VRTWithSpike
from tests import stand_in_vrt
from third_party.VRT.models.network_vrt import VRT


def build_look_alike(seed=0):
    torch.manual_seed(seed)
    return stand_in_vrt.VRT()


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
