"""VRT as others use it: copied, pickled, in half precision, compiled, tested and then trained."""

import copy
import pickle

import pytest
import torch

from tests.vrt_cases import largest_difference, small_net, smallest_net, smooth_clip
from third_party.VRT.models.blocks import MAX_PLANS, Group


def trained_one_step(net, x):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    net(x).square().mean().backward()
    optimizer.step()


def groups(net):
    return [module for module in net.modules() if isinstance(module, Group) and module.blocks]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_independent_and_leave_plans_behind(duplicate):
    net, x = small_net(), smooth_clip(2, 32, 32)
    with torch.no_grad():
        before = net(x)
    assert all(group._plans for group in groups(net))
    twin = duplicate(net)
    assert not any(group._plans for group in groups(twin))
    trained_one_step(net, x)
    with torch.no_grad():
        assert torch.equal(twin(x), before)
        assert largest_difference(net(x), before) > 1e-6


def test_training_after_inference_mode():
    """Index tensors made while testing are used by a later backward pass."""
    net, x = small_net(), smooth_clip(3, 32, 40)  # windows with padded tokens
    with torch.inference_mode():
        net(x)
    trained_one_step(net, x)


def test_weights_changed_in_place_are_seen():
    """Nothing that depends on weights is remembered from call to call."""
    net, other, x = small_net(), small_net(), smooth_clip(2, 32, 32)
    with torch.no_grad():
        net(x)
        for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
            theirs.mul_(0.9)
            mine.data.copy_(theirs)
        assert torch.equal(net(x), other(x))


def test_remembered_sizes_are_bounded():
    group = small_net().stage8[1].residual_group
    with torch.no_grad():
        for rows in range(5, 5 + 2 * MAX_PLANS):
            group(torch.zeros(1, 2, rows, 6, 8))
    assert len(group._plans) == MAX_PLANS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    net, x = small_net(), smooth_clip(2, 32, 32)
    kinds = {}

    def note(name, module):
        module.register_forward_hook(lambda m, args, out: kinds.update({name: out.dtype}))

    note("flow", net.spynet.basic_module[5])
    note("offset", net.stage1.pa_deform.conv_offset[0])
    note("deform", net.stage1.pa_deform)
    note("block", net.stage1.pa_fuse.fc2)
    note("stage", net.stage1)
    with torch.no_grad():
        wanted = net(x)
        flows = net.get_flows(x)[0]
        kinds.clear()
        with torch.autocast("cpu", dtype=dtype):
            ours = net(x)
            assert torch.equal(net.get_flows(x)[0][0], flows[0])
    full = torch.float32
    assert kinds == {"flow": full, "offset": full, "deform": full, "block": dtype, "stage": full}
    change = (wanted - x).std()
    assert (ours - wanted).abs().mean() < 0.05 * change
    with torch.autocast("cpu", dtype=dtype):
        loss = net(x).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("half", "drop_path_rate"), [(True, 0.0), (False, 0.5)], ids=["autocast", "stochastic depth"]
)
def test_recomputation_gives_the_same_gradients(half, drop_path_rate):
    x, results = smooth_clip(2, 32, 32, batch=1 if half else 3), []
    for flag in (False, True):
        flags = {"use_checkpoint_attn": flag, "use_checkpoint_ffn": flag}
        net = small_net(drop_path_rate=drop_path_rate, **flags).train()
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = net(x).float().square().mean()
        loss.backward()
        results.append([p.grad for p in net.parameters() if p.grad is not None])
    for a, b in zip(*results, strict=True):
        assert largest_difference(a, b) <= 1e-4 * max(1.0, float(a.norm()))


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_compiled_stage(recompute):
    """Attention and alignment; nightly with recomputation and the backward pass, too."""
    flags = dict.fromkeys(("use_checkpoint_attn", "use_checkpoint_ffn"), recompute)
    net = small_net(depths=[2] + [1] * 7, **flags).double()
    backward, forward = net.get_flows(smooth_clip(2, 16, 16, dtype=torch.float64))
    x = torch.randn(1, 8, 2, 16, 16, dtype=torch.float64)
    flows = [[flow.detach() for flow in side[0::4]] for side in (backward, forward)]
    compiled = torch.compile(net.stage1, backend="aot_eager" if recompute else "eager")
    weight = net.stage1.residual_group1.blocks[0].attn.relative_position_bias_table
    results = []
    for stage in (net.stage1, compiled):
        with torch.set_grad_enabled(recompute):
            out = stage(x, *flows)
        results.append([out.detach()])
        if recompute:
            results[-1] += torch.autograd.grad(out.square().sum(), (weight,))
    for wanted, ours in zip(*results, strict=True):
        assert largest_difference(ours, wanted) < 1e-9 * max(1.0, float(wanted.norm()))


@pytest.mark.nightly
def test_compiled_module():
    net, x = smallest_net().double(), smooth_clip(2, 16, 16, dtype=torch.float64)
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        assert largest_difference(compiled(x), net(x)) < 1e-10


def test_stochastic_depth_drops_branches_of_single_clips():
    net = small_net(drop_path_rate=0.9).train()
    group = net.stage8[1].residual_group
    block = group.blocks[1]
    assert block.drop_path == pytest.approx(0.9)
    x = torch.randn(64, 2, 4, 4, 8)
    plan = group.plan(x, is_shifted=False)
    torch.manual_seed(0)
    keep = block.prepare(64, plan, x).keep_attn
    values, counts = keep.unique(return_counts=True)
    assert values.tolist() == pytest.approx([0.0, 10.0], rel=1e-5)
    assert 1 <= int(counts[1]) <= 16
    # A clip whose two parts are dropped in each block passes through unchanged.
    with torch.no_grad():
        changed = (group(x) != x).flatten(1).any(1)
    assert 0 < int(changed.sum()) < 64
    net.eval()
    assert block.prepare(64, plan, x).keep_attn is None
