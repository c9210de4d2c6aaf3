"""Recordings of other groups decode to what was measured on them; skipped where they are absent."""

import numpy as np
import pytest

from src.data.frames import read_image
from src.data.spikes.arrays import DenseFile
from src.data.spikes.matching import best_tfp_centre
from src.data.spikes.reconstruct import tfi, tfp
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry
from src.paths import REPO_ROOT
from src.prepare.inspect_file import inspect_file
from src.prepare.inspect_packed import Question

SAMPLES = REPO_ROOT.parent / "shared" / "samples"
REDS_GAIN = 1 / 0.6

pytestmark = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason=f"{SAMPLES} is missing; these recordings are not in the repository"
)


def read_reds(number, **geometry):
    """Spikes [301, 250, 400] and their true grey image [250, 400] in 0..1."""
    path = SAMPLES / f"{number}_part1_key_id151.dat"
    file = SpikeFile(path, SpikeGeometry(250, 400, **geometry))
    assert file.num_ticks == 301
    return file.read(0, 301), read_image(path.with_suffix(".png"))[..., 0] / 255


def psnr_db(image, truth):
    return 10 * np.log10(1 / np.mean((image - truth) ** 2))


@pytest.mark.parametrize(
    ("number", "width", "expected_db", "rate"), [(200, 41, 31.60, 0.2877), (203, 21, 25.86, 0.2159)]
)
def test_reds_reconstruction(number, width, expected_db, rate):
    spikes, truth = read_reds(number)
    assert spikes.mean() == pytest.approx(rate, abs=5e-5)
    assert psnr_db(tfp(spikes, 150, width, REDS_GAIN).clip(0, 1), truth) == pytest.approx(
        expected_db, abs=0.005
    )
    image, has_interval = tfi(spikes, 150, REDS_GAIN)
    assert has_interval.mean() > 0.99
    assert psnr_db(image[has_interval], truth[has_interval]) > 21


@pytest.mark.parametrize(
    ("number", "width", "tolerance"),
    # The scene of 200 hardly moves within 41 ticks; that of 203 moves fast.
    [
        (200, 15, 1.0),
        (200, 21, 1.0),
        (200, 41, 2.0),
        (203, 15, 0.5),
        (203, 21, 0.5),
        (203, 41, 0.5),
    ],
)
def test_the_true_picture_is_that_of_the_middle_tick(number, width, tolerance):
    spikes, truth = read_reds(number)
    match = best_tfp_centre(spikes, truth, width=width)
    assert match.centre == pytest.approx(150, abs=tolerance)
    assert match.is_decisive


def test_real_low_light_spikes():
    path = SAMPLES / "uhsr_helicopter_200x250x250.npz"
    file = DenseFile(path, 250, 250, axes="SHW", key="spk")
    spikes = file.read(0, file.num_ticks)
    assert spikes.shape == (200, 250, 250)
    assert spikes.mean() == pytest.approx(0.03138, abs=1e-5)
    assert np.array_equal(file.read(90, 110), spikes[90:110])


@pytest.mark.parametrize("number", [200, 203])
def test_size_order_of_bits_and_flip_of_a_recording_are_found(number):
    path = SAMPLES / f"{number}_part1_key_id151.dat"
    alone = inspect_file(Question(path))
    assert alone.is_right
    assert alone.answer.startswith("250x400 (first spike camera, REDS sets); bit_order little")
    known = inspect_file(Question(path, reference=path.with_suffix(".png")))
    assert known.answer.endswith("bit_order little; flip_rows True")
    wrong = inspect_file(Question(path, size=(360, 640)))
    assert not wrong.is_right
    assert "250x400 (first spike camera, REDS sets) would be right" in wrong.answer


def test_axes_of_a_recording_are_found():
    findings = inspect_file(Question(SAMPLES / "uhsr_helicopter_200x250x250.npz"))
    assert findings.answer.startswith("axes THW: 200 ticks of 250x250 (UHSR)")


def test_frames_of_12_bits_are_no_spikes():
    findings = inspect_file(Question(SAMPLES / "ball_12bit.mraw"))
    assert not findings.is_right
    assert "the bits look like numbers of 12 bits" in findings.answer
