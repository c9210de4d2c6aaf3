"""Names and shapes of the published state dicts, and what the constructor refuses."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from tests.vrt_cases import INDEX, golden_net, manifests, small_net
from third_party.VRT.models.network_vrt import VRT

OPTIONS = Path(__file__).parents[1] / "configs/vrt"


@pytest.mark.parametrize("task", ["deblur", "denoise", "sr_16frames", "vfi"])
def test_state_dict_is_the_published_one(task):
    manifest = manifests()[task]
    for arguments in manifest["constructors"].values():
        with torch.device("meta"):
            net = VRT(**arguments)
        state = net.state_dict()
        assert {key: list(value.shape) for key, value in state.items()} == manifest["shapes"]
        buffers = {name: str(b.dtype).split(".")[1] for name, b in net.named_buffers()}
        assert buffers == manifest["buffer_dtypes"]
        assert sum(p.numel() for p in net.parameters()) == manifest["total_parameters"]


def test_base_options_are_the_published_deblurring_network():
    options = yaml.safe_load((OPTIONS / "vrt_base.yaml").read_text())
    (published, *_) = manifests()["deblur"]["constructors"].values()
    assert {key: options[key] for key in published} == published
    with torch.device("meta"):
        assert len(VRT(**options).state_dict()) == 1526


def test_golden_weights_are_filled_as_stated():
    parameters = dict(golden_net("deblur_pa2").named_parameters())
    for key, wanted in INDEX["fill_check"]["deblur_pa2"].items():
        value = parameters[key].detach()
        assert value.flatten()[:3].tolist() == pytest.approx(wanted["first"], abs=1e-7)
        assert float(value.double().sum()) == pytest.approx(wanted["sum"], abs=1e-4)


def test_initial_values():
    torch.manual_seed(0)
    net = VRT(**{**INDEX["configs"]["deblur_pa2"], "embed_dims": [24] * 11, "num_heads": [2] * 11})
    deform = net.stage1.pa_deform
    assert not deform.conv_offset[6].weight.any()
    assert not deform.conv_offset[6].bias.any()
    assert not deform.bias.any()
    bound = 1 / math.sqrt(9 * 24)
    assert 0.9 * bound < float(deform.weight.detach().abs().max()) <= bound
    table = net.stage1.residual_group1.blocks[0].attn.relative_position_bias_table.detach()
    assert 0.015 < float(table.std()) < 0.025


def test_stochastic_depth_rates_start_over_in_the_second_group():
    net = small_net(depths=[4, 1, 1, 1, 1, 1, 2, 2], drop_path_rate=0.6)
    rates = torch.linspace(0, 0.6, 13).tolist()
    first, second = net.stage1.residual_group1, net.stage1.residual_group2
    assert [b.drop_path for b in first.blocks] == pytest.approx(rates[:2])
    assert [b.drop_path for b in second.blocks] == pytest.approx(rates[:2])
    assert net.stage8[1].residual_group.blocks[1].drop_path == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1] * 7}, "at least 8; they have 7, 8 and 8"),
        ({"num_heads": [3] * 8}, r"embed_dims\[0\]=8 is not divisible by num_heads\[0\]=3"),
        ({"embed_dims": [6] + [8] * 7}, r"embed_dims\[0\]=6: layers with mutual attention"),
        (
            {"embed_dims": [8, 8, 8, 8, 12, 8, 8, 8]},
            r"\[4\]=12 must equal embed_dims\[2\]",
        ),
        ({"embed_dims": [8, 8, 8, 10, 8, 8, 8, 8]}, r"embed_dims\[3\]=10 must be divisible by 4"),
        (
            {"depths": [1] * 9, "embed_dims": [8] * 8 + [16], "num_heads": [2] * 9},
            r"embed_dims\[7:\]=\[8, 16\] must all be equal",
        ),
        ({"pa_frames": 3}, "pa_frames=3: give 2, 4 or 6"),
        ({"pa_frames": 4, "deformable_groups": 3}, "deformable_groups=3 must be divisible by"),
        ({"pa_frames": 6, "deformable_groups": 6}, r"embed_dims\[0\]=8 must be divisible by"),
        ({"deformable_groups": 3}, "= 8 must be divisible by deformable_groups=3"),
        ({"indep_reconsts": [3]}, r"\[3\] are not layers of stage 8, which has the layers 7 to 7"),
        ({"window_size": [8, 8]}, r"window_size=\[8, 8\]: give frames, rows and columns"),
        ({"pa_frames": 0, "out_chans": 4}, "out_chans=4: an interpolation network"),
        ({"pa_frames": 0, "img_size": [1, 8, 8]}, r"img_size\[0\]=1: interpolation needs 2"),
        ({"upscale": 5}, "upscale=5"),
    ],
)
def test_constructor_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        small_net(**changes)
