"""Which offset the frames of a clip show: one slow frame does not refuse it, real mistakes do."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from src.data.errors import BadFileError
from src.data.frames import write_png
from src.data.spikes.spike_dat import SpikeGeometry, SpikeParts, write_spikes
from src.prepare.sources.spk_gopro_offset import (
    FoundFrame,
    judge_shifts,
    measure_offset,
    offset_of,
    other_order,
)
from tests.data_cases import moving_texture
from tests.spike_cases import random_spikes


def frames(*shifts, errors=None):
    errors = [0.5] * len(shifts) if errors is None else errors
    return [
        FoundFrame(Path(f"{k}.png"), 100 - 8 * shift, error, shift)
        for k, (shift, error) in enumerate(zip(shifts, errors, strict=True))
    ]


@pytest.mark.parametrize(
    ("shifts", "offset", "is_shared"),
    [
        ((-0.08, 0.27, 0.05, 0.02), 0, True),  # 2.16 ticks off, rounds to 0 like the others
        ((3.0, 2.9, 3.1, 3.02), 3, True),
        ((0.0, 0.02, 0.55, 0.03), 0, False),  # rounds to 1 and is 4.4 ticks off, sure within 0.5
        ((0.0, 0.0, 0.0, 0.0, 11.0), 0, False),  # a frame is missing before the last one
        ((0.0, 0.0, 1.0, 1.0), 0, False),
        ((0.4, 0.41, 0.39, 0.4), 0, False),  # all of them agree on a place that is no offset
        ((0.0, 1.0), 0, False),
    ],
)
def test_what_frames_show(shifts, offset, is_shared):
    assert judge_shifts(frames(*shifts))[1] == is_shared
    if is_shared:
        assert judge_shifts(frames(*shifts))[0] == offset


def test_the_surer_frames_decide():
    assert judge_shifts(frames(0.0, 0.01, 0.55, errors=(0.1, 0.1, 1.0))) == (0, True)
    assert judge_shifts(frames(0.0, 0.6, 0.6, errors=(0.1, 1.0, 1.0))) == (0, False)  # outvoted
    assert judge_shifts(frames(0.0, 0.55, errors=(0.0, 2.0))) == (0, False)  # 1 of 2 is not most
    assert judge_shifts(frames(0.0, 0.01, 0.55, errors=(0.0, 0.1, 1.0))) == (0, True)


def measured(*shifts, error=1.0, highest=5):
    """Return the offset of a sequence whose frames 1, 2, ... are found at these shifts."""
    found = [
        FoundFrame(Path(f"{k}.png"), 8 * 11 * k + 40 - 8 * shift, error, shift)
        for k, shift in enumerate(shifts, start=1)
    ]
    stream = SimpleNamespace(path_at=lambda tick: Path(f"{tick:.0f}.dat"))
    return offset_of(stream, found, 11, highest)


@pytest.mark.parametrize("shift", [-1.0, 6.0])
def test_an_offset_that_cannot_be_is_refused(shift):
    assert measured(2.0, 2.02, 2.26, 1.98) == 2  # 2.08 ticks off, and rounds to 2 like the others
    assert measured(5.0, 5.0, 5.0) == 5
    with pytest.raises(BadFileError, match="fit no offset of 0 to 5 source frames"):
        measured(shift, shift, shift)


def test_frames_that_disagree_name_the_part_of_the_worst():
    with pytest.raises(BadFileError, match=r"^304\.dat: .* 0\.00, 0\.00, 0\.00, 11\.00 source"):
        measured(0.0, 0.0, 0.0, 11.0)  # the last is at tick 8 * 11 * 4 + 40 - 88


def test_spikes_that_show_nothing_are_named_by_their_part(tmp_path):
    geometry, paths = SpikeGeometry(32, 48), []
    for number in range(3):
        paths.append(tmp_path / f"{number}.dat")
        write_spikes(paths[-1], random_spikes(88, 32, 48), geometry)
    sharp = []
    for k, image in enumerate(moving_texture(3, (64, 96), 0)):
        write_png(tmp_path / f"{k}.png", image)
        sharp.append(tmp_path / f"{k}.png")
    message = r"1\.dat: .*read as 32x48, bit_order little.*inspect_spikes\.py .*1\.dat --ref"
    with pytest.raises(BadFileError, match=message):
        measure_offset(SpikeParts(paths, geometry), sharp, 11, 0)


def test_frames_of_low_contrast_may_show_nothing(tmp_path):
    """Their spikes are mostly noise: neither is the sequence refused, nor its order of bits."""
    path = tmp_path / "0.dat"
    write_spikes(path, random_spikes(300, 32, 48, seed=3), SpikeGeometry(32, 48))
    stream = SpikeParts([path], SpikeGeometry(32, 48))
    (texture,) = moving_texture(1, (64, 96), 0)  # grey at half the size has 0.6 of its contrast
    faint = (128 + (texture - texture.mean()) * (0.06 * 255 / texture.std())).astype(np.uint8)
    write_png(tmp_path / "0.png", faint)
    path = tmp_path / "0.png"
    assert measure_offset(stream, [path, path], 11, 0) == (None, [])
    assert other_order(stream, FoundFrame(path, 128, 1.0, 0.0)) is None
