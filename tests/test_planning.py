"""Memory and time before a training: counted bytes, the line through them, what fits."""

import pytest
import torch
import yaml
from torch import nn

from scripts import plan
from src.config import load_config
from src.engine.planning import (
    MemoryLaw,
    Search,
    StateBytes,
    candidates,
    days,
    fit_law,
    settings_for,
    state_bytes,
    step_flops,
    steps_of,
    with_recomputation,
)
from src.engine.precision import Precision
from src.engine.step_cost import (
    LiveBytes,
    MicroBatchSize,
    clip_of,
    count_activations,
    count_flops,
    forward_backward,
    gpu_pieces,
)
from src.models.build import build_model
from src.paths import REPO_ROOT
from tests.training_cases import SMALLEST_VRT
from third_party.VRT.models import chunks

DEMO = REPO_ROOT / "configs/deblur/demo.yaml"
FP32 = Precision("fp32", "cpu")
SMALL = MicroBatchSize(1, 2, 64)


@pytest.fixture(name="overrides", scope="module")
def _overrides(tmp_path_factory):
    """The demo's configuration with the smallest network there is."""
    path = tmp_path_factory.mktemp("plan") / "vrt.yaml"
    path.write_text(yaml.safe_dump(SMALLEST_VRT), encoding="utf-8")
    return ["MODEL.VRT_CFG", str(path), "MODEL.CHANNELS_PER_SCALE", "[8, 8, 8, 8]", "DATA.K", "4"]


@pytest.fixture(name="cfg", scope="module")
def _cfg(overrides):
    return load_config(DEMO, overrides, check_paths=False)


def test_live_bytes_by_hand():
    kept = torch.zeros(10)
    with LiveBytes() as memory:
        first = torch.zeros(100)  # 400 bytes
        second = first + 1.0  # 400 more
        assert memory.live == 800
        del first
        assert memory.live == 400
        view = second[:50]  # no storage of its own
        kept.add_(1.0)  # was there before
        assert (memory.live, memory.peak) == (400, 800)
        del second
        assert memory.live == 400, "the view holds it"
        del view
        assert memory.live == 0


@pytest.fixture(name="recomputing", scope="module")
def _recomputing(cfg):
    return count_activations(with_recomputation(cfg, enabled=True), SMALL, FP32)


def test_counting_without_values_equals_counting_with_them(cfg, recomputing):
    cfg = with_recomputation(cfg, enabled=True)
    model = build_model(cfg, read_weights=False).train()
    clip = clip_of(cfg, SMALL, "cpu")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with gpu_pieces(), LiveBytes() as memory:
        forward_backward(model, clip, FP32)
    assert recomputing == pytest.approx(memory.peak, rel=0.05)


@pytest.mark.slow
def test_recomputation_and_half_precision_need_less(cfg, recomputing):
    kept = with_recomputation(cfg, enabled=False)
    full = count_activations(kept, SMALL, FP32)
    assert recomputing < 0.8 * full
    assert count_activations(kept, SMALL, Precision("bf16", "cpu")) < 0.95 * full


def test_pieces_are_those_of_a_gpu_only_inside():
    before = dict(chunks.WINDOW_ELEMENTS)
    with gpu_pieces():
        assert chunks.WINDOW_ELEMENTS["cpu"] == before["cuda"]
    assert before == chunks.WINDOW_ELEMENTS


@pytest.mark.slow
def test_operations_grow_with_pixels(cfg):
    small = count_flops(cfg, SMALL, FP32)
    large = count_flops(cfg, MicroBatchSize(2, 2, 64), FP32)
    assert large == pytest.approx(2 * small, rel=0.1)
    assert step_flops(10.0, recomputes=True, micro_batches=6) == 240.0
    assert step_flops(10.0, recomputes=False, micro_batches=6) == 180.0


def test_the_line_goes_through_both_points():
    a, b = MicroBatchSize(1, 2, 10), MicroBatchSize(1, 2, 20)
    law = fit_law({a: 700.0, b: 1300.0})
    assert law == MemoryLaw(500.0, 1.0)
    assert law(MicroBatchSize(3, 2, 10)) == 1100.0
    assert fit_law({a: 100.0, b: 800.0}).fixed == 0.0  # never below zero
    assert fit_law({a: 100.0, b: 800.0})(b) == 800.0
    with pytest.raises(ValueError, match="two different sizes"):
        fit_law({a: 1.0})


