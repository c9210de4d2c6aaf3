"""Frames and spikes in memory are restored as files are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.config import load_config
from src.data.datasets.voxelizer import voxelize
from src.inference.in_memory import restore_frames
from src.inference.load import LoadedModel
from src.inference.restore import Normalization, Restorer, build_tile_settings
from src.paths import REPO_ROOT
from tests.inference_cases import SpikesAsImage, Video

VIDEO = Video(4, (32, 48), (16, 24), num_bins=32)
FRAMES = np.stack([VIDEO.read_blurry(i) for i in range(4)])
VOXELS = np.stack([VIDEO.read_counts(i) for i in range(4)])
RANDOM = np.random.default_rng(0)
BITS = (RANDOM.random((200, 16, 24)) < 0.3).astype(np.uint8)
WINDOWS = [(0, 40), (50, 90), (100, 137), (160, 200)]


@pytest.fixture(name="loaded", scope="module")
def _loaded():
    return LoadedModel(Both(), config("VAL.TILE_SIZE", "32"), {"file": "best.pth"})


class Both(SpikesAsImage):
    """Returns something that depends on frames and spikes."""

    def forward(self, rgb, spikes):
        return 0.5 * rgb + 0.5 * super().forward(rgb, spikes)


def config(*overrides):
    norm = ["DATA.NORM.MEAN", "1.0", "DATA.NORM.STD", "2.0", "DATA.GAIN", "1.0"]
    demo = REPO_ROOT / "configs/deblur/demo.yaml"
    return load_config(demo, [*norm, *overrides], check_paths=False)


def restored(loaded, frames=FRAMES, **spikes):
    return restore_frames(loaded, frames, device="cpu", progress=False, **spikes)


def test_voxels_give_what_files_give_in_the_form_of_the_frames(loaded):
    restorer = Restorer(
        loaded.model, build_tile_settings(loaded.cfg), Normalization(1.0, 2.0), "cpu"
    )
    expected = np.stack([image for _, image in restorer.restore(VIDEO)])
    assert np.ptp(expected) > 20
    assert np.array_equal(restored(loaded, voxels=VOXELS), expected)
    tensor = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)
    images = restored(loaded, tensor, voxels=torch.from_numpy(VOXELS))
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(expected))
    floats = restored(loaded, FRAMES.astype(np.float64) / 255, voxels=VOXELS)
    assert floats.dtype == np.float64
    assert np.abs(floats * 255 - expected).max() < 0.501
    assert np.abs(floats * 255 - expected).max() > 0.1  # not rounded to 8 bits
    assert restored(loaded, tensor.float() / 255, voxels=VOXELS).shape == (4, 3, 32, 48)


def test_bits_and_events_give_what_their_voxels_give(loaded):
    events = np.argwhere(BITS)  # t, y, x
    voxels = np.stack(
        [
            voxelize(events[(events[:, 0] >= a) & (events[:, 0] < b)], a, b, 16, 24, 32)
            for a, b in WINDOWS
        ]
    )
    expected = restored(loaded, voxels=voxels)
    assert np.array_equal(restored(loaded, bits=BITS, exposures=WINDOWS), expected)
    assert np.array_equal(restored(loaded, bits=[BITS[a:b] for a, b in WINDOWS]), expected)
    found = restored(loaded, events=events, exposures=WINDOWS, spike_size=(16, 24))
    assert np.array_equal(found, expected)


def test_an_instant_shifts_the_bins_of_a_model_that_centres_them(loaded):
    centres = LoadedModel(loaded.model, config("DATA.CENTER_SHARP", "true"), {"file": "b.pth"})
    early = VOXELS[:, [0, 0, 0, *range(29)]]  # 0.4 is 3 of 32 bins before the middle
    expected = restored(loaded, voxels=early)
    assert not np.array_equal(expected, restored(loaded, voxels=VOXELS))
    assert np.array_equal(restored(centres, voxels=VOXELS, instants=[0.4] * 4), expected)
    with pytest.raises(ValueError, match="without DATA.CENTER_SHARP"):
        restored(loaded, voxels=VOXELS, instants=[0.4] * 4)
    for wrong in ([0.4] * 3, [0.4, 0.4, 0.4, 24]):
        with pytest.raises(ValueError, match="one of each frame is needed, 0 to 1"):
            restored(centres, voxels=VOXELS, instants=wrong)


@pytest.mark.parametrize(
    ("frames", "spikes", "message"),
    [
        (FRAMES, {}, "give one of voxels, bits, events; got"),
        (FRAMES, {"voxels": VOXELS, "bits": BITS}, r"got \['voxels', 'bits'\]"),
        (FRAMES[0], {"voxels": VOXELS}, r"an array \[T, H, W, 3\]"),
        (FRAMES.astype(np.uint16), {"voxels": VOXELS}, "uint8 or floats in 0..1"),
        (FRAMES.astype(np.float32), {"voxels": VOXELS}, "divide 8 bit values by 255"),
        (FRAMES, {"voxels": VOXELS[:3]}, "voxels: 3 for 4 frames"),
        (FRAMES, {"voxels": VOXELS[:, :5]}, "K=32 bins"),
        (FRAMES, {"voxels": VOXELS.swapaxes(2, 3)}, "aspect ratio of the frames, 32 x 48"),
        (
            FRAMES,
            {"bits": BITS, "exposures": [*WINDOWS[:3], (180, 201)]},
            "inside the stream",
        ),
        (FRAMES, {"bits": [VOXELS[0]] * 4}, "zeros and ones"),
        (FRAMES, {"events": np.argwhere(BITS), "exposures": WINDOWS}, "spike_size, too"),
    ],
)
def test_what_does_not_fit_is_a_sentence(loaded, frames, spikes, message):
    with pytest.raises(ValueError, match=message):
        restored(loaded, frames, **spikes)


def test_models_without_spikes_and_bins_without_ticks(loaded):
    rgb = LoadedModel(SimpleNamespace(), config("MODEL.USE_SPIKE", "false"), {"file": "rgb.pth"})
    with pytest.raises(ValueError, match="rgb.pth: it takes no spikes"):
        restored(rgb, voxels=VOXELS)
    ticks = LoadedModel(loaded.model, config("DATA.BIN_NORMALIZE", "true"), {"file": "best.pth"})
    with pytest.raises(ValueError, match="give bits"):
        restored(ticks, voxels=VOXELS)
    assert np.ptp(restored(ticks, bits=BITS, exposures=WINDOWS)) > 20
    light = config("DATA.BIN_NORMALIZE", "true", "DATA.MATCH_LIGHT", "true")
    assert np.ptp(restored(LoadedModel(loaded.model, light, {"file": "b.pth"}), voxels=VOXELS)) > 20
