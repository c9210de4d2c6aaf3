"""The command prints what was found, draws it, and fails where something cannot be right."""

import numpy as np
import pytest

from scripts.inspect_spikes import main
from src.data.frames import read_image
from src.pictures.spike_page import PANEL_PX, draw_curve, draw_histogram, draw_spike_page
from tests.inspection_cases import drifting_spikes, pack


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "clip.dat"
    path.write_bytes(pack(drifting_spikes(96, 128, 56)).tobytes())
    return path


def test_a_file_is_found_and_drawn(recording, tmp_path, capsys):
    assert main([str(recording), "--output", str(tmp_path / "out"), "--threshold", "2"]) == 0
    printed = capsys.readouterr().out
    assert f"{recording}: 96x128 (the demo data); bit_order little" in printed
    assert "rate 0." in printed
    page = read_image(tmp_path / "out" / "clip.png")
    assert page.shape[1] == 2 * PANEL_PX + 3 * 6
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.png"]


def test_what_cannot_be_right_fails(recording, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    assert main([str(recording), "--height", "128", "--width", "96", *output]) == 1
    assert "128x96 cannot be right" in capsys.readouterr().out
    assert main([str(recording), "--height", "3", "--width", "5", *output]) == 1
    assert "multiple of 8" in capsys.readouterr().err
    assert main([str(tmp_path / "missing.dat")]) == 1
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["--height", "3"], ["--height", "0", "--width", "4"], ["--threshold", "0"]]
)
def test_a_wrong_command_line(recording, wrong):
    with pytest.raises(SystemExit):
        main([str(recording), *wrong])


def test_the_page_shows_the_light():
    """With the threshold as gain, the panel of TFP has the brightness of the scene."""
    light = np.linspace(0.2, 0.9, 92)[None] * np.ones((46, 1))
    phase = np.random.default_rng(0).random(light.shape)
    ticks = np.arange(65)[:, None, None]
    spikes = np.diff(np.floor(ticks * light / 2 + phase), axis=0).astype(np.uint8)
    page = draw_spike_page(spikes, 100, 1000, 2.0, ["a clip", "! wrong"])
    top = next(y for y in range(len(page)) if (page[y, 10:400] < 250).all())
    panel = page[top : top + 230, 6 : 6 + PANEL_PX, 0]
    expected = np.repeat(light, 5, axis=1).mean(axis=0) * 255
    assert np.abs(panel.mean(axis=0) - expected).max() < 10
    without = draw_spike_page(spikes, 100, 1000, None, [])
    assert without.max() == 255


def test_curve_and_histogram():
    curve = draw_curve(np.array([0.0, 1.0, 0.0]), (101, 51))
    ink = (curve != 245).any(axis=2)
    assert ink[4:8, 48:53].any()
    assert not ink[4:20, :20].any()
    bars = (draw_histogram(np.full((4, 4), 0.51)) != 245).any(axis=2)
    columns = np.flatnonzero(bars.any(axis=0))
    assert 0.49 * PANEL_PX < columns.min() <= columns.max() < 0.53 * PANEL_PX
    assert draw_curve(np.zeros(1), (50, 30)).shape == (30, 50, 3)
