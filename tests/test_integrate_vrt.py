"""VRT opened for spikes, over our VRT and over a look-alike with the documented interface only."""

import pytest
import torch
from torch.nn import functional as F

from src.models.integrate_vrt import RGBOnly, StageHook, VRTWithSpike, add_stage_hook, pad_clip
from tests.model_cases import (
    VRTS,
    build_look_alike,
    build_tiny_vrt,
    build_with_spike,
    clip_and_voxels,
    wake_up,
)

SIZES = [
    pytest.param(2, (16, 24), None, id="as VRT takes it"),
    pytest.param(3, (24, 16), (12, 8), id="spikes at half the resolution"),
    pytest.param(1, (13, 27), (7, 13), id="one frame, odd size"),
    pytest.param(2, (5, 3), (9, 2), id="smaller than the window"),
]


@pytest.fixture(params=VRTS, name="build")
def _build(request):
    return VRTS[request.param]


@torch.no_grad()
@pytest.mark.parametrize(("frames", "size", "spike_size"), SIZES)
def test_a_new_model_is_its_vrt_bit_for_bit(build, frames, size, spike_size):
    model, plain = build_with_spike(build()).eval(), RGBOnly(build()).eval()
    rgb, voxels = clip_and_voxels(2, frames, size, spike_size)
    want = plain(rgb)
    assert want.shape == rgb.shape
    assert torch.equal(model(rgb, voxels), want)
    assert torch.equal(model(rgb), want)
    assert torch.equal(plain(rgb, voxels), want)
    woken = wake_up(model)(rgb, voxels)
    assert not torch.allclose(woken, want), "the spikes must reach the output"
    assert torch.equal(model(rgb), want), "without spikes nothing is fused"


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"pa_frames": 6, "embed_dims": [12] * 9, "deformable_groups": 6},
        {"upscale": 2},
        {"pa_frames": 0, "img_size": [2, 16, 16]},
    ],
    ids=str,
)
def test_other_kinds_of_vrt(changes):
    plain = build_tiny_vrt(**changes).eval()
    model = build_with_spike(build_tiny_vrt(**changes)).eval()
    rgb, voxels = clip_and_voxels(1, 2, (17, 16), (8, 8))
    want = plain(rgb)
    assert torch.equal(model(rgb, voxels), want)
    assert not torch.allclose(wake_up(model)(rgb, voxels), want)