def search(**changes):
    laws = {False: MemoryLaw(0.0, 100_000.0), True: MemoryLaw(0.0, 20_000.0)}
    values = {"laws": laws, "state": 0, "frames": 5, "crop_px": 256, "clips_per_rank": 6}
    return Search(**{**values, **changes})


def test_settings_keep_the_effective_batch_and_give_up_the_crop_last():
    for found in candidates(search()):
        assert found.clips * found.accumulation == 6
    # 5 x 256 x 256 pixels: 32.8 GB a clip when kept, 6.6 GB when computed again
    assert settings_for(80, search()).overrides() == (
        "TRAIN.BATCH_SIZE 2 TRAIN.GRADIENT_ACCUMULATION_STEPS 3 DATA.CROP_SIZE 256 "
        "MODEL.USE_CHECKPOINT_ATTN false MODEL.USE_CHECKPOINT_FFN false"
    )
    small = settings_for(12, search())
    assert (small.clips, small.recomputes, small.crop_px) == (1, True, 256)
    smaller = settings_for(6, search())  # of which 5.1 GB are used: 5.0 GB at 224 pixels
    assert (smaller.clips, smaller.recomputes, smaller.crop_px) == (1, True, 224)
    assert settings_for(6, search(state=6e9)) is None
    assert settings_for(6, search(reserve=0.3)).crop_px == 192  # 3.7 of 4.2 GB


def test_state_by_hand(cfg):
    model = nn.Linear(3, 1)  # four numbers
    model.weight.requires_grad_(requires_grad=False)
    assert state_bytes(model, cfg) == StateBytes(16, 4, 8, 0)
    averaged = load_config(DEMO, ["TRAIN.EMA_DECAY", "0.9"], check_paths=False)
    assert state_bytes(model, averaged).total == 16 + 4 + 8 + 16


def test_steps_and_days(cfg):
    assert steps_of(cfg) == 650
    nowhere = ["TRAIN.MAX_STEPS", "0", "DATA.ROOT", "nowhere"]
    assert steps_of(load_config(DEMO, nowhere, check_paths=False)) is None
    assert days(86400, 0.5) == 0.5


def test_the_command_says_what_is_estimated(overrides, capsys, monkeypatch):
    monkeypatch.setattr(plan, "count_activations", lambda _, size, __: 1000.0 * size.pixels)
    monkeypatch.setattr(plan, "count_flops", lambda _, size, __: 1e6 * size.pixels)
    monkeypatch.setattr(plan, "choose_device", lambda _: torch.device("cpu"))
    overrides = [*overrides, "DATA.CLIP_LEN", "2", "TRAIN.BATCH_SIZE", "2"]
    assert plan.main(["--config", str(DEMO), *overrides]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "counting, pass 5 of 5: operations"
    assert "ESTIMATE, no GPU here" in out
    assert "activations           0.02 GB" in out  # 2 x 2 x 64 x 64 pixels, 1000 bytes each
    assert "0.0 TFLOP per step" in out
    assert "days for 650 steps" in out
    for memory in ("12 GB:", "24 GB:", "48 GB:", "80 GB:"):
        assert memory in out
    assert "TRAIN.BATCH_SIZE 2 TRAIN.GRADIENT_ACCUMULATION_STEPS 1" in out


def test_what_is_known_comes_before_the_counting(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "count_activations", interrupted)
    monkeypatch.setattr(plan, "choose_device", lambda _: torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt):
        plan.main(["--config", str(DEMO)])
    out, err = capsys.readouterr()
    assert "optimiser" in out
    assert err == "counting, pass 1 of 5: memory at 64 px, intermediates computed again\n"


def test_a_wrong_file_is_a_sentence(capsys):
    assert plan.main(["--config", "absent.yaml"]) == 1
    assert "cannot be read" in capsys.readouterr().err
