"""What happens to a model with spikes: copied, pickled, recomputed, compiled, trained by DDP."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from src.models.integrate_vrt import open_vrt
from src.utils.attention import set_recomputation
from tests.model_cases import VRTS, build_look_alike, build_with_spike, clip_and_voxels, wake_up


@pytest.fixture(params=VRTS, name="build")
def _build(request):
    return VRTS[request.param]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(build, duplicate):
    model = wake_up(build_with_spike(build())).eval()
    rgb, voxels = clip_and_voxels()
    want = model(rgb, voxels)
    other = duplicate(model)
    assert torch.equal(other(rgb, voxels), want)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(rgb, voxels), want)
    assert not torch.equal(other(rgb, voxels), want)
    with pytest.raises(RuntimeError, match="opened already"):
        open_vrt(other.vrt)


def test_recomputation_changes_nothing(build):
    """Inside the attentions and around the whole model, which fuses a second time in backward."""
    rgb, voxels = clip_and_voxels()
    plain = wake_up(build_with_spike(build()))
    inner = wake_up(build_with_spike(build()))
    set_recomputation(inner, attn=True, ffn=True)

    def gradients(model, run):
        model.zero_grad()
        run(rgb, voxels).square().sum().backward()
        return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    def outer(*inputs):
        return checkpoint(plain, *inputs, use_reentrant=False)

    want = gradients(plain, plain)
    for got in (gradients(inner, inner), gradients(plain, outer)):
        assert got.keys() == want.keys()
        for key in want:
            scale = want[key].abs().max().item() + 1e-3
            torch.testing.assert_close(got[key], want[key], rtol=0, atol=1e-4 * scale)


def test_compiled():
    """One graph, forward and backward; the call-time fusion does not break it."""
    torch.compiler.reset()
    flat = {"tsa_heads": 8, "fuse_heads": 8}  # heads of width 1: the smallest graph
    model = wake_up(build_with_spike(build_look_alike(), **flat)).double()
    rgb, voxels = (x.double() for x in clip_and_voxels())  # some gradients are very small
    want = gradients_of(model, rgb, voxels)
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(rgb, voxels).square().mean().backward()
    for key, parameter in model.named_parameters():
        scale = want[key].abs().max().item() + 1e-6
        torch.testing.assert_close(parameter.grad, want[key], rtol=0, atol=1e-9 * scale)
    torch.compiler.reset()


def gradients_of(model, rgb, voxels):
    model(rgb, voxels).square().mean().backward()
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return {k: p.grad for k, p in inner.named_parameters() if p.grad is not None}


def train_on_one_rank(rank, meeting_point, result):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2
    )
    model = nn.parallel.DistributedDataParallel(wake_up(build_with_spike(build_look_alike())))
    rgb, voxels = clip_and_voxels(batch=2)
    gradients = gradients_of(model, rgb[rank : rank + 1], voxels[rank : rank + 1])
    if rank == 1:
        torch.save(gradients, result)
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    arguments = (str(tmp_path / "meet"), str(tmp_path / "gradients.pth"))
    torch.multiprocessing.spawn(train_on_one_rank, arguments, nprocs=2)
    got = torch.load(arguments[1], weights_only=True)
    want = gradients_of(wake_up(build_with_spike(build_look_alike())), *clip_and_voxels(batch=2))
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-4, atol=1e-6)