@torch.no_grad()
def test_under_autocast_a_new_model_is_its_vrt_too(build):
    rgb, voxels = clip_and_voxels(1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(build_with_spike(build()).eval()(rgb, voxels), build().eval()(rgb))


@torch.no_grad()
@pytest.mark.parametrize(
    ("frames", "size", "factor", "extent"),
    [(1, (13, 27), 1, (2, 16, 32)), (3, (12, 20), 2, (3, 16, 24))],
)
def test_what_is_padded_inside_equals_what_is_padded_by_hand(frames, size, factor, extent):
    model = wake_up(build_with_spike(build_look_alike()))
    small = tuple(side // factor for side in size)
    rgb, voxels = clip_and_voxels(1, frames, size, small)
    by_hand = [pad_clip(rgb, extent)]
    by_hand.append(pad_clip(voxels, (extent[0], extent[1] // factor, extent[2] // factor)))
    want = model(*by_hand)[:, :frames, :, : size[0], : size[1]]
    assert torch.equal(model(rgb, voxels), want)


@torch.no_grad()
def test_our_vrt_pads_as_we_do():
    rgb, _ = clip_and_voxels(1, 1, (13, 27))
    assert torch.equal(build_tiny_vrt().eval()(rgb), RGBOnly(build_tiny_vrt()).eval()(rgb))


def test_every_new_parameter_gets_a_gradient(build):
    """In step one only the zero projections learn: they are all that the loss can see. Once they
    are no longer zero, at the second backward pass, every new parameter has a gradient.
    """
    model = build_with_spike(build())
    rgb, voxels = clip_and_voxels(1, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with_gradient = []
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(model(rgb, voxels), torch.zeros_like(rgb)).backward()
        new = {k: p for k, p in model.named_parameters() if not k.startswith("vrt.")}
        assert all(p.grad is not None for p in new.values()), "DDP needs one for each"
        with_gradient.append({k for k, p in new.items() if p.grad.abs().max() > 0})
        optimizer.step()
    last = {
        k for k in new if k.startswith("cross_attn_fuse.") and ("out_proj" in k or ".ffn.2." in k)
    }
    assert with_gradient[0] == last
    # A bias of the keys moves all scores of a query alike, which the softmax does not see; it
    # shares its tensor with the biases of query and value, so the tensor has a gradient.
    assert with_gradient[1] == set(new)


@torch.no_grad()
def test_skip_connections_carry_fused_features():
    """What is fused after a stage reaches the next stage and the matching skip connection."""
    vrt, rgb = build_look_alike(), clip_and_voxels(1, 2)[0]
    add_stage_hook(vrt)
    inputs, outputs, fused = {}, {}, {}
    for name in [*(f"stage{i}" for i in range(1, 8)), "stage8.0"]:
        vrt.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: (
                inputs.update({name: args[0]}) or outputs.update({name: out})
            )
        )

    def after_stage(index, features):
        fused[index] = features + 10.0 ** (index + 1)
        return fused[index]

    vrt.forward_hooked(rgb, after_stage)
    for i in range(4):
        assert torch.equal(inputs[f"stage{i + 2}"], fused[i])
    for name, before, skip in (("6", "5", 2), ("7", "6", 1), ("8.0", "7", 0)):
        assert torch.equal(inputs[f"stage{name}"], outputs[f"stage{before}"] + fused[skip])


def test_opening_twice_is_refused():
    vrt = build_look_alike()
    build_with_spike(vrt)
    with pytest.raises(RuntimeError, match="has a stage hook already"):
        build_with_spike(vrt)


def test_other_models_are_untouched(build):
    first, second = build(), build()
    kind = type(second)
    build_with_spike(first)
    assert isinstance(first, StageHook)
    assert isinstance(first, kind)
    assert type(second) is kind
    assert not hasattr(kind, "after_stage")
    assert set(first.state_dict()) == set(second.state_dict())
    first.load_state_dict(second.state_dict())  # plain weights load strictly


def test_nothing_stays_on_vrt_after_an_error():
    model, rgb = wake_up(build_with_spike(build_look_alike())), clip_and_voxels()[0]
    want = model(rgb)

    def fail(index, features):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.vrt.forward_hooked(rgb, fail)
    assert model.vrt.after_stage is None
    assert torch.equal(model(rgb), want)


def test_temporal_strides_and_any_spike_resolution():
    torch.manual_seed(0)
    model = VRTWithSpike(build_look_alike(), 3, [8] * 4, (2, 1, 2), (1, 2, 2))
    rgb, voxels = clip_and_voxels(1, 5, (16, 16), (10, 7))
    maps = model.encode_spikes(voxels)
    assert [tuple(m.shape[2:]) for m in maps] == [(5, 10, 7), (3, 10, 7), (3, 5, 4), (2, 3, 2)]
    wake_up(model)(rgb, voxels).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.spike_encoder.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"channels_per_scale": [12] * 4},
            r"MODEL.CHANNELS_PER_SCALE is \[12, 12, 12, 12\]; VRT has 8 channels in stages 1-4; "
            r"write \[8, 8, 8, 8\]",
        ),
        ({"channels_per_scale": [8] * 3}, r"is \[8, 8, 8\]; VRT has 8 channels"),
        (
            {"spatial_strides": (2, 4, 1)},
            r"SPATIAL_STRIDES is \[2, 4, 1\]: scale 3 of the spikes has stride 8, VRT's stage 3 "
            r"has 4",
        ),
        ({"temporal_strides": (1, 1)}, r"TEMPORAL_STRIDES is \[1, 1\]; 4 scales need 3 strides"),
        ({"tsa_heads": 3}, "HEADS is 3; it must divide the 8 channels"),
        ({"fuse_heads": 5}, "HEADS is 5; it must divide the 8 channels"),
    ],
)
def test_what_cannot_match_vrt_is_refused_at_construction(settings, message):
    vrt = build_look_alike()
    with pytest.raises(ValueError, match=message):
        VRTWithSpike(vrt, **({"spike_bins": 3, "channels_per_scale": [8] * 4} | settings))
    assert not isinstance(vrt, StageHook), "a refused VRT stays as it was"


def test_voxels_of_another_clip_are_refused():
    model, (rgb, voxels) = build_with_spike(build_look_alike()), clip_and_voxels(1, 3)
    for wrong in (voxels[:, :2], voxels.expand(2, -1, -1, -1, -1), voxels[0]):
        with pytest.raises(ValueError, match=r"needed are grids \[B=1, T=3, K, Hs, Ws\]"):
            model(rgb, wrong)
    with pytest.raises(ValueError, match="K=3"):
        model(rgb, voxels[:, :, :2])
