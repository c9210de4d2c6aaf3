"""Goldens of VRT: how they are read, the weights they were made with, and small networks."""

import gzip
import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from third_party.VRT.models.network_vrt import VRT

GOLDENS = Path(__file__).parent / "goldens"
INDEX = json.loads((GOLDENS / "index.json").read_text())


def manifests():
    with gzip.open(GOLDENS / "vrt_manifests.json.gz", "rt") as handle:
        return json.load(handle)


def load(name):
    """Read a golden as tensors; dots in names become part of the key as they are."""
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def parameters_of(name):
    return INDEX["files"][f"{name}.npz"]


def weights_of(golden):
    return {key[2:]: value for key, value in golden.items() if key.startswith("w.")}


def load_weights(module, golden):
    """Load the parameters of a block; its buffers must come out right by themselves."""
    module.load_state_dict({**dict(module.named_buffers()), **weights_of(golden)})
    return module.eval()


def golden_value(key, shape):
    """Weights from a name alone, with which the goldens were made."""
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    flow = "spynet." in key
    if key.endswith("relative_position_bias_table"):
        value = 0.5 * z
    elif len(shape) == 1:
        value = 1.0 + 0.1 * z if key.endswith("weight") else (0.02 if flow else 0.05) * z
    else:
        if flow and key.endswith("basic_module.8.weight"):
            z = z - z.mean(axis=(2, 3), keepdims=True)
        value = _gain(key, flow) / math.sqrt(math.prod(shape[1:])) * z
    return torch.from_numpy(value.astype(np.float32))


def _gain(key, flow):
    if flow:
        return 0.4 if key.endswith("basic_module.8.weight") else 1.7
    if key.endswith("conv_offset.6.weight"):
        return 1.0
    if "pa_fuse." in key:
        return 0.85
    if key.startswith(("conv_before_upsample", "upsample", "conv_last", "linear_fuse")):
        return 1.4
    return 0.7


def fill(model, prefix=""):
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(golden_value(prefix + key, parameter.shape))
    return model.eval()


def golden_net(config, **changes):
    return fill(VRT(**INDEX["configs"][config], **changes))


def small_net(seed=0, **changes):
    """A network that takes clips from 2 frames of 32 x 32 on, with weights that matter."""
    arguments = {
        "upscale": 1,
        "img_size": [2, 32, 32],
        "window_size": [2, 4, 4],
        "depths": [2, 1, 1, 1, 1, 1, 2, 2],
        "indep_reconsts": [],
        "embed_dims": [8] * 8,
        "num_heads": [2] * 8,
        "mul_attn_ratio": 0.5,
        "drop_path_rate": 0.0,
        "deformable_groups": 2,
    }
    arguments.update(changes)
    torch.manual_seed(seed)
    return fill(VRT(**arguments))


def smallest_net(**changes):
    """One mutual block in stage 1 only: takes clips from 8 x 8 pixels on."""
    arguments = {"depths": [2, 1, 1, 1, 1, 1, 1, 1], "window_size": [2, 4, 4]}
    return small_net(**{**arguments, **changes})


def smooth_clip(frames, height, width, batch=1, channels=3, dtype=torch.float32):
    """A moving pattern whose four-nearest warp has no ties."""
    rows = torch.arange(height).view(1, 1, 1, -1, 1) / 11.3
    columns = torch.arange(width).view(1, 1, 1, 1, -1) / 7.7
    time = torch.arange(frames).view(1, -1, 1, 1, 1) / 2.9
    item = torch.arange(batch).view(-1, 1, 1, 1, 1)
    channel = torch.arange(channels).view(1, 1, -1, 1, 1)
    wave = torch.sin(rows + time + channel + item) * torch.cos(columns - time + 0.3 * channel)
    return (0.5 + 0.45 * wave).to(dtype)


def largest_difference(a, b):
    return float((a.detach().double() - b.detach().double()).abs().max())
