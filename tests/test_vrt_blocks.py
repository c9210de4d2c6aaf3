"""Parts of VRT against goldens of the published network's parts, where whole ones miss a case."""

import pytest
import torch

from tests import vrt_twin
from tests.vrt_cases import largest_difference, load, load_weights, parameters_of
from third_party.VRT.models.blocks import BlockSettings, Group
from third_party.VRT.models.upsampling import Upsample
from third_party.VRT.models.warping import warp, warp_nearest4
from third_party.VRT.models.window_attention import (
    WindowAttention,
    relative_position_index,
)
from third_party.VRT.models.windows import BLOCKED, Segment, WindowPlan, build_plan

LIMIT = 5e-6


def close(a, b, limit=LIMIT):
    assert a.shape == b.shape
    assert largest_difference(a, b) < limit


def one_kind_plan(num_tokens, blocked):
    """A plan of windows that are given: all of one kind."""
    blocked = {0: None} if blocked is None else {2: blocked}
    return WindowPlan(num_tokens, None, None, None, (), blocked)


@pytest.mark.parametrize("name", ["block_attn_mutual", "block_attn_self"])
def test_window_attention(name):
    golden, given = load(name), parameters_of(name)
    attention = WindowAttention(
        given["dim"],
        tuple(given["window_size"]),
        given["num_heads"],
        is_mutual=given["mut_attn"],
    )
    load_weights(attention, golden)
    cases = [("out_nomask", None), ("out_mask", "mask_blocked")]
    if name == "block_attn_self":
        cases += [("out_N320_nomask", None), ("out_N320_mask", "mask_N320_blocked")]
        cases += [("out_N150_nomask", None)]  # a window that shrank on its sides
    for out, mask in cases:
        num_tokens = golden[out].shape[1]
        x = golden["x"][:, :num_tokens]
        for i in range(len(x)):  # each window has a mask of its own here
            blocked = None if mask is None else golden[mask][i % len(golden[mask])]
            kind = 0 if blocked is None else 2
            prepared = attention.prepare(one_kind_plan(num_tokens, blocked))
            with torch.no_grad():
                ours = attention(x[i : i + 1], prepared, (Segment(kind, 0, 1),))
            close(ours, golden[out][i : i + 1])


def test_masks():
    """Those of the twin, and how many of each kind our plan has."""
    for key, blocked in load("block_masks").items():
        size, window, shift = _sizes(key)
        assert torch.equal(vrt_twin.full_mask(size, window, shift), BLOCKED * blocked.float())
        plan = build_plan(1, size, window, shift, 10**9, torch.device("cpu"))
        assert plan.padding is None
        assert len(plan.blocked) <= 8
        ours = []
        for segment in plan.chunks[0].segments:
            pairs = plan.blocked[segment.kind]
            pairs = torch.zeros_like(blocked[0]) if pairs is None else pairs.to(blocked.dtype)
            ours += [pairs] * (segment.stop - segment.start)
        kinds, counts = torch.stack(ours).unique(dim=0, return_counts=True)
        wanted, wanted_counts = blocked.unique(dim=0, return_counts=True)
        assert torch.equal(kinds, wanted)
        assert torch.equal(counts, wanted_counts)


def _sizes(key):
    """Read D12_H16_W16_win6x8x8_shift3x4x4."""
    d, h, w, window, shift = key.split("_")
    return (
        (int(d[1:]), int(h[1:]), int(w[1:])),
        tuple(int(n) for n in window[3:].split("x")),
        tuple(int(n) for n in shift[5:].split("x")),
    )


def test_relative_index_by_hand():
    # Two tokens side by side: a token sees itself (1), its left (2) or its right (0) neighbour.
    assert relative_position_index((1, 1, 2)).tolist() == [[1, 0], [2, 1]]


@pytest.mark.parametrize("is_recorded", [True, False])
@pytest.mark.parametrize("name", ["mutual_pad", "self_pad", "self_shortT", "self_smallHW"])
def test_shifted_block(name, is_recorded):
    golden, given = load(f"block_tmsa_{name}"), parameters_of(f"block_tmsa_{name}")
    window = tuple(given["window_size"])
    settings = BlockSettings(given["num_heads"], window, is_mutual=given["mut_attn"])
    group = Group(given["dim"], 2, settings, [0.0, 0.0])
    assert [side // 2 for side in window] == given["shift_size"]
    load_weights(group.blocks[1], golden)
    # The second block of a group is the shifted one; make the first do nothing.
    first = group.blocks[0]
    torch.nn.init.zeros_(first.attn.proj.weight)
    torch.nn.init.zeros_(first.attn.proj.bias)
    torch.nn.init.zeros_(first.mlp.fc2.weight)
    torch.nn.init.zeros_(first.mlp.fc2.bias)
    with torch.set_grad_enabled(is_recorded):
        close(group(golden["x"]), golden["out"])
        twin = vrt_twin.attention_part(group.blocks[1], golden["x"], window, given["shift_size"])
    close(twin, golden["attn_part"])


def test_warps():
    golden = load("block_flow_warp")
    x, flow = golden["x"], golden["flow"].permute(0, 3, 1, 2)
    close(warp(x, flow), golden["bilinear_zeros"])
    close(warp(x, flow, "border"), golden["bilinear_border"])
    assert torch.equal(warp_nearest4(x, flow), golden["nearest4_zeros"])
    assert torch.equal(vrt_twin.warp_nearest4(x, flow), golden["nearest4_zeros"])


def test_warps_by_hand():
    image = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    flow = torch.zeros(1, 2, 1, 3)
    flow[:, 0] = 0.5
    assert warp(image, flow).flatten().tolist() == pytest.approx([1.5, 3.0, 2.0], abs=1e-6)
    fetched = warp_nearest4(image, flow)[0, :, 0]
    assert fetched.tolist() == [[1, 2, 4], [1, 2, 4], [2, 4, 0], [2, 4, 0]]


def test_upsample_by_two():
    """Three and four are parts of whole networks."""
    golden = load("block_upsample_x2")
    module = load_weights(Upsample(2, 4), golden)
    frames = golden["x"].transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        close(module(frames), golden["out"].transpose(1, 2).flatten(0, 1))


def test_mutual_attention_needs_two_frames():
    with pytest.raises(ValueError, match="between 2 frames; the window has 3"):
        WindowAttention(8, (3, 4, 4), 2, is_mutual=True)
