"""The configuration: defaults, all problems at once, overrides, safe YAML."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from yacs.config import CfgNode

from src.config import (
    ConfigError,
    config_from_text,
    config_to_text,
    get_defaults,
    load_config,
    lookup,
    walk_schema,
)
from src.engine.optim import optimizer_groups, read_rules
from src.models.build import build_model, read_vrt_arguments
from src.models.integrate_vrt import RGBOnly, VRTWithSpike
from src.paths import REPO_ROOT

NO_NUMBERS = (".inf", ".nan", "nan", "true", "[1]", "null")
CONFIGS = sorted((REPO_ROOT / "configs/deblur").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path, overrides: list[str] | None = None, **kwargs: bool) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **kwargs)
    return caught.value.problems


def test_file_and_overrides_win_over_defaults(tmp_path):
    path = write(tmp_path, "TRAIN: {OPTIM: {LR: 1}}\nDATA: {K: 8}\n")
    cfg = load_config(path, ["DATA.K", "16", "EXP_NAME", "007"], check_paths=False)
    assert (cfg.TRAIN.OPTIM.LR, cfg.DATA.K, cfg.EXP_NAME) == (1.0, 16, "007")
    assert cfg.DATA.CLIP_LEN == 5
    assert isinstance(cfg.TRAIN.OPTIM.LR, float)


def test_a_loaded_configuration_is_frozen_and_named_after_its_file(tmp_path):
    path = write(tmp_path, "SEED: 1")
    cfg = load_config(path, check_paths=False)
    assert cfg.EXP_NAME == "run"
    with pytest.raises(AttributeError):
        cfg.SEED = 2
    assert problems_of(path, ["configs/a.yaml"])[0].endswith("write --config configs/a.yaml")


def test_f56_all_problems_are_listed_at_once(tmp_path):
    path = write(
        tmp_path,
        "DATA: {CLIP_LENGHT: 5, ROOT: nowhere}\n"
        "TRAIN: {OPTIM: {LR: fast}, MAX_STEPS: 2e4, BATCH_SIZE: true}\n"
        "MODEL: 3\nSEED: -1\n",
    )
    problems = problems_of(path, ["DATA.K", "0", "LOG"])
    expected = [
        "MODEL: expected a section of keys, got 3",
        "overrides come in pairs KEY VALUE; the last one is 'LOG'",
        "DATA.CLIP_LENGHT: unknown key; did you mean 'DATA.CLIP_LEN'?",
        "TRAIN.OPTIM.LR: expected a number > 0, got 'fast'",
        "TRAIN.MAX_STEPS: expected a whole number >= 0, got '2e4'",
        "TRAIN.BATCH_SIZE: expected a whole number > 0, got True",
        "SEED: expected a whole number >= 0, got -1",
        "DATA.K: expected a whole number > 0, got 0",
    ]
    assert problems[: len(expected)] == expected
    assert problems[len(expected)].startswith("DATA.ROOT: folder nowhere does not exist")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("data: {num_voxel_bins: 16}", "DATA.K"),
        ("MODEL: {NUM_VOXEL_BINS: 16}", "DATA.K"),
        ("train: {optim: {lr: 1}}", "TRAIN.OPTIM.LR"),
        ("Data: {Clip_Lenght: 5}", "DATA.CLIP_LEN"),
        ("EPOCHS: 3", "TRAIN.EPOCHS"),
    ],
)
def test_the_hint_ignores_case_and_knows_former_names(tmp_path, text, key):
    (problem,) = problems_of(write(tmp_path, text), check_paths=False)
    assert problem.endswith(f"unknown key; did you mean '{key}'?")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("TRAIN.AMP", "true", "auto"),
        ("TRAIN.AMP", "False", "fp32"),
        ("TRAIN.AMP", "bf16", "bf16"),
        ("MODEL.SPYNET", "none", "none"),
        ("MODEL.SPYNET", "NONE", "none"),
        ("TRAIN.OPTIM.LR", "2e-4", 2e-4),
        ("TRAIN.OPTIM.LR", "1", 1.0),
        ("MODEL.SPIKE_ENCODER.TEMPORAL_STRIDES", "null", [1, 1, 1]),
        ("MODEL.SPIKE_ENCODER.SPATIAL_STRIDES", "null", [2, 2, 2]),
    ],
)
def test_other_spellings_of_values(tmp_path, key, text, value):
    """In the file and on the command line."""
    *sections, name = key.split(".")
    opening, closing = "".join(f"{{{s}: " for s in sections), "}" * len(key.split("."))
    in_file = load_config(write(tmp_path, f"{opening}{{{name}: {text}{closing}"), check_paths=False)
    given = load_config(write(tmp_path, "SEED: 1"), [key, text], check_paths=False)
    assert lookup(in_file, key) == lookup(given, key) == value


DOCUMENTED = """
SEED
DATA: ROOT TRAIN_SPLIT VAL_SPLIT CLIP_LEN CROP_SIZE K NORM.MEAN NORM.STD IMAGE_EXTS SPIKE_DIR
      VOXEL_CACHE_DIRNAME USE_PRECOMPUTED_VOXELS ALIGN_LOG_PATHS USE_RAM_CACHE CACHE_SIZE_GB
