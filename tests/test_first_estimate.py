"""The network before VRT and frames unshuffled into channels: equal to the steps done by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, nn

from src.config import ConfigError, load_config
from src.models.build import build_model
from src.models.first_estimate import FirstEstimate
from src.models.integrate_vrt import RGBOnly, SizeRule
from tests.model_cases import build_tiny_vrt, build_with_spike, clip_and_voxels, wake_up
from tests.training_cases import checkpoint_of, make_trainer, write_run

UNSHUFFLED = {"in_chans": 12, "out_chans": 12}
ESTIMATING = {
    "MODEL__PIXEL_UNSHUFFLE": 2,
    "MODEL__FIRST_ESTIMATE": 4,
    "MODEL__OUTPUT_GAIN": 0.0,
    "TRAIN__GROUPS__REFINEMENT__FREEZE_STEPS": 2,
}


def without_flow(vrt):
    vrt.spynet = None
    return vrt


def build(**settings):
    """Return a model on unshuffled frames whose parts all have values."""
    vrt = without_flow(build_tiny_vrt(**UNSHUFFLED))
    model = wake_up(build_with_spike(vrt, pixel_unshuffle=2, first_estimate=4, **settings)).eval()
    generator = torch.Generator().manual_seed(7)
    for layer in (model.first_estimate.to_frame, model.estimate_features):
        layer.weight.data.normal_(0, 0.1, generator=generator)
    return model


def test_channels_below_zero_still_learn():
    model = FirstEstimate(12, 8, 4)
    model.to_frame.weight.data.normal_(0, 0.1)
    for block in (model.up_fine, model.up_middle):
        block.first.bias.data.fill_(-100.0)  # all of its outputs are negative
    estimate, _ = model(torch.rand(1, 1, 12, 8, 8), torch.randn(1, 1, 8, 8, 8))
    estimate.square().sum().backward()
    assert all(p.grad.any() for p in model.parameters())


def test_the_steps_by_hand():
    model = build()
    rgb, voxels = clip_and_voxels(size=(32, 48), spike_size=(16, 24))
    estimate, features = model.first_estimate(F.pixel_unshuffle(rgb, 2), voxels)
    added = torch.stack([model.estimate_features(frames) for frames in features.unbind(1)], 1)
    maps = model.encode_spikes(voxels)

    def after_stage(index, x):
        x = x.transpose(1, 2) + (added if index == 0 else 0)
        return model.cross_attn_fuse.fuse_blocks[index](x, maps[index].transpose(1, 2)).transpose(
            1, 2
        )

    want = F.pixel_shuffle(model.vrt.forward_hooked(estimate, after_stage), 2)
    torch.testing.assert_close(model(rgb, voxels), want)
    assert not torch.allclose(want, F.pixel_shuffle(estimate, 2), atol=1e-3)


@pytest.mark.parametrize("use_spike", [True, False])
def test_coarser_levels_are_as_wide_as_asked(tmp_path, use_spike):
    changes = {"MODEL__FIRST_ESTIMATE_GROWTH": 2.5, "MODEL__USE_SPIKE": use_spike}
    cfg = load_config(write_run(tmp_path, **ESTIMATING | changes))
    net = build_model(cfg).first_estimate
    levels = (net.down_fine, net.down_middle, net.coarse, net.up_middle, net.up_fine)
    assert [block.third.out_channels for block in levels] == [4, 10, 25, 10, 4]
    clip = torch.rand(1, 2, 12, 8, 12)
    estimate, features = net(clip, torch.rand(1, 2, cfg.DATA.K, 4, 6) if use_spike else None)
    assert (estimate.shape, features.shape) == (clip.shape, (1, 2, 4, 8, 12))


@pytest.mark.parametrize("first_estimate", [0, 4])
def test_a_new_model_is_its_vrt_on_unshuffled_frames(first_estimate):
    vrt = without_flow(build_tiny_vrt(**UNSHUFFLED)).eval()
    rgb, voxels = clip_and_voxels(size=(32, 48), spike_size=(16, 24))
    want = F.pixel_shuffle(vrt(F.pixel_unshuffle(rgb, 2)), 2)
    settings = {"pixel_unshuffle": 2, "first_estimate": first_estimate}
    model = build_with_spike(vrt, **settings).eval()
    torch.testing.assert_close(model(rgb, voxels), want)
    torch.testing.assert_close(model(rgb), want)  # without spikes: plain VRT
    again = without_flow(build_tiny_vrt(**UNSHUFFLED)).eval()
    torch.testing.assert_close(RGBOnly(again, **settings).eval()(rgb), want)


@pytest.mark.parametrize("spike_size", [(25, 37), (13, 19), (9, 9)])
def test_any_size_of_frames_and_spikes(spike_size):
    model = build()
    rgb, voxels = clip_and_voxels(frames=3, size=(25, 37), spike_size=spike_size)
    assert model(rgb, voxels).shape == rgb.shape
    assert model.size_rule == SizeRule(2, 32, 16)


@pytest.fixture
def one_rank():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_the_estimate_alone(one_rank):
    """VRT and the fusion do not run; with ranks every parameter still has a gradient, of zeros."""
    model = build()
    rgb, voxels = clip_and_voxels(size=(32, 32), spike_size=(16, 16))
    model.refines = False
    model(rgb, voxels).sum().backward()
    want = F.pixel_shuffle(model.first_estimate(F.pixel_unshuffle(rgb, 2), voxels)[0], 2)
    with torch.no_grad():
        for parameter in model.vrt.parameters():
            parameter.fill_(1e3)
        torch.testing.assert_close(model(rgb, voxels), want)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() == name.startswith("first_estimate."), name


def test_the_estimate_learns_what_the_voxels_show():
    """Frames are grey; the sharp frames are one bin of the voxels."""
    torch.manual_seed(0)
    net = FirstEstimate(frame_channels=3, spike_bins=2, width=4)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    blurry = torch.full((1, 2, 3, 16, 16), 0.5)
    losses = []
    for _ in range(60):
        voxels = torch.randn(1, 2, 2, 16, 16)
        sharp = 0.5 + 0.2 * voxels[:, :, 1:].expand_as(blurry)
        loss = nn.functional.l1_loss(net(blurry, voxels)[0], sharp)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])


def test_the_refinement_is_trained_from_its_step_on(tmp_path):
    path = write_run(tmp_path, **ESTIMATING)
    before = build_model(load_config(path)).state_dict()
    trainer = make_trainer(path, "TRAIN.SAVE_EVERY", "2")
    steps_with_vrt = []
    trainer.model.vrt.register_forward_hook(
        lambda vrt, *_: steps_with_vrt.append(1) if vrt.training else None
    )
    trainer.fit()
    assert len(steps_with_vrt) == 2  # it is not computed while it is frozen
    moved = {}
    for name in ("previous.pth", "last.pth"):
        after = torch.load(checkpoint_of(tmp_path, name=name), weights_only=True)["model"]
        moved[name] = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved["previous.pth"]
    assert all(key.startswith("first_estimate.") for key in moved["previous.pth"])
    assert "cross_attn_fuse.fuse_blocks.0.ffn.2.weight" in moved["last.pth"]
    assert "vrt.stage1.linear1.weight" in moved["last.pth"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL__FIRST_ESTIMATE": 0}, "TRAIN.GROUPS.REFINEMENT: MODEL.FIRST_ESTIMATE is 0"),
        ({"TRAIN__FREEZE": ["deform"]}, "cannot be combined with"),
        ({"MODEL__OUTPUT_GAIN": 0.1}, "REFINEMENT.FREEZE_STEPS: needs MODEL.OUTPUT_GAIN 0"),
        ({"MODEL__PIXEL_UNSHUFFLE": 3}, "MODEL.PIXEL_UNSHUFFLE: expected one of 1, 2, 4, got 3"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, changes, message):
    path = write_run(tmp_path, **ESTIMATING | changes)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_flow_estimator_needs_three_channels(tmp_path):
    path = write_run(tmp_path, **ESTIMATING | {"MODEL__SPYNET": ""})
    with pytest.raises(ValueError, match=r"set MODEL\.SPYNET none, or PIXEL_UNSHUFFLE 1"):
        make_trainer(path)
