"""Fast paths of VRT against their slow twins, with proof that the fast path ran."""

import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests import vrt_twin
from tests.vrt_cases import largest_difference, small_net, smallest_net, smooth_clip
from third_party.VRT.models import attention, blocks, chunks
from third_party.VRT.models.attention import attend_windows
from third_party.VRT.models.deformable import DeformableProduct
from third_party.VRT.models.windows import (
    FromWindows,
    Segment,
    ToWindows,
    build_plan,
    effective_window,
)

CPU = torch.device("cpu")


def operators(function):
    """Names of the operators that a call runs, with their counts."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        function()
    return {event.key: event.count for event in record.key_averages()}


@pytest.mark.parametrize(
    ("frames", "changes"),
    [
        (2, {}),
        (3, {"pa_frames": 4}),
        (4, {"pa_frames": 6, "embed_dims": [12] * 8, "deformable_groups": 6}),
        (3, {"window_size": [3, 4, 4], "depths": [4, 1, 1, 2, 1, 1, 2, 2], "qkv_bias": False}),
    ],
)
def test_network_equals_its_twin(frames, changes):
    net = small_net(**changes).double()
    x = smooth_clip(frames, 32, 40, batch=2 if frames == 2 else 1, dtype=torch.float64)
    assert x.std() > 0.1
    with torch.no_grad():
        ours, twin = net(x), vrt_twin.restore(net, x)
    assert (twin - x).std() > 0.1
    assert largest_difference(ours, twin) < 1e-10


def gradients(net, function, x):
    net.zero_grad(set_to_none=True)
    function(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.requires_grad}


def test_gradients_equal_those_of_the_twin():
    """Whichever parts are computed again in backward."""
    x = smooth_clip(3, 16, 24, dtype=torch.float64)
    net = smallest_net().double()
    plan = net.stage1.residual_group1.plan(torch.zeros(1, 3, 16, 24, 8), is_shifted=False)
    assert plan.padding.any()  # padded tokens must not reach any gradient
    twin = gradients(net, lambda clip: vrt_twin.restore(net, clip), x)
    assert all(wanted.abs().sum() > 0 for wanted in twin.values())
    for attn, ffn in itertools.product((False, True), repeat=2):
        net = smallest_net(use_checkpoint_attn=attn, use_checkpoint_ffn=ffn).double()
        ours = gradients(net, net, x)
        for name, wanted in twin.items():
            limit = 1e-9 * max(1.0, float(wanted.norm()))
            assert largest_difference(ours[name], wanted) < limit, (name, attn, ffn)


def test_results_do_not_depend_on_pieces(monkeypatch):
    net = smallest_net(use_checkpoint_attn=True, use_checkpoint_ffn=True).double()
    x = smooth_clip(3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        whole = net(x)
    monkeypatch.setitem(
        chunks.WINDOW_ELEMENTS, "cpu", blocks.LEAST_WIDTH * 70
    )  # 2 windows of 32 tokens
    monkeypatch.setitem(chunks.IMAGE_ELEMENTS, "cpu", 1)
    for module in net.modules():
        if isinstance(module, blocks.Group):
            module._plans.clear()
    with torch.no_grad():
        assert largest_difference(net(x), whole) < 1e-12
    plan = net.stage1.residual_group1.plan(torch.zeros(1, 3, 16, 16, 8), is_shifted=False)
    assert len(plan.chunks) == 16  # 4 frames of 4 x 4 windows, 2 frames deep, 2 at once
    pieces = gradients(net, net, x)
    monkeypatch.undo()
    assert largest_difference(net(x), whole) < 1e-12
    for name, grad in gradients(net, net, x).items():
        assert largest_difference(grad, pieces[name]) < 1e-9, name


def test_fused_attention_runs_forward_and_with_a_learned_bias():
    net = small_net()
    x = smooth_clip(2, 32, 32)
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    with torch.no_grad():
        seen = operators(lambda: net(x))
    assert seen[fused] > 0
    assert not any("attention_math" in name for name in seen)
    seen = operators(lambda: net(x).sum().backward())
    assert seen[fused] > 0
    assert seen["LeanAttentionBackward"] > 0
    assert not any("attention_math" in name for name in seen)


@pytest.mark.parametrize("kinds", [1, 2])
def test_attention_for_training_equals_explicit_attention(kinds, monkeypatch):
    """Two mask kinds, several windows at once or one by one; mutual attention at kinds 2."""
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", 300)
    torch.manual_seed(0)
    heads, width, tokens = 2, 4, 8
    shape = (5, tokens, kinds, 3, heads, width)
    qkv = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    relative = torch.randn(1, heads, tokens, tokens, dtype=torch.float64, requires_grad=True)
    blocked = torch.arange(tokens) % 4 < 2
    mask = torch.where(blocked[:, None] == blocked, 0.0, -100.0).double()
    masks, segments = {0: None, 2: mask}, (Segment(0, 0, 3), Segment(2, 3, 5))
    weight = torch.randn(5, tokens, kinds * heads * width, dtype=torch.float64)

    def explicit():
        results = []
        for segment in segments:
            part, own = qkv[segment.start : segment.stop], masks[segment.kind]
            bias = relative if own is None else relative + own
            q, k, v = part[:, :, 0].permute(2, 0, 3, 1, 4)
            result = [vrt_twin.explicit(q, k, v, 0.3, bias)]
            if kinds == 2:
                half = tokens // 2
                bias = None if own is None else own[None, None, :half, :half]
                first, second = (x.permute(2, 0, 3, 1, 4) for x in part[:, :, 1].split(half, 1))
                from_second = vrt_twin.explicit(second[0], first[1], first[2], 0.3, bias)
                from_first = vrt_twin.explicit(first[0], second[1], second[2], 0.3, bias)
                result.insert(0, torch.cat((from_second, from_first), dim=1))
            results.append(torch.cat(result, dim=-1))
        return torch.cat(results)

    def lean():
        out = attend_windows(qkv, relative, masks, segments, 0.3)
        assert out.grad_fn.name() == "LeanAttentionBackward"
        return out

    results = []
    for function in (explicit, lean):
        out = function()
        results.append((out, *torch.autograd.grad((out * weight).sum(), (qkv, relative))))
    for ours, twin in zip(*results, strict=True):
        assert largest_difference(ours, twin) < 1e-13


def test_gated_mlp_is_one_product_in_training_and_two_without_gradients():
    torch.manual_seed(0)
    mlp = blocks.GatedMlp(4, 6, 3).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    recorded = mlp(x)
    assert operators(lambda: mlp(x))["aten::linear"] == 2
    with torch.no_grad():
        assert operators(lambda: mlp(x))["aten::linear"] == 3
        assert largest_difference(mlp(x), recorded) < 1e-14


@pytest.mark.parametrize("elements", [1, 2**19])
def test_deformable_product_has_the_gradient_of_its_formula(elements, monkeypatch):
    """In pieces of a few rows of one item, and at once."""
    monkeypatch.setitem(chunks.TAP_ELEMENTS, "cpu", elements)
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    position = torch.rand(2, 2, 2, 9, 5, 3, dtype=torch.float64).mul(3).sub(1.5).requires_grad_()
    factor = torch.rand(2, 2, 9, 5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 18, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        DeformableProduct.apply, (x, position, factor, weight), fast_mode=True
    )


def test_no_flow_estimator_is_a_flow_of_zero(monkeypatch):
    net = small_net(pa_frames=4).double()
    net.spynet.requires_grad_(requires_grad=False)
    x = smooth_clip(3, 32, 40, dtype=torch.float64)
    zeros = [[torch.zeros_like(flow) for flow in side] for side in net.get_flows(x)]
    net.get_flows = lambda clip: zeros
    wanted = gradients(net, net, x)
    del net.get_flows
    net.spynet = None
    assert net.get_flows(x) == ([], [])
    for name, grad in gradients(net, net, x).items():
        assert largest_difference(grad, wanted[name]) < 1e-9 * max(1.0, float(grad.norm())), name
    monkeypatch.setitem(chunks.TAP_ELEMENTS, "cpu", 2**30)  # every product in one piece
    seen = operators(lambda: net(x))
    assert seen["DeformableProduct"] == 7  # one for each stage, all frames and directions
    assert seen["aten::grid_sampler_2d"] == 7  # theirs: nothing else is warped


@torch.no_grad()
def test_neighbours_and_flow_run_in_one_batch():
    """However many frames: one call of each convolution, both directions and all frames."""
    net = small_net()
    counts = [operators(lambda n=n: net(smooth_clip(n, 32, 32))) for n in (2, 4)]
    assert counts[0]["aten::conv2d"] == counts[1]["aten::conv2d"] > 30


@pytest.mark.parametrize("size", [(2, 4, 6), (3, 5, 4), (5, 9, 7), (1, 3, 2)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 2, 1)])
def test_windows_there_and_back(size, shift):
    window = (2, 4, 3)
    num_rows = 2 * size[0] * size[1] * size[2]
    rows = torch.arange(num_rows * 3.0).view(num_rows, 3).requires_grad_()
    plan = build_plan(2, size, window, shift, 20, CPU)
    tokens = ToWindows.apply(rows, plan)
    back = FromWindows.apply(tokens, plan)
    assert torch.equal(back, rows)
    back.backward(rows.detach())
    assert torch.equal(rows.grad, rows.detach())
    assert sum(len(chunk.gather) for chunk in plan.chunks) == len(plan.gather)
    # The same windows, as a set, as those cut the obvious way.
    window, shift = effective_window(size, window, shift)
    volume = torch.arange(1, num_rows + 1).view(2, *size, 1)
    d, h, w = (-n % side for n, side in zip(size, window, strict=True))
    volume = torch.nn.functional.pad(volume, (0, 0, 0, w, 0, h, 0, d))
    wanted = vrt_twin.cut(torch.roll(volume, [-s for s in shift], (1, 2, 3)), window)[:, :, 0]
    ours = plan.gather + 1
    if plan.padding is not None:
        ours = ours.masked_fill(plan.padding[:, 0], 0)
    ours = {tuple(row) for row in ours.view(-1, plan.num_tokens).tolist()}
    assert ours == {tuple(row) for row in wanted.tolist()}


def test_heads_widened_by_zeros_change_nothing():
    """What a GPU does: 4 channels per head become 8 in the weights."""
    group = small_net().stage1.residual_group1.double()
    attn = group.blocks[0].attn
    x = torch.randn(3, 32, 8, dtype=torch.float64)
    plan = build_plan(1, (2, 8, 8), (2, 4, 4), (1, 2, 2), 10**6, CPU)
    (segment,) = [s for s in plan.chunks[0].segments if s.kind == 6]
    segments = (type(segment)(6, 0, 3),)
    plain = attn(x, attn.prepare(plan), segments)
    wide = attn.prepare(plan, head_multiple=8)
    assert (attn.head_dim, wide.head_dim) == (4, 8)
    assert wide.weight.shape == (96, 8)
    assert largest_difference(attn(x, wide, segments), plain) < 1e-14


def test_no_graph_and_no_copies_without_gradients():
    net = small_net(use_checkpoint_attn=True, use_checkpoint_ffn=True)
    x = smooth_clip(2, 32, 32)
    with torch.no_grad():
        seen = operators(lambda: net(x))
    assert "ToWindows" not in seen
    assert seen["aten::index_copy_"] > 0
    assert "ToWindows" in operators(lambda: net(x))


def test_frozen_flow_estimator_keeps_no_graph():
    net = small_net()
    x = smooth_clip(2, 32, 32)
    assert all(f.requires_grad for side in net.get_flows(x) for f in side)
    net.spynet.requires_grad_(False)
    assert not any(f.requires_grad for side in net.get_flows(x) for f in side)
    net(x).sum().backward()
    assert net.conv_first.weight.grad.abs().sum() > 0
    assert all(f.requires_grad for side in net.get_flows(x.requires_grad_()) for f in side)