MODEL: USE_SPIKE VRT_CFG CHANNELS_PER_SCALE LAYERS USE_CHECKPOINT_ATTN USE_CHECKPOINT_FFN PRETRAINED
MODEL.SPIKE_ENCODER: TEMPORAL_STRIDES SPATIAL_STRIDES
MODEL.SPIKE_TSA: HEADS DROPOUT MLP_RATIO ADAPTIVE_CHUNK MAX_BATCH_TOKENS CHUNK_SIZE CHUNK_SHAPE
MODEL.FUSE: TYPE HEADS DROPOUT MLP_RATIO ADAPTIVE_CHUNK MAX_BATCH_TOKENS CHUNK_SIZE CHUNK_SHAPE
            TIME_SLOPE
TRAIN: EPOCHS BATCH_SIZE GRADIENT_ACCUMULATION_STEPS NUM_WORKERS AMP GRAD_CLIP OPTIM.LR OPTIM.BETAS
       OPTIM.WEIGHT_DECAY SCHED.WARMUP_STEPS SCHED.ETA_MIN VAL_EVERY VISUAL_EVERY
LOSS: CHARBONNIER.DELTA CHARBONNIER.WEIGHT VGG_PERCEPTUAL.LAYERS VGG_PERCEPTUAL.WEIGHT
      VGG_PERCEPTUAL.BACKBONE VGG_PERCEPTUAL.CRITERION VGG_PERCEPTUAL.WEIGHTS
