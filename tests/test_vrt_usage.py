"""VRT as others use it: copied, pickled, in half precision, compiled, tested and then trained."""

import copy
import pickle

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.vrt_cases import largest_difference, small_net, smooth_clip
from third_party.VRT.models.blocks import MAX_PLANS, Group


def trained_one_step(net, x):
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    net(x).square().mean().backward()
    optimizer.step()


def groups(net):
    return [module for module in net.modules() if isinstance(module, Group) and module.blocks]


def test_copies_are_independent_and_leave_plans_behind():
    net, x = small_net(), smooth_clip(2, 32, 32)
    with torch.no_grad():
        before = net(x)
    assert all(group._plans for group in groups(net))
    twin = copy.deepcopy(net)
    assert not any(group._plans for group in groups(twin))
    assert all(group._plans for group in groups(net))
    trained_one_step(net, x)
    with torch.no_grad():
        assert torch.equal(twin(x), before)
        assert largest_difference(net(x), before) > 1e-6


def test_pickle():
    net, x = small_net(), smooth_clip(2, 32, 32)
    with torch.no_grad():
        before = net(x)
        again = pickle.loads(pickle.dumps(net))  # noqa: S301
        assert torch.equal(again(x), before)
    bare = small_net()
    assert len(pickle.dumps(net)) == len(pickle.dumps(bare))  # nothing remembered travels


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


def test_autocast_with_recomputation_gives_the_same_gradients():
    x = smooth_clip(2, 32, 32)
    grads = []
    for flag in (False, True):
        net = small_net(use_checkpoint_attn=flag, use_checkpoint_ffn=flag)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net(x).float().square().mean()
        loss.backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert largest_difference(a, b) <= 1e-4 * max(1.0, float(a.norm()))


def test_compiled_stage():
    """Attention, recomputation and alignment, forward and backward."""
    net = small_net(use_checkpoint_attn=True, use_checkpoint_ffn=True).double()
    backward, forward = net.get_flows(smooth_clip(2, 32, 32, dtype=torch.float64))
    x = torch.randn(1, 8, 2, 32, 32, dtype=torch.float64)
    flows = [[flow.detach() for flow in side[0::4]] for side in (backward, forward)]
    compiled = torch.compile(net.stage1, backend="aot_eager")
    weight = net.stage1.residual_group2.blocks[0].attn.relative_position_bias_table
    results = []
    for stage in (net.stage1, compiled):
        out = stage(x, *flows)
        results.append((out, *torch.autograd.grad(out.square().sum(), (weight,))))
    for wanted, ours in zip(*results, strict=True):
        assert largest_difference(ours, wanted) < 1e-9 * max(1.0, float(wanted.detach().norm()))


def test_compiled_module():
    net, x = small_net().double(), smooth_clip(2, 32, 32, dtype=torch.float64)
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        assert largest_difference(compiled(x), net(x)) < 1e-10


def test_distributed_module(tmp_path):
    """One process of one: every parameter takes part, recomputation included."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        net = small_net(use_checkpoint_attn=True, use_checkpoint_ffn=True)
        alone, x = copy.deepcopy(net), smooth_clip(2, 32, 32)
        parallel = DistributedDataParallel(net)
        for _ in range(2):  # the second step fails if a parameter took no part in the first
            parallel(x).square().mean().backward()
            alone(x).square().mean().backward()
        for ours, wanted in zip(net.parameters(), alone.parameters(), strict=True):
            assert largest_difference(ours.grad, wanted.grad) < 1e-4 * max(1, wanted.grad.norm())
    finally:
        torch.distributed.destroy_process_group()


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


def test_stochastic_depth_with_recomputation_is_consistent():
    x = smooth_clip(2, 32, 32, batch=3)
    grads = []
    for flag in (False, True):
        net = small_net(drop_path_rate=0.5, use_checkpoint_attn=flag, use_checkpoint_ffn=flag)
        net.train()
        torch.manual_seed(3)
        net(x).square().mean().backward()
        grads.append([p.grad for p in net.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert largest_difference(a, b) < 1e-4 * max(1.0, float(a.norm()))


def test_batch_items_do_not_interact():
    net = small_net().double()
    x = smooth_clip(3, 32, 32, batch=2, dtype=torch.float64)
    with torch.no_grad():
        together = net(x)
        for i in range(2):
            assert largest_difference(together[i : i + 1], net(x[i : i + 1])) < 1e-10


def test_forward_calls_an_overridden_forward_features():
    class Opened(type(small_net())):
        def forward_features(self, x, flows_backward, flows_forward):
            self.seen = (x.shape, len(flows_backward), flows_backward[1].shape)
            return super().forward_features(x, flows_backward, flows_forward)

    net = small_net()
    net.__class__ = Opened
    with torch.no_grad():
        net(smooth_clip(3, 32, 40))
    assert net.seen == ((1, 8, 3, 32, 40), 4, (1, 2, 2, 16, 20))


def test_stages_take_any_memory_layout():
    net = small_net()
    x = smooth_clip(2, 32, 32)
    with torch.no_grad():
        backward, forward = net.get_flows(x)
        features = torch.randn(1, 8, 2, 32, 32)
        last = features.contiguous(memory_format=torch.channels_last_3d)
        a = net.stage1(features, backward[0::4], forward[0::4])
        b = net.stage1(last, backward[0::4], forward[0::4])
        assert torch.equal(a, b)
        assert torch.equal(features, last)  # inputs are not written to
