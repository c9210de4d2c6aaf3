"""Images from spikes without learning, and the bound, by hand and on a miniature."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from src.comparison.no_learning import (
    bound_at_spike_resolution,
    choose_spike_image,
    difference_image,
    window_rate,
)
from src.data.recordings import FrameRecord, Recording
from src.data.spikes.reconstruct import tfp
from src.metrics.psnr_ssim import psnr
from src.pictures.sequence_view import open_sequence
from tests.data_cases import write_miniature
from tests.spike_cases import random_spikes


def bins(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1)


TICKS = np.array([2, 2, 2])


@pytest.mark.parametrize(
    ("centre", "width", "rate"),
    [
        (3.0, 2, 0.0),  # the middle bin
        (2.0, 2, 0.5),  # half of the first and half of the middle one: 1 spike in 2 ticks
        (0.0, 4, 1.0),  # cut to the first bin: 2 spikes in 2 ticks
        (6.0, 3, 1.0),  # cut to [4.5, 6): 1.5 spikes in 1.5 ticks
        (3.0, 100, 4 / 6),  # all
    ],
)
def test_a_window_of_bins_by_hand(centre, width, rate):
    counts = bins(2, 0, 2)
    assert window_rate(counts, TICKS, centre, width).item() == pytest.approx(rate)
    change = difference_image(counts, TICKS, centre, width, sigma=0)
    assert change.item() == pytest.approx(rate - 4 / 6)


def test_bins_of_unknown_ticks_count_as_one_tick():
    rate = window_rate(bins(2, 0, 4), np.zeros(3, np.int32), 2.5, 1)
    assert rate.item() == 4


def test_with_a_bin_per_tick_the_window_is_that_of_tfp():
    spikes = random_spikes(40, 6, 9, seed=3)
    for centre, width in ((20, 8), (2, 12), (39, 6)):
        found = window_rate(spikes, np.ones(40, np.int32), centre, width)
        assert found == pytest.approx(tfp(spikes, centre, width, 1.0), abs=1e-6)


def sequence(tmp_path, spikes="per frame", **changes):
    root = write_miniature(
        tmp_path, sequences=1, val_sequences=0, frames=4, spikes=spikes, **changes
    )
    return root / "train" / "seq_000"


VOXELS_ONLY = SimpleNamespace(frames=[SimpleNamespace(spikes=SimpleNamespace(geometry=None))])


def state_instants(folder):
    """The sharp frame is the fourth of seven, eight ticks each."""
    seconds = [(k, *(tick / 1920 for tick in (56 * k, 56 * k + 56, 56 * k + 24))) for k in range(4)]
    rows = [",".join(map(repr, row)) for row in seconds]
    header = "frame_idx,t0[s],t1[s],t_sharp[s]"
    (folder / "exposures.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize("spikes", ["per frame", "voxels"])
def test_the_best_image_is_chosen_and_beats_its_input(tmp_path, spikes):
    folder = sequence(tmp_path, spikes)
    state_instants(folder)
    recording = open_sequence(folder, 32).recording
    images = {image.kind: image for image in choose_spike_image([recording])}
    kinds = {"difference", "TFP"} | ({"TFI"} if spikes != "voxels" else set())
    assert images.keys() == kinds
    assert "TFI" not in {image.kind for image in choose_spike_image([recording], [VOXELS_ONLY])}
    assert next(iter(images.values())).psnr_db == max(image.psnr_db for image in images.values())
    if spikes != "voxels":  # in ticks, with the threshold as gain
        assert images["TFP"].gain == pytest.approx(2.0, abs=0.1)
    sharp = [recording.read_sharp(i) for i in range(4)]
    before = np.mean([psnr(recording.read_blurry(i), sharp[i]) for i in range(4)])
    for image in images.values():
        scores = [psnr(restored, sharp[i]) for i, restored in image.restore(recording)]
        assert np.mean(scores) == pytest.approx(image.psnr_db, abs=0.3)
    assert images["difference"].psnr_db > before + 0.3  # textures finer than a spike pixel


def test_the_instant_is_the_part_of_the_exposure_in_any_unit(tmp_path):
    folder = sequence(tmp_path)
    recording = open_sequence(folder, 32).recording
    assert recording.sharp_instants == [0.5] * 4
    frame = FrameRecord("0", 0, Path("0.png"), None)  # as with --input_blur .
    assert Recording("here", [frame], 32).sharp_instants == [0.5]
    state_instants(folder)
    recording = open_sequence(folder, 32).recording
    assert recording.sharp_instants == pytest.approx([24 / 56] * 4)


class Stripes:
    """One frame; its stripes are finer than a spike pixel, its colours are blurry."""

    blurry = np.broadcast_to(np.array([50, 60, 70], np.uint8), (8, 8, 3))

    def __len__(self):
        return 1

    def read_blurry(self, _):
        return self.blurry

    def read_sharp(self, _):
        return np.tile(np.array([[200], [0]], np.uint8), (8, 4, 3)).reshape(8, 8, 3)

    def read_counts(self, _):
        return np.zeros((2, 4, 4), np.uint8)


def test_the_bound_by_hand():
    ((number, image),) = bound_at_spike_resolution(Stripes())
    luma = 0.299 * 50 + 0.587 * 60 + 0.114 * 70
    assert number == 0
    assert (image == np.rint(Stripes.blurry + (100 - luma))).all()