LOG: TENSORBOARD SAVE_DIR
"""


def test_the_baseline_shows_every_documented_key_at_its_default():
    """Two keys name files: of VRT's options and of the flow estimator."""
    section, documented = "", set()
    for word in DOCUMENTED.split():
        if word.endswith(":"):
            section = word[:-1] + "."
        else:
            documented.add(section + word)
    text = (REPO_ROOT / "configs/deblur/vrt_spike_baseline.yaml").read_text(encoding="utf-8")
    shown, defaults = CfgNode(yaml.safe_load(text)), get_defaults()
    different = {key for key in documented if lookup(shown, key) != lookup(defaults, key)}
    assert different <= {"MODEL.SPYNET", "MODEL.VRT_CFG"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MODEL: {CHANNELS_PER_SCALE: [96, 96]}", "has 2 entries; needed are 4"),
        ("MODEL: {FUSE: {HEADS: 5}}", "MODEL.FUSE.HEADS: 5 does not divide"),
        ("MODEL: {SPIKE_ENCODER: {SPATIAL_STRIDES: [2]}}", "one entry for each of scales 2-4"),
        ("VAL: {TILE_SIZE: 32, OVERLAP_SIZE: 32}", "VAL.OVERLAP_SIZE: 32 is not below"),
        ("VAL: {TILE_FRAMES: 2, OVERLAP_FRAMES: 2}", "VAL.OVERLAP_FRAMES: 2 is not below"),
        ("DATA: {CROP_SIZE: 100}", "expected a multiple of 8, at least 16, got 100"),
        ("TRAIN: {FREEZE: [encoder]}", "expected a list of: spynet, deform, got ['encoder']"),
        (
            "TRAIN: {FREEZE: [deform], GROUPS: {DEFORM: {LR_MULTIPLIER: 0.5}}}",
            "TRAIN.GROUPS.DEFORM",
        ),
        ("EXP_NAME: ../other", "EXP_NAME: expected a name without slashes"),
        ("TRAIN: {AMP: null}", "TRAIN.AMP"),
        ("SEED: 1\nSEED: 2\n", "given twice"),
        ("SEED: !!python/object/apply:os.mkdir ['pwned']", "not valid YAML"),  # F30
        *((f"TRAIN: {{OPTIM: {{LR: {text}}}}}", "TRAIN.OPTIM.LR") for text in NO_NUMBERS),
        ("LOSS: {CHARBONNIER: {WEIGHT: 0}, VGG_PERCEPTUAL: {WEIGHT: 0}}", "LOSS: both weights"),
    ],
)
def test_f30_values_that_cannot_be_used_are_named(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    assert words in problems_of(write(tmp_path, text), check_paths=False)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    assert problems_of(tmp_path / "absent.yaml") == ["cannot be read: No such file or directory"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_load(path):
    cfg = load_config(path, check_paths=False)
    assert (REPO_ROOT / cfg.MODEL.VRT_CFG).is_file()
    opening = path.read_text(encoding="utf-8").split("SEED")[0]
    name = os.fspath(path.relative_to(REPO_ROOT))
    assert opening.startswith("#")
    assert f"bash scripts/launch_train.sh --config {name}" in opening
    for word in ("# Cost", "# Reproduces: "):
        assert word in opening, word


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_build(path):
    """On tensors without values, so that the full size takes a moment."""
    cfg = load_config(path, check_paths=False)
    with torch.device("meta"):
        model = build_model(cfg, read_weights=False)
    groups = optimizer_groups(model, read_rules(cfg), cfg.TRAIN.OPTIM.LR)
    assert isinstance(model, VRTWithSpike if cfg.MODEL.USE_SPIKE else RGBOnly)
    assert len(groups) == 1 + len(read_rules(cfg))


def test_every_default_obeys_its_own_rule_and_comes_back_from_text():
    defaults = get_defaults()
    again = config_from_text(config_to_text(defaults), "EXP")
    assert again == {**defaults, "EXP_NAME": "EXP"}
    for dotted, key in walk_schema():
        assert key.rule is None or key.rule[1](lookup(defaults, dotted)), dotted
        assert key.meaning.endswith("."), dotted


@pytest.mark.parametrize("folder", ["", str(REPO_ROOT) + "/"])
def test_the_former_path_of_vrts_options_is_still_read(folder, caplog):
    old = f"{folder}third_party/VRT/options/deblur/vrt_tiny.yaml"
    cfg = config_from_text(f"MODEL: {{VRT_CFG: {old}}}", "a checkpoint")
    assert cfg.MODEL.VRT_CFG == "configs/vrt/vrt_tiny.yaml"
    assert f"MODEL.VRT_CFG: {old} does not exist, configs/vrt/vrt_tiny.yaml is read" in caplog.text
    other = "third_party/VRT/options/deblur/mine.yaml"
    cfg = config_from_text(f"MODEL: {{VRT_CFG: {other}}}", "a checkpoint")
    assert cfg.MODEL.VRT_CFG.endswith("options/deblur/mine.yaml")
    with pytest.raises(ValueError, match=r"^MODEL\.VRT_CFG: .*mine\.yaml: No such file"):
        read_vrt_arguments(other)
