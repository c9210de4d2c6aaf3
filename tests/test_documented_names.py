"""The calls that DESIGN prints, by position and by keyword, and weights under earlier names."""

import copy
import inspect
import re

import pytest
import torch
from torch import nn

from src.config import load_config
from src.config_schema import FORMER_KEYS
from src.data.datasets.spike_deblur_dataset import SpikeDeblurDataset
from src.data.datasets.voxelizer import voxelize
from src.engine.checkpoint import load_checkpoint
from src.inference.load import load_model
from src.losses.charbonnier import CharbonnierLoss
from src.losses.vgg_perceptual import VGGPerceptualLoss
from src.models.build import build_model
from src.models.fusion.cross_attn_temporal import (
    MultiScaleTemporalCrossAttnFuse,
    TemporalCrossAttnFuse,
)
from src.models.integrate_vrt import VRTWithSpike
from src.models.spike_encoder3d import SpikeEncoder3D
from src.models.spike_temporal_sa import SpikeTemporalSA, TemporalSelfAttentionBlock
from src.models.weights import FORMER_NAMES, convert_keys, load_weights
from src.paths import REPO_ROOT
from src.utils.attention import ChunkSettings
from tests.attention_cases import with_random_weights
from tests.model_cases import (
    build_look_alike,
    build_tiny_vrt,
    build_with_spike,
    clip_and_voxels,
    wake_up,
)
from tests.training_cases import write_run

CHUNKS = {"ADAPTIVE_CHUNK": True, "MAX_BATCH_TOKENS": 40, "CHUNK_SIZE": 64, "CHUNK_SHAPE": "wide"}
WIDTHS = (96, 96, 96, 96)
# Per call: what it takes, in order, with the defaults that the documents print.
ATTENTION = {"heads": 4, "dropout": 0.0, "mlp_ratio": 2, "chunk_cfg": None}
PRINTED = {
    VRTWithSpike: {
        "vrt_backbone": ...,
        "spike_bins": 32,
        "channels_per_scale": WIDTHS,
        "temporal_strides": (1, 1, 1),
        "spatial_strides": (2, 2, 2),
        **{f"tsa_{name}": value for name, value in ATTENTION.items()},
        **{f"fuse_{name}": value for name, value in ATTENTION.items()},
        "fuse_time_slope": 8.0,
    },
    SpikeEncoder3D: {
        "in_bins": 32,
        "channels_per_scale": WIDTHS,
        "temporal_strides": (1, 1, 1),
        "spatial_strides": (2, 2, 2),
    },
    TemporalSelfAttentionBlock: {"dim": ..., **ATTENTION},
    SpikeTemporalSA: {"channels_per_scale": ..., **ATTENTION},
    TemporalCrossAttnFuse: {"dim": ..., **ATTENTION, "time_slope": 8.0},
    MultiScaleTemporalCrossAttnFuse: {"channels_per_scale": WIDTHS, **ATTENTION, "time_slope": 8.0},
    CharbonnierLoss: {"delta": 1e-3},
    VGGPerceptualLoss: {"layers": ("relu3_3",)},
    voxelize: {"events": ..., "t0": ..., "t1": ..., "H": ..., "W": ..., "K": 32},
    SpikeDeblurDataset.from_config: {"cfg": ..., "split": ...},
    VRTWithSpike.forward: {"self": ..., "rgb_clip": ..., "spike_vox": None},
    SpikeTemporalSA.forward: {"self": ..., "feats": ...},
    TemporalCrossAttnFuse.forward: {"self": ..., "Fr": ..., "Fs": ...},
    MultiScaleTemporalCrossAttnFuse.forward: {"self": ..., "Fr_list": ..., "Fs_list": ...},
}


@pytest.mark.parametrize("call", PRINTED, ids=lambda call: call.__qualname__)
def test_the_printed_arguments_come_first_with_the_printed_defaults(call):
    found = {
        name: ... if parameter.default is inspect.Parameter.empty else parameter.default
        for name, parameter in inspect.signature(call).parameters.items()
    }
    assert list(found.items())[: len(PRINTED[call])] == list(PRINTED[call].items())


