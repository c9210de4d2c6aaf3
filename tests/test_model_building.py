"""Models from configurations, weights from files, and the table of shapes."""

import pickle
import re
from types import SimpleNamespace

import pytest
import torch
import yaml

from scripts import validate_model_shapes
from src.config import get_defaults
from src.models import build
from src.models.build import build_model, read_vrt_arguments
from src.models.integrate_vrt import RGBOnly, VRTWithSpike
from src.models.weights import load_weights
from tests.model_cases import TINY_VRT, build_look_alike, build_with_spike, clip_and_voxels, wake_up


@pytest.fixture(name="cfg")
def _cfg(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY_VRT))
    cfg = get_defaults()
    cfg.MODEL.VRT_CFG = str(path)
    cfg.MODEL.CHANNELS_PER_SCALE = [8] * 4
    cfg.DATA.K = 3
    return cfg


def test_output_gain_scales_what_an_untrained_model_adds(cfg):
    clip, voxels = clip_and_voxels()
    change = build_model(cfg).eval()(clip, voxels) - clip
    for gain in (0.5, 0.0):
        cfg.MODEL.OUTPUT_GAIN = gain
        restored = build_model(cfg).eval()(clip, voxels)
        torch.testing.assert_close(restored, clip + gain * change)


def test_both_kinds_start_from_the_same_vrt_and_the_seed_alone_decides(cfg):
    state = torch.get_rng_state()
    with_spikes = build_model(cfg)
    assert torch.equal(torch.get_rng_state(), state), "the caller's generator is left alone"
    torch.rand(7)
    again = build_model(cfg)
    cfg.MODEL.USE_SPIKE = False
    rgb_only = build_model(cfg)
    assert isinstance(with_spikes, VRTWithSpike)
    assert isinstance(rgb_only, RGBOnly)
    first, second, third = (m.state_dict() for m in (with_spikes, again, rgb_only))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(first[key], third[key]) for key in third)
    cfg.SEED += 1
    other = build_model(cfg).state_dict()
    assert not torch.equal(other["vrt.conv_last.weight"], third["vrt.conv_last.weight"])


def test_settings_arrive(cfg):
    cfg.MODEL.SPIKE_ENCODER.TEMPORAL_STRIDES = [2, 1, 1]
    cfg.MODEL.SPIKE_ENCODER.SPATIAL_STRIDES = [1, 2, 2]
    tsa, fuse = cfg.MODEL.SPIKE_TSA, cfg.MODEL.FUSE
    tsa.HEADS, tsa.DROPOUT, tsa.MLP_RATIO, tsa.MAX_BATCH_TOKENS = 2, 0.25, 3.0, 77
    fuse.TIME_SLOPE = 3.0
    fuse.HEADS, fuse.ADAPTIVE_CHUNK, fuse.CHUNK_SIZE, fuse.CHUNK_SHAPE = 1, False, 5, "tall"
    cfg.MODEL.USE_CHECKPOINT_FFN = False
    model = build_model(cfg)
    for block in model.spike_temporal_sa.blocks:
        assert (block.chunks.adaptive_chunk, block.chunks.max_batch_tokens) == (True, 77)
        assert (block.attn.heads, block.attn.dropout, block.mlp[3].p) == (2, 0.25, 0.25)
        assert block.mlp[0].out_features == 24
    for block in model.cross_attn_fuse.fuse_blocks:
        assert (block.time_slope, block.attn.heads, block.chunks.adaptive_chunk) == (3.0, 1, False)
        assert (block.chunks.chunk_size, block.chunks.chunk_shape) == (5, "tall")
        assert (block.use_checkpoint_attn, block.use_checkpoint_ffn) == (True, False)
    shapes = [tuple(m.shape[2:]) for m in model.encode_spikes(torch.zeros(1, 4, 3, 8, 8))]
    assert shapes == [(4, 8, 8), (2, 8, 8), (2, 4, 4), (2, 2, 2)]


