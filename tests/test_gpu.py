"""What only a CUDA device can show: the same results as on the CPU, half precision, memory.

    bash scripts/run_tests.sh -m gpu

Without a device all of them are skipped.
"""

import copy
import os
import subprocess

import numpy as np
import pytest
import torch

from src.config import load_config
from src.data.normalization import Normalization
from src.engine.cost import measure_memory
from src.engine.optim import Muon, WarmupCosine
from src.engine.processes import Ranks, choose_precision
from src.engine.step import BatchTransfer, TrainingStep
from src.engine.trainer import Trainer
from src.inference.restore import Restorer
from src.inference.tiling import TileSettings
from src.models.spike_temporal_sa import TemporalSelfAttentionBlock
from src.run_directory import RunDirectory
from tests.model_cases import build_tiny_vrt, build_with_spike, clip_and_voxels, wake_up
from tests.training_cases import read_checkpoint, train_command, write_run
from tests.vrt_cases import smallest_net, smooth_clip

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact_float32():
    """Turn TF32 off, whose 10 bits would hide what is compared here."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.set_float32_matmul_precision(before)


def spike_model():
    return wake_up(build_with_spike(build_tiny_vrt()))


def test_vrt_equals_the_cpu():
    net, clip = smallest_net(), smooth_clip(4, 32, 40)
    with torch.no_grad():
        expected = net(clip)
        got = net.to(DEVICE)(clip.to(DEVICE)).cpu()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_gradients_equal_the_cpu():
    here = spike_model()
    there = copy.deepcopy(here).to(DEVICE)
    rgb, voxels = clip_and_voxels(frames=3)
    here(rgb, voxels).square().mean().backward()
    there(rgb.to(DEVICE), voxels.to(DEVICE)).square().mean().backward()
    compared = 0
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        if one.grad is not None and one.grad.norm() > 1e-6:
            difference = (one.grad - other.grad.cpu()).norm() / one.grad.norm()
            assert difference < 1e-2, name
            compared += 1
    assert compared > 50


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, Muon])
def test_half_precision_trains_like_float32(precision, kind):
    losses = {name: _losses_of_training(name, kind) for name in ("fp32", precision)}
    assert all(np.isfinite(losses[precision]))
    assert losses["fp32"][-1] < losses["fp32"][0]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.05)


def test_restoring_equals_the_cpu():
    class Video:
        def __len__(self):
            return 5

        def read_blurry(self, i):
            return np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)

        def read_counts(self, i):
            return np.random.default_rng(i).integers(0, 4, (3, 24, 32), dtype=np.uint8)

    model, norm = spike_model().eval(), Normalization(0.5, 0.5)
    tiles = TileSettings(frames=3, size_px=32, overlap_frames=1, overlap_px=8)
    expected = dict(Restorer(model, tiles, norm, "cpu").restore(Video()))
    got = dict(Restorer(copy.deepcopy(model).to(DEVICE), tiles, norm, DEVICE).restore(Video()))
    for i, frame in expected.items():
        assert np.abs(frame.astype(int) - got[i].astype(int)).max() <= 1


def test_chunks_bound_the_memory_of_attention():
    features = torch.randn(1, 5, 32, 128, 128, device=DEVICE)
    peaks = []
    for tokens in (10**9, 5 * 1024):
        chunks = {"MAX_BATCH_TOKENS": tokens}
        block = TemporalSelfAttentionBlock(32, heads=4, chunk_cfg=chunks).to(DEVICE)
        with torch.no_grad():
            block(features)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            block(features)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.5 * peaks[0]


def test_a_compiled_block_equals_the_eager_one():
    block = TemporalSelfAttentionBlock(8, heads=2).to(DEVICE)
    features = torch.randn(1, 3, 8, 8, 8, device=DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(block)(features), block(features), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_on_the_device_resumes_where_it_stopped(tmp_path, optimizer):
    changes = {"TRAIN__AMP": "auto", "TRAIN__OPTIM__NAME": optimizer}
    config = write_run(tmp_path, DEVICE="cuda", **changes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for steps in ("2", "4"):
        command = train_command(config, "TRAIN.MAX_STEPS", steps)
        subprocess.run(command, cwd=tmp_path, env=environment, timeout=300, check=True)
    state = read_checkpoint(tmp_path)
    assert state["progress"]["step"] == 4
    assert state["precision"] in ("bf16", "fp16")
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_dry_run_measures_memory_and_recomputation_needs_less(tmp_path):
    cfg = load_config(write_run(tmp_path, DEVICE="cuda"))
    trainer = Trainer(cfg, Ranks(0, 1, torch.device("cuda", 0)), RunDirectory.of(cfg))
    batch = next(trainer.batches())[0]
    recomputing, keeping = (measure_memory(trainer, batch, choice) for choice in (True, False))
    assert 0 < recomputing[1] < keeping[1]


def _losses_of_training(precision, kind):
    torch.manual_seed(0)
    model = spike_model().to(DEVICE)
    options = {} if kind is Muon else {"fused": True}
    optimizer = kind(model.parameters(), lr=1e-3, **options)
    schedule = WarmupCosine(optimizer, peak=1e-3, warmup_steps=0, total_steps=10, eta_min=0.0)
    step = TrainingStep(
        model,
        _charbonnier,
        optimizer,
        schedule,
        choose_precision(precision, DEVICE),
        BatchTransfer(DEVICE, Normalization(0.5, 0.5), (2, 16, 3)),
        Ranks(0, 1, DEVICE),
        grad_clip=1.0,
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 1, 2, 3, 16, 24), generator=generator, dtype=torch.uint8)
    counts = torch.randint(0, 3, (1, 2, 3, 16, 24), generator=generator, dtype=torch.uint8)
    meta = [{"seq": "s", "frame_idx": [0, 1]}]
    batch = {"blur": images[0], "sharp": images[1], "spike_vox": counts, "meta": meta}
    outcomes = [step([{**batch, "dropped": []}], number) for number in range(6)]
    return [outcome.losses["total"] for outcome in outcomes]


def _charbonnier(restored: torch.Tensor, sharp: torch.Tensor):
    loss = ((restored - sharp).square() + 1e-6).sqrt().mean()
    return loss, {"charbonnier": loss}
