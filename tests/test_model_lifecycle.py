"""What happens to a model with spikes: copied, pickled, recomputed, compiled."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from src.models import spike_encoder3d
from src.models.integrate_vrt import add_stage_hook
from src.utils.attention import set_recomputation
from tests.attention_cases import random_maps
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
    with pytest.raises(RuntimeError, match="has a stage hook already"):
        add_stage_hook(other.vrt)


def gradients(model, *inputs, run=None):
    model.zero_grad()
    (model if run is None else run)(*inputs).square().mean().backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def assert_close(got, want, tolerance, least_scale):
    assert got.keys() == want.keys()
    for key in want:
        atol = tolerance * (want[key].abs().max().item() + least_scale)
        torch.testing.assert_close(got[key], want[key], rtol=0, atol=atol)


def test_recomputation_changes_nothing(build):
    """Inside the attentions and around the whole model, which fuses a second time in backward."""
    inputs = clip_and_voxels()
    plain, inner = (wake_up(build_with_spike(build())) for _ in range(2))
    set_recomputation(inner, attn=True, ffn=True)

    def outer(*inputs):
        return checkpoint(plain, *inputs, use_reentrant=False)

    want = gradients(plain, *inputs)
    assert_close(gradients(inner, *inputs), want, 1e-4, 1e-6)
    assert_close(gradients(plain, *inputs, run=outer), want, 1e-4, 1e-6)


@pytest.fixture(name="fresh_compiler")
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(name="small_graph")
def _small_graph(monkeypatch):
    """Give a model of few operations: heads of width 1, no loops over the frames of small maps."""
    monkeypatch.setattr(spike_encoder3d, "SMALL_MAP", 0)
    return wake_up(build_with_spike(build_look_alike(), tsa_heads=8, fuse_heads=8)).double()


@pytest.mark.parametrize("part", ["fusion", pytest.param("all", marks=pytest.mark.nightly)])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled(small_graph, part):
    """One graph forward, one backward; the call-time fusion does not break it."""
    model, inputs = small_graph, [x.double() for x in clip_and_voxels()]
    if part == "fusion":
        model = model.cross_attn_fuse.fuse_blocks[0]
        inputs = random_maps((1, 2, 8, 3, 4), (1, 2, 8, 3, 4), dtype=torch.float64)
    want = gradients(model, *inputs)
    backend = "eager" if part == "fusion" else "aot_eager"
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_close(gradients(model, *inputs, run=compiled), want, 1e-9, 1e-6)  # some are very small