def test_recomputation_and_the_flow_estimator_reach_vrt(cfg, monkeypatch):
    given = {}
    untrained = SimpleNamespace(conv_last=torch.nn.Linear(1, 1))
    monkeypatch.setattr(build, "VRT", lambda **kwargs: given.update(kwargs) or untrained)
    monkeypatch.setattr(build, "read_torch_file", lambda *_: {})
    cfg.MODEL.USE_CHECKPOINT_ATTN = False
    arguments = {"use_checkpoint_attn": True}
    own = {**arguments, "spynet_path": "of the file MODEL.VRT_CFG"}

    def path(spynet, arguments=arguments, **options):
        given.clear()
        cfg.MODEL.SPYNET = spynet
        build.build_vrt(cfg, arguments, **options)
        return given.get("spynet_path")

    assert path("") is None
    assert (given["use_checkpoint_attn"], given["use_checkpoint_ffn"]) == (False, True)
    assert path("", own) == own["spynet_path"]
    assert path("weights/flow.pth").endswith("/weights/flow.pth")
    assert path("weights/flow.pth", own, read_weights=False) is None
    assert path("none", own) is None
    cfg.MODEL.PRETRAINED = "all.pth"  # it holds the flow estimator
    assert path("") is None


def test_a_flow_estimator_that_cannot_be_read_is_named_with_its_key(cfg, tmp_path):
    page = tmp_path / "spynet.pth"
    cfg.MODEL.SPYNET = str(page)
    with pytest.raises(ValueError, match=rf"MODEL\.SPYNET: {page}.*No such file.*'download'"):
        build_model(cfg)
    page.write_text("<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(ValueError, match=rf"MODEL\.SPYNET: {page}.*it is a web page"):
        build_model(cfg)


def test_without_flow_estimator_nothing_of_it_is_kept(cfg, monkeypatch):
    cfg.MODEL.SPYNET = "none"
    model = build.build_model(cfg)
    assert not any("spynet" in key for key in model.state_dict())
    clip = torch.rand(1, 2, 3, 64, 64)
    assert model.vrt.get_flows(clip) == ([], [])
    assert model(clip, torch.zeros(1, 2, cfg.DATA.K, 32, 32)).shape == clip.shape
    # A VRT that asks its estimator for flows, finest first.
    foreign = SimpleNamespace(conv_last=torch.nn.Linear(1, 1), spynet=torch.nn.Linear(1, 1))
    monkeypatch.setattr(build, "VRT", lambda **kwargs: foreign)
    flows = build.build_vrt(cfg, {}).spynet(clip[:, 0], clip[:, 1])
    assert [tuple(flow.shape) for flow in flows] == [(1, 2, 64 >> k, 64 >> k) for k in range(4)]
    assert not any(flow.any() for flow in flows)


def test_a_wrong_vrt_file_is_refused(tmp_path):
    path = tmp_path / "vrt.yaml"
    path.write_text("embed_dim: [8]")
    with pytest.raises(ValueError, match=r"no argument 'embed_dim'; did you mean 'embed_dims'\?"):
        read_vrt_arguments(path)
    path.write_text("- 1")
    with pytest.raises(ValueError, match="holds no mapping"):
        read_vrt_arguments(path)


def saved(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "optimizer": {"lr": 1.0}, "config": "text"},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {key.replace("vrt.", "vrt._orig_mod."): v for key, v in state.items()},
    ],
    ids=["bare", "checkpoint", "DDP", "DDP of compiled", "compiled DDP", "compiled part"],
)
def test_f26_our_weights_load_whole(tmp_path, wrap):
    source, target = (build_with_spike(build_look_alike(seed)) for seed in (5, 6))
    wake_up(source)
    report = load_weights(target, saved(tmp_path, wrap(source.state_dict())), require_all=True)
    assert (report.missing, report.unexpected) == ((), ())
    inputs = clip_and_voxels()
    assert torch.equal(target(*inputs), source(*inputs))


MISSING = ("spike_encoder", "spike_temporal_sa", "cross_attn_fuse")


@pytest.mark.parametrize("nested", [True, False])
def test_f27_plain_vrt_weights_load_under_the_spikes(tmp_path, caplog, nested):
    caplog.set_level("INFO")
    plain = build_look_alike(5)
    state = plain.state_dict()
    path = saved(tmp_path, {"params": state} if nested else state)
    model = build_with_spike(build_look_alike(6))
    report = load_weights(model, path)
    assert set(report.loaded) == {f"vrt.{key}" for key in state}
    assert {key.split(".")[0] for key in report.missing} == set(MISSING)
    counts = {part: sum(k.split(".")[0] == part for k in report.missing) for part in MISSING}
    assert f"loaded: vrt ({len(state)})" in caplog.text
    named = ", ".join(f"{part} ({count})" for part, count in counts.items())
    assert f"missing, these keep their initial values: {named}" in caplog.text
    rgb, voxels = clip_and_voxels()
    assert torch.equal(model(rgb, voxels), plain(rgb)), "training starts from VRT's quality"
    with pytest.raises(ValueError, match="keys are not the model's; missing: spike_encoder"):
        load_weights(model, path, require_all=True)


