"""Restoring videos clip by clip and tile by tile: the same result, bounded memory, clear errors."""

import gc
import logging

import numpy as np
import pytest
import torch
from torch import nn

from src.inference.restore import (
    Normalization,
    Restorer,
    TileMemoryError,
    on_spikes,
    scene_grid,
    to_uint8,
)
from src.inference.tiling import TileSettings
from tests.inference_cases import Identity, OutOfMemoryAbove, SpikesAsImage, TemporalMean, Video

WHOLE = TileSettings(0, 0, 0, 0)
SMALL = TileSettings(3, 16, 1, 6)


def restored(model, video, settings, **options):
    frames = list(Restorer(model, settings, Normalization(), "cpu", **options).restore(video))
    assert [i for i, _ in frames] == list(range(len(video)))
    return np.stack([image for _, image in frames])


def blurry(video):
    return np.stack([video.read_blurry(i) for i in range(len(video))])


@pytest.mark.parametrize("blend", ["smooth", "reference"])
@pytest.mark.parametrize("size", [(48, 40), (50, 34), (16, 90)])
@pytest.mark.parametrize("frames", [(0, 0), (3, 1), (1, 0), (4, 3), (9, 2)])
def test_identity_gives_the_very_bytes_of_the_input(blend, size, frames):
    video = Video(7, size, (size[0] // 2, size[1] // 2))
    for tile, overlap in ((0, 0), (16, 6), (24, 8)):
        settings = TileSettings(frames[0], tile, frames[1], overlap, blend)
        if blend == "reference" and tile and any(s % 2 for s in size):
            continue
        assert np.array_equal(restored(Identity(), video, settings), blurry(video))


@pytest.mark.parametrize("blend", ["smooth", "reference"])
@pytest.mark.parametrize(("factor", "tile", "overlap"), [(1, 16, 6), (2, 16, 4), (4, 24, 8)])
def test_tiles_of_frames_and_spikes_show_the_same_region(blend, factor, tile, overlap):
    video = Video(4, (48, 72), (48 // factor, 72 // factor))
    settings = TileSettings(2, tile, 1, overlap, blend)
    expected = []
    for i in range(len(video)):
        mean = np.log1p(video.read_counts(i).astype(np.float64)).mean(axis=0)
        mean = (mean - 1.0) / 2.0  # the normalisation below
        expected.append(np.kron(mean, np.ones((factor, factor))))
    frames = list(
        Restorer(SpikesAsImage(), settings, Normalization(1.0, 2.0), "cpu").restore(video)
    )
    for (_, image), mean in zip(frames, expected, strict=True):
        # Not all are exactly equal: a value may lie on the edge between two 8-bit values.
        difference = np.abs(image[..., 0] - np.clip(mean, 0, 1) * 255)
        assert difference.max() < 0.501
    assert np.ptp(frames[0][1]) > 20


def test_scene_grid_by_hand():
    assert scene_grid(720, 360) == (2, 1)
    assert scene_grid(720, 250) == (72, 25)
    assert scene_grid(96, 96) == (1, 1)
    assert scene_grid(100, 200) == (1, 2)
    assert on_spikes(slice(144, 288), (72, 25)) == slice(50, 100)


def test_spikes_of_an_odd_ratio_are_tiled_on_the_common_grid():
    video = Video(2, (54, 36), (36, 24))  # 3 RGB pixels over 2 spike pixels
    seen = []

    class Recorder(nn.Module):
        def forward(self, rgb, spikes):
            seen.append((tuple(rgb.shape[-2:]), tuple(spikes.shape[-2:])))
            return rgb

    images = restored(Recorder(), video, TileSettings(0, 16, 0, 6))
    assert set(seen) == {((18, 18), (12, 12))}
    assert np.array_equal(images, blurry(video))
    with pytest.raises(ValueError, match="grid of 3 pixels"):
        restored(Recorder(), video, TileSettings(0, 16, 0, 4, "reference"))


def test_streaming_equals_all_at_once():
    """The same clips, once streamed and once with all frames in memory: the twin."""
    video = Video(9)
    clip = torch.from_numpy(blurry(video)).permute(0, 3, 1, 2).double() / 255
    total, weights = torch.zeros_like(clip), torch.zeros(len(video), 1, 1, 1, dtype=torch.double)
    rises = {start: torch.ones(4, dtype=torch.double) for start in (0, 2, 4, 5)}
    for first, second in ((0, 2), (2, 4), (4, 5)):  # adjacent clips fade over what they share
        shared = first + 4 - second
        rise = torch.sin((torch.arange(shared).double() + 0.5) / shared * torch.pi / 2) ** 2
        rises[second][:shared] *= rise
        rises[first][-shared:] *= rise.flip(0)
    for start, rise in rises.items():
        weight = rise.view(-1, 1, 1, 1)
        total[start : start + 4] += clip[start : start + 4].mean(0) * weight
        weights[start : start + 4] += weight
    expected = (total / weights * 255).permute(0, 2, 3, 1).numpy()
    images = restored(TemporalMean(), video, TileSettings(4, 0, 2, 0))
    assert np.abs(images - expected).max() < 0.5001


def frames_alive(size):
    """Return how many frames of a size all live tensors hold, shared storage counted once."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and tuple(thing.shape[-2:]) == size:
            storage = thing.untyped_storage()
            frame_bytes = 3 * size[0] * size[1] * thing.element_size()
            storages[storage.data_ptr()] = storage.nbytes() / frame_bytes
    return sum(storages.values())


def test_every_frame_is_read_once_and_few_are_alive():
    most = 0

    class Watching(TemporalMean):
        def forward(self, rgb, spikes=None):
            nonlocal most
            most = max(most, frames_alive(video.size))
            return super().forward(rgb, spikes)

    video, settings = Video(20), TileSettings(5, 0, 2, 0)
    images = restored(Watching(), video, settings)
    assert len(images) == 20
    assert set(video.read_counter.values()) == {1}
    # The frames of a clip once as they are kept, once stacked, once on the device, and what the
    # clip before it left to be blended.
    assert settings.frames * 3 <= most <= settings.frames * 3 + settings.overlap_frames


def test_f49_out_of_memory_means_smaller_tiles(caplog):
    video = Video(4, (200, 120), (100, 60))
    model = OutOfMemoryAbove(70)
    restorer = Restorer(model, TileSettings(2, 0, 0, 0), Normalization(), "cpu")
    with caplog.at_level(logging.WARNING):
        images = np.stack([image for _, image in restorer.restore(video)])
    assert np.array_equal(images, blurry(video))
    assert restorer.settings.size_px == 64
    assert [max(size) for size in model.sizes].count(200) == 1  # the size stays small afterwards
    first, second = caplog.messages
    assert "out of memory with tiles: 2 frames overlap 0 x whole frames" in first
    assert "104 px overlap 13" in first
    assert "trying again with tiles: 2 frames overlap 0 x 64 px" in second


def test_out_of_memory_with_the_smallest_tile_names_the_remedy():
    restorer = Restorer(OutOfMemoryAbove(10), SMALL, Normalization(), "cpu")
    with pytest.raises(TileMemoryError, match="VAL.TILE_FRAMES") as raised:
        list(restorer.restore(Video(2, (128, 128), (64, 64))))
    assert "Tried to allocate 2 GiB" in str(raised.value)


class OnlyFirstTrains(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Dropout(), nn.Dropout()
        self.second.eval()
        self.modes = []

    def forward(self, rgb, spikes=None):
        self.modes.append((self.training, self.first.training, torch.is_grad_enabled()))
        return rgb


@pytest.mark.parametrize("num_taken", [1, 5])
def test_model_modes_are_restored_and_no_mode_leaks(num_taken):
    model = OnlyFirstTrains()
    frames = Restorer(model, SMALL, Normalization(), "cpu").restore(Video(5))
    for _ in range(num_taken):
        next(frames)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    frames.close()
    assert set(model.modes) == {(False, False, False)}
    assert (model.training, model.first.training, model.second.training) == (True, True, False)


def test_quantisation_rounds_and_clamps():
    values = torch.tensor([-0.2, 0.0, 0.49 / 255, 0.51 / 255, 99.6 / 255, 1.0, 3.0])
    frame = values.view(1, 1, -1).expand(3, 1, -1)
    assert to_uint8(frame, "frame")[0, :, 1].tolist() == [0, 0, 0, 1, 100, 255, 255]


def test_frames_of_different_sizes_and_models_that_change_it_are_errors():
    class Mixed(Video):
        def read_blurry(self, i):
            image = super().read_blurry(i)
            return image[:-2] if i == 2 else image

    with pytest.raises(ValueError, match=r"frame 2: shape \[3, 46, 40\], but \[3, 48, 40\] before"):
        restored(Identity(), Mixed(), SMALL)

    class Half(nn.Module):
        def forward(self, rgb, spikes=None):
            return rgb[..., ::2, ::2]

    with pytest.raises(ValueError, match="the model returned"):
        restored(Half(), Video(), WHOLE)