def test_the_whole_model_by_position_and_by_keyword():
    settings = [3, [8] * 4, (1, 1, 1), (2, 2, 2), 2, 0.0, 3, CHUNKS, 4, 0.0, 1, CHUNKS, 2.0]
    names = list(PRINTED[VRTWithSpike])[1:]
    torch.manual_seed(1)
    by_position = wake_up(VRTWithSpike(build_look_alike(), *settings)).eval()
    torch.manual_seed(1)
    by_name = VRTWithSpike(
        vrt_backbone=build_look_alike(), **dict(zip(names, settings, strict=True))
    )
    rgb, voxels = clip_and_voxels(1, 3)
    restored = by_position(rgb_clip=rgb, spike_vox=voxels)
    assert torch.equal(wake_up(by_name).eval()(rgb, voxels), restored)

    # The same, put together from the attributes by hand.
    assert isinstance(by_position.spike_encoder, SpikeEncoder3D)
    maps = by_position.spike_temporal_sa(by_position.spike_encoder(voxels))
    blocks = by_position.cross_attn_fuse.fuse_blocks
    assert [block.time_slope for block in blocks] == [2.0] * 4
    want = by_position.vrt.forward_hooked(
        rgb, lambda i, x: blocks[i](x.transpose(1, 2), maps[i].transpose(1, 2)).transpose(1, 2)
    )
    assert torch.equal(restored, want)


def test_attention_parameters_are_the_documented_ones():
    layers = {
        TemporalSelfAttentionBlock: ("ln1", "attn", "ln2", "mlp.0", "mlp.2"),
        TemporalCrossAttnFuse: ("ln_q", "ln_kv", "attn", "ln_ffn", "ffn.0", "ffn.2"),
    }
    for kind, names in layers.items():
        block, seen = kind(8), []
        for key in block.state_dict():
            layer = key.rpartition(".")[0].removesuffix(".out_proj")
            if layer not in seen:
                seen.append(layer)
        assert tuple(seen) == names
        nn.MultiheadAttention(8, 4).load_state_dict(block.attn.state_dict())


WRONG = [
    (lambda: TemporalSelfAttentionBlock([8, 8]), r"dim is \[8, 8\]; a whole number"),
    (lambda: SpikeTemporalSA([8, None]), "an entry of channels_per_scale is None"),
    (lambda: SpikeEncoder3D(3, 96), "channels_per_scale is 96; a list"),
    (lambda: TemporalSelfAttentionBlock(8, chunk_cfg=64), "chunk_cfg is 64; a dict"),
    (lambda: TemporalCrossAttnFuse(8, dropout="0"), "DROPOUT is '0'; a number"),
    (lambda: ChunkSettings("false"), "ADAPTIVE_CHUNK is 'false'; true or false"),
    (lambda: ChunkSettings(chunk_size=1.5), "CHUNK_SIZE is 1.5; a whole number"),
    (lambda: SpikeEncoder3D(3, [8] * 4, None), "TEMPORAL_STRIDES is None; a list"),
    (lambda: VRTWithSpike(build_look_alike(), 3, [8] * 4, (1, 1, 1), 2), "SPATIAL_STRIDES is 2"),
    (lambda: VRTWithSpike({"depths": []}), "vrt_backbone is a dict; a VRT"),
    (lambda: VRTWithSpike(nn.Linear(1, 1)), "vrt_backbone is a Linear; a VRT"),
]


@pytest.mark.parametrize(("build", "message"), WRONG)
def test_wrong_types_get_a_sentence(build, message):
    with pytest.raises(TypeError, match=message):
        build()
    known = "it takes ADAPTIVE_CHUNK, MAX_BATCH_TOKENS, CHUNK_SIZE"
    with pytest.raises(ValueError, match=f"unknown key 'HEADS'; {known}"):
        TemporalSelfAttentionBlock(8, chunk_cfg={"HEADS": 4})


