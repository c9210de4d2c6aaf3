"""How a video is cut into clips and tiles, and how the parts become one result."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from src.inference.tiling import (
    TileSettings,
    mirror_to,
    mirrored_to_multiple,
    padded_size,
    plan_axis,
)
from tests.inference_cases import tile_clip

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN_CASES = json.loads((GOLDENS / "tiling.json").read_text())


def stand_in_network(is_nonblind: bool):
    """Add a pattern that shows where in its tile each value was."""

    def net(x: torch.Tensor) -> torch.Tensor:
        if is_nonblind:
            x = x[:, :, :-1] * (1 + x[:, :, -1:])
        frames, height, width = x.shape[1], *x.shape[-2:]
        pattern = 0.1 * torch.arange(frames).view(-1, 1, 1, 1)
        return x + pattern + 0.01 * torch.arange(height).view(-1, 1) + 0.001 * torch.arange(width)

    return net


def golden_settings(case: dict) -> TileSettings:
    (frames, size, _), (overlap_frames, overlap, _) = case["tile"], case["tile_overlap"]
    window = tuple(case["window_size"])
    return TileSettings(frames, size, overlap_frames, overlap, "reference", window)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_reference_procedure_reproduces_the_goldens(name):
    case = GOLDEN_CASES[name]
    with np.load(GOLDENS / "tiling.npz") as arrays:
        clip, expected = arrays[f"{name}.in"], arrays[f"{name}.out"]
    net = stand_in_network(case["nonblind"])
    result = tile_clip(net, torch.from_numpy(clip), golden_settings(case))
    assert result.shape == expected.shape
    assert np.abs(result.numpy() - expected).max() < 1e-5


def test_starts_by_hand():
    assert plan_axis(10, 4, 1).starts == (0, 3, 6)
    assert plan_axis(11, 4, 1).starts == (0, 3, 6, 7)  # the last tile is moved, not shortened
    assert plan_axis(4, 4, 1).starts == plan_axis(3, 4, 1).starts == plan_axis(9, 0, 0).starts
    assert plan_axis(3, 4, 1).size == 3
    assert plan_axis(22, 7, 2, grid=2).starts == (0, 6, 12, 14)  # tiles of 8, steps of 6
    assert plan_axis(30, 8, 3, grid=2).starts == (0, 4, 8, 12, 16, 20, 22)


def test_smooth_weights_by_hand():
    weights = plan_axis(6, 4, 2).weights
    low, high = np.sin(np.pi / 8) ** 2, np.sin(3 * np.pi / 8) ** 2
    assert weights == pytest.approx(np.array([[1, 1, high, low], [low, high, 1, 1]]), abs=1e-7)


def test_reference_weights_by_hand():
    cut = plan_axis(10, 6, 3, blend="reference")
    assert cut.starts == (0, 3, 4)
    assert cut.weights.tolist() == [
        [1, 1, 1, 1, 0, 0],  # the last ceil(3 / 2) cut off
        [0, 1, 0.5, 0.5, 0, 0],  # the first 3 // 2 as well; positions 5, 6 shared with the next
        [0, 0.5, 0.5, 1, 1, 1],
    ]
    averaged = plan_axis(5, 4, 3, blend="reference", cut_borders=False).weights
    assert averaged.tolist() == [[1, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 1]]


@pytest.mark.parametrize("blend", ["smooth", "reference"])
def test_weights_sum_to_one_everywhere(blend):
    random = np.random.default_rng(0)
    num_with_three = 0
    for _ in range(300):
        grid = int(random.integers(1, 5)) if blend == "smooth" else 1
        length = grid * int(random.integers(1, 40))
        size = int(random.integers(1, 30))
        overlap = int(random.integers(0, size)) if blend == "smooth" else size // 2
        plan = plan_axis(length, size, overlap, blend=blend, grid=grid)
        total, cover = np.zeros(length), np.zeros(length)
        for start, row in zip(plan.starts, plan.weights, strict=True):
            total[start : start + plan.size] += row
            cover[start : start + plan.size] += 1
        assert total == pytest.approx(1, abs=1e-6)
        assert plan.weights.min() >= 0
        assert plan.starts[0] == 0
        assert plan.starts[-1] + plan.size == length
        assert all(start % grid == 0 for start in plan.starts)
        shared = [a + plan.size - b for a, b in zip(plan.starts, plan.starts[1:], strict=False)]
        assert all(pixels >= min(overlap, plan.size - grid) for pixels in shared)
        num_with_three += cover.max() > 2
    assert num_with_three > 10


def test_smooth_blend_has_no_seam_where_tiles_disagree():
    """Tiles that are off by a constant each: the step between neighbouring pixels stays small."""

    def numbered_tiles(blend: str) -> torch.Tensor:
        offsets = iter(range(100))
        settings = TileSettings(0, 32, 0, 16, blend)
        return tile_clip(lambda x: x + next(offsets), torch.zeros(1, 1, 1, 32, 96), settings)

    smooth = numbered_tiles("smooth")
    assert smooth.max() > 3  # the tiles did disagree
    assert smooth.diff(dim=-1).abs().max() < 1.05 * np.pi / 2 / 16  # slope of sin^2 over 16 pixels
    assert numbered_tiles("reference").diff(dim=-1).abs().max() == 1


def test_mirroring_by_hand():
    assert mirrored_to_multiple(5, 4) == [0, 1, 2, 3, 4, 4, 3, 2]
    assert mirrored_to_multiple(4, 4) == [0, 1, 2, 3]
    assert mirrored_to_multiple(1, 6) == [0, 0]  # only what there is can be appended
    image = torch.arange(6).view(2, 3)
    assert mirror_to(image, (3, 5)).tolist() == [[0, 1, 2, 2, 1], [3, 4, 5, 5, 4], [3, 4, 5, 5, 4]]
    settings = TileSettings(0, 0, 0, 0, "reference")
    assert padded_size((21, 32), settings) == (24, 32)
    assert padded_size((21, 32), replace(settings, blend="smooth")) == (21, 32)


def test_halving_ends_at_the_smallest_tile():
    whole = TileSettings(6, 0, 2, 0)
    first = whole.halved(270, 480)
    assert (first.size_px, first.overlap_px, first.frames) == (240, 30, 6)
    sizes = []
    settings = TileSettings(6, 256, 2, 24)
    while settings is not None:
        sizes.append((settings.size_px, settings.overlap_px))
        settings = settings.halved(720, 1280)
    assert sizes == [(256, 24), (128, 24), (64, 24)]
    assert TileSettings(6, 256, 2, 24).halved(64, 48) is None
    assert TileSettings(6, 512, 2, 24).halved(200, 100).size_px == 104


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blend": "soft"}, "blend: expected one of smooth, reference, got 'soft'"),
        ({"size_px": 16, "overlap_px": 16}, "tile size_px 16 must be larger than the overlap 16"),
        ({"frames": 2, "overlap_frames": 3}, "tile frames 2 must be larger than the overlap 3"),
        ({"frames": -1}, "tile frames -1 and overlap 2 must not be negative"),
        ({"size_px": 100, "blend": "reference"}, "needs a multiple of the window 8"),
    ],
)
def test_impossible_settings_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        TileSettings(**arguments)


def test_reference_tiles_off_the_grid_are_an_error():
    with pytest.raises(ValueError, match="do not lie on the grid of 3 pixels"):
        plan_axis(96, 16, 4, blend="reference", grid=3)
    assert plan_axis(96, 16, 4, grid=3).size == 18