def test_the_rgb_part_of_a_model_with_spikes_loads(tmp_path):
    source, target = build_with_spike(build_look_alike(5)), RGBOnly(build_look_alike(6))
    path = saved(tmp_path, source.state_dict())
    report = load_weights(target, path)
    assert report.missing == ()
    assert all(not key.startswith("vrt.") for key in report.unexpected)
    rgb, _ = clip_and_voxels()
    assert torch.equal(target(rgb), source(rgb))


class Payload:
    def __reduce__(self):
        return print, ("the payload ran",)


def test_f27_f44_what_must_not_be_loaded(tmp_path, capsys):
    model = RGBOnly(build_look_alike())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = build_look_alike(5).state_dict()
    poisoned = state | {"norm.weight": torch.full((8,), float("nan"))}
    bigger = state | {"norm.weight": torch.ones(9)}
    renamed = {f"other.{key}": value for key, value in state.items()}
    for content, message in [
        (poisoned, r"not finite \(NaN or inf\) in norm\.weight"),
        (bigger, r"shapes differ in vrt\.norm\.weight \[9\] \(the model has \[8\]\)"),
        (renamed, r"none of its \d+ weights belongs to this model; it has keys like vrt\.other"),
        ({}, "none of its 0 weights"),
        ([1, 2], "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({"model": Payload()}, "cannot be read as weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_weights(model, saved(tmp_path, content))
    (tmp_path / "text.pth").write_text("hello")
    for name in ("text.pth", "absent.pth"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as weights"):
            load_weights(model, tmp_path / name)
    assert "payload" not in capsys.readouterr().out
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    pickle.loads(pickle.dumps(Payload()))
    assert "payload" in capsys.readouterr().out, "the payload works where it is let in"


def test_pretrained_weights_are_loaded_unless_a_checkpoint_follows(cfg, tmp_path):
    cfg.SEED = 9
    source = build_model(cfg)
    cfg.SEED = 10
    cfg.MODEL.PRETRAINED = str(saved(tmp_path, source.state_dict()))
    loaded, random = build_model(cfg), build_model(cfg, read_weights=False)
    key = "vrt.conv_last.weight"
    assert torch.equal(loaded.state_dict()[key], source.state_dict()[key])
    assert not torch.equal(random.state_dict()[key], source.state_dict()[key])


def write_config(cfg, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    return str(path)


def test_the_table_of_shapes(cfg, tmp_path, capsys):
    """docs/ARCHITECTURE.md has the table of the full model."""
    arguments = ["--config", write_config(cfg, tmp_path), "--size", "16", "24", "--frames", "2"]
    assert validate_model_shapes.main([*arguments, "MODEL.USE_SPIKE", "false"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^vrt\.stage4 .* 1 x 8 x 2 x 2 x 3$", shown, re.MULTILINE)
    assert re.search(r"^output .* 1 x 2 x 3 x 16 x 24$", shown, re.MULTILINE)
    assert "channels: passed" in shown
    assert "spike" not in shown


def test_a_wrong_scale_fails(cfg):
    shapes = {f"vrt.stage{i}": (1, 8, 2, 8, 8) for i in range(1, 5)}
    shapes |= {f"spike_encoder.scales.{i}": (1, 8, 2, 8, 8) for i in range(4)}
    shapes |= {f"cross_attn_fuse.fuse_blocks.{i}": (1, 2, 8, 8, 8) for i in range(4)}
    good = validate_model_shapes.check_scales(shapes, cfg, 2)
    assert good == {"shapes per scale": [], "channels": []}
    shapes["vrt.stage3"], shapes["spike_encoder.scales.0"] = (1, 8, 2, 4, 4), (1, 6, 2, 8, 8)
    bad = validate_model_shapes.check_scales(shapes, cfg, 2)
    assert [len(problems) for problems in bad.values()] == [1, 1]


def test_the_table_refuses_in_one_line(cfg, tmp_path, capsys):
    path = write_config(cfg, tmp_path)
    assert validate_model_shapes.main(["--config", path, "MODEL.CHANNELS_PER_SCALE", "[4,4,4,4]"])
    assert "VRT has 8 channels in stages 1-4; write [8, 8, 8, 8]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        validate_model_shapes.main(["--config", path, "--size", "0", "8"])