def test_the_data_set_of_a_configuration(tmp_path):
    cfg = load_config(write_run(tmp_path))
    train, val = (SpikeDeblurDataset.from_config(cfg, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 4)  # runs of 2 among 5 frames of 2 and 1 sequences
    assert train[0]["blur"].shape == (2, 3, 32, 32)
    assert val[0]["blur"].shape == (2, 3, 32, 48)
    assert val[0]["spike_vox"].dtype == torch.float32
    assert torch.equal(val[0]["sharp"], val[0]["sharp"])
    with pytest.raises(ValueError, match="split is 'test'; the splits are 'train' and 'val'"):
        SpikeDeblurDataset.from_config(cfg, split="test")


FORMER = {
    **{"spike_temporal_sa.blocks.": "spike_tsa.", "cross_attn_fuse.fuse_blocks.": "fuse.scales."},
    **{".ln1.": ".norm1.", ".ln2.": ".norm2.", ".ln_q.": ".norm_rgb."},
    **{".ln_kv.": ".norm_spike.", ".ln_ffn.": ".norm_mlp."},
    **{f".{mlp}.{2 * i}.": f".mlp.fc{i + 1}." for mlp in ("ffn", "mlp") for i in (0, 1)},
}


def under_former_names(state):
    """Return the state dict as it was saved before the attentions were renamed."""
    former = {}
    for key, value in state.items():
        if not key.startswith("vrt."):
            for now, before in FORMER.items():
                key = key.replace(now, before)
        former[key] = value
    assert not former.keys() & {key for key in state if "ln" in key}
    return former


def test_former_names_are_converted_in_order_and_only_them():
    state = build_with_spike(build_tiny_vrt()).state_dict()
    former = under_former_names(state)
    # VRT has layers `norm1` and `mlp.fc11` of its own, which keep their names.
    assert sum(key not in state for key in former) == 4 * (12 + 14)
    assert list(convert_keys(former)) == list(convert_keys(state)) == list(state)


def test_weights_under_former_names_give_the_same_pictures(tmp_path):
    """As MODEL.PRETRAINED and for test.py, whose model depends on every one of them."""
    cfg = load_config(write_run(tmp_path))
    model = build_model(cfg).eval()
    with_random_weights(model.cross_attn_fuse)
    rgb, voxels = clip_and_voxels(1, 2, (64, 64), (32, 32), bins=4)
    want = model(rgb, voxels)
    stored = {
        "format": 1,
        "model": under_former_names(model.state_dict()),
        "config": cfg.dump(),
        "progress": {"step": 1},
    }
    path = tmp_path / "old.pth"
    torch.save(stored, path)
    other = copy.deepcopy(model)
    with_random_weights(other)
    load_weights(other, path, require_all=True)
    assert torch.equal(other(rgb, voxels), want)
    assert torch.equal(load_model(path, None, []).model.eval()(rgb, voxels), want)
    assert list(load_checkpoint(path)["model"]) == list(model.state_dict())


def test_the_page_from_older_code_has_every_name():
    text = (REPO_ROOT / "docs" / "FROM_OLDER_CODE.md").read_text(encoding="utf-8")
    model = build_with_spike(build_look_alike())
    for former, (current, layers) in FORMER_NAMES.items():
        assert f"| `{former}` | `{current}` |" in text
        rows = text.partition(f"Within `{current}.N`")[2].partition("\n\n")[2].partition("\n\n")[0]
        assert dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", rows, re.MULTILINE)) == layers
        for layer in layers.values():
            assert model.get_submodule(f"{current}.0.{layer}")
    for former, current in FORMER_KEYS.items():
        assert f"| `{former}` | `{current}` |" in text
    calls = text.partition("## Calls")[2].partition("## Attributes")[0]
    printed = {call.__name__: arguments for call, arguments in PRINTED.items()}
    shown = re.findall(r"\| `(\w+)\(([^`]*)\)`[^|]*\|$", calls, re.MULTILINE)
    assert len(shown) >= 4
    for name, arguments in shown:
        if name in printed:
            for part in arguments.split(", "):
                argument, _, default = part.partition("=")
                known = printed[name]
                assert part == "..." or argument in known
                assert not default or default == str(known[argument]), part
