"""What `train.py --dry_run` measures and which settings it derives."""

import pytest
import torch

from src.engine import cost
from src.engine.cost import fit_memory, measure_memory, settings_that_fit, small_batch
from src.engine.step import StepMemoryError
from tests.training_cases import make_trainer, run_train, write_run


def test_f57_dry_run_reports_and_keeps_nothing(tmp_path):
    output = run_train(write_run(tmp_path), "--dry_run")
    for words in ("data of a step:", "one step:", "one save:", "first validation clip", "peak mem"):
        assert words in output
    assert "4 steps take 0.00 days" in output
    assert "run this on a machine with one" in output  # settings need a GPU
    assert not list((tmp_path / "outputs" / "ckpts").rglob("*.pth"))


def test_the_line_goes_through_both_points():
    assert fit_memory({200: 700.0, 800: 1300.0}) == (500.0, 1.0)
    assert fit_memory({200: 100.0, 800: 800.0}) == (0.0, 1.0)  # never below zero


@pytest.mark.parametrize(
    ("memory_gb", "fixed", "expected"),
    # 5 x 256 x 256 pixels: 32.8 GB a clip when kept, 6.6 GB when recomputed
    [
        (
            80,
            0.0,
            "65.5 GB with TRAIN.BATCH_SIZE 2 TRAIN.GRADIENT_ACCUMULATION_STEPS 3 "
            "DATA.CROP_SIZE 256 MODEL.USE_CHECKPOINT_ATTN false MODEL.USE_CHECKPOINT_FFN false",
        ),
        (12, 0.0, "BATCH_SIZE 1 TRAIN.GRADIENT_ACCUMULATION_STEPS 6 DATA.CROP_SIZE 256"),
        (12, 0.0, "MODEL.USE_CHECKPOINT_ATTN true MODEL.USE_CHECKPOINT_FFN true"),
        (6, 0.0, "BATCH_SIZE 1 TRAIN.GRADIENT_ACCUMULATION_STEPS 6 DATA.CROP_SIZE 224"),
        (6, 6e9, "nothing fits; lower DATA.CLIP_LEN"),
    ],
)
def test_settings_keep_the_effective_batch_and_lower_the_crop_last(memory_gb, fixed, expected):
    memory = {False: (fixed, 100_000.0), True: (fixed, 20_000.0)}
    assert expected in settings_that_fit(memory_gb, memory, frames=5, crop_px=256, clips_per_rank=6)


@pytest.fixture(name="trainer")
def _trainer(tmp_path):
    batch = {"TRAIN__BATCH_SIZE": 2, "TRAIN__GRADIENT_ACCUMULATION_STEPS": 2}
    return make_trainer(write_run(tmp_path, TRAIN__EMA_DECAY=0.5, **batch))


def test_memory_is_measured_on_a_second_model_and_the_run_is_unchanged(trainer, monkeypatch):
    """The numbers of a GPU are simulated; tests/test_gpu.py measures."""
    monkeypatch.setattr(cost, "SMALL_CLIPS", (1, 2))
    peaks, batch = iter([500, 900]), next(trainer.batches())[0]
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: next(peaks))
    fixed, per_pixel = measure_memory(trainer, batch, recomputes=True)
    averaged, pixels = sum(value.nbytes for value in before.values()), 2 * 32 * 32
    assert fixed + per_pixel * pixels == pytest.approx(400 + averaged)
    assert fixed + per_pixel * 2 * pixels == pytest.approx(800 + averaged)
    assert trainer.progress.step == 0
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    assert torch.equal(small_batch(batch, 3)["spike_vox"][2], batch["spike_vox"][0])
    batch = {**batch, "blur": batch["blur"].repeat(1, 1, 1, 4, 4)}
    assert small_batch(batch, 1)["blur"].shape[-1] == 64
    assert small_batch(batch, 1)["spike_vox"].shape[-1] == batch["spike_vox"].shape[-1] // 2


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, StepMemoryError])
def test_if_settings_cannot_be_measured_either_the_advice_for_the_step_is_reported(
    trainer, monkeypatch, error
):
    def fail(kind, words):
        raise kind(words)

    monkeypatch.setattr(trainer, "step", lambda _: fail(StepMemoryError, "lower DATA.CROP_SIZE"))
    monkeypatch.setattr(cost, "log_settings", lambda *_: fail(error, "CUDA out of memory"))
    with pytest.raises(StepMemoryError, match=r"lower DATA\.CROP_SIZE"):
        cost.dry_run(trainer)
