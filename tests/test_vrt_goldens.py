"""Whole networks against outputs, features, flows and gradients of the published network."""

import pytest
import torch

from tests.vrt_cases import GOLDENS, INDEX, golden_net, largest_difference, load

CLIPS = sorted(n for n, v in INDEX["files"].items() if v.get("kind") == "whole network")
WITH_GRADIENTS = "deblur_pa2_T5_72x88"
LIMITS = {
    "output": 2e-4,
    "flows": 3e-5,
    "conv_first": 5e-6,
    **{f"stage{i}": 5e-5 for i in range(1, 7)},
    "stage7": 2e-4,
    "stage8": 5e-4,
}


def watch(net):
    """Collect what the parts of the network return."""
    seen = {}

    def keep(name):
        return lambda module, inputs, output: seen.__setitem__(name, output)

    for i in range(1, 8):
        getattr(net, f"stage{i}").register_forward_hook(keep(f"stage{i}"))
    net.stage8[-1].register_forward_hook(keep("stage8"))
    net.conv_first.register_forward_hook(
        lambda module, inputs, output: seen.update(conv_first_in=inputs[0], conv_first=output)
    )
    return seen


def strided(key):
    """Split `stage3_s5` into the name and the step between stored rows and columns."""
    name, _, step = key.rpartition("_s")
    return (name, int(step)) if name and step.isdigit() else (key, 1)


@pytest.mark.parametrize("name", [clip.removesuffix(".npz") for clip in CLIPS])
def test_float32(name):
    golden = load(name)
    net = golden_net(INDEX["files"][f"{name}.npz"]["config"])
    seen = watch(net)
    x = golden["input"]
    with torch.no_grad():
        seen["output"] = net(x)
        flows = net.get_flows(x[:, :, :3]) if net.pa_frames else ([], [])
    for side, tensors in zip(("backward", "forward"), flows, strict=True):
        seen.update({f"flows_{side}.{i}": flow for i, flow in enumerate(tensors)})
    checked = 0
    for key, wanted in golden.items():
        base, step = strided(key)
        if base not in seen:
            continue
        ours = seen[base]
        if base.startswith("conv_first"):  # [B * T, C, H, W] in ours, [B, C, T, H, W] stored
            ours = ours.unflatten(0, x.shape[:2]).transpose(1, 2)
        ours = ours[..., ::step, ::step]
        assert ours.shape == wanted.shape, key
        if base == "conv_first_in":
            assert torch.equal(ours, wanted), key
        else:
            limit = LIMITS[base.split("_")[0].split(".")[0] if base != "conv_first" else base]
            assert largest_difference(ours, wanted) < limit, key
            if base == "output":
                assert (ours - wanted).square().mean().sqrt() < 8e-6
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize(
    "name", [n for n in (c.removesuffix(".npz") for c in CLIPS) if n != WITH_GRADIENTS]
)
def test_float64(name):
    golden = load(name)
    net = golden_net(INDEX["files"][f"{name}.npz"]["config"]).double()
    with torch.no_grad():
        output = net(golden["input"].double())
    (key,) = [key for key in golden if key.startswith("output_f64")]
    step = strided(key)[1]
    assert largest_difference(output[..., ::step, ::step], golden[key]) < 1e-10


def test_gradients_float64():
    """Output, loss and gradients, computed again in backward chunk by chunk."""
    golden = load(WITH_GRADIENTS)
    net = golden_net("deblur_pa2", use_checkpoint_attn=True, use_checkpoint_ffn=True).double()
    x = golden["input"].double().requires_grad_()
    output = net(x)
    assert largest_difference(output[..., ::5, ::5].detach(), golden["output_f64_s5"]) < 1e-10
    loss = output.square().mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden["loss_f64"]), rel=1e-10)
    parameters = dict(net.named_parameters())
    for key, wanted in golden.items():
        kind, _, name = key.partition("/")
        if kind == "gradnorm_f64":
            assert float(parameters[name].grad.norm()) == pytest.approx(float(wanted), rel=1e-10)
        elif kind == "grad":
            error = (parameters[name].grad - wanted).norm() / wanted.norm()
            assert float(error) < 5e-3, key  # stored from float32 arithmetic
    error = (x.grad - golden["input_grad"]).norm() / golden["input_grad"].norm()
    assert float(error) < 1e-6
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())


def test_gradients_float32():
    golden = load(WITH_GRADIENTS)
    net = golden_net("deblur_pa2")
    x = golden["input"].clone().requires_grad_()
    loss = net(x).square().mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(golden["loss"]), rel=1e-5)
    parameters = dict(net.named_parameters())
    for key, wanted in golden.items():
        kind, _, name = key.partition("/")
        if kind == "gradnorm_f64":
            assert float(parameters[name].grad.norm()) == pytest.approx(float(wanted), rel=2e-3)
    error = (x.grad - golden["input_grad"]).norm() / golden["input_grad"].norm()
    assert float(error) < 5e-3


def test_goldens_are_all_used():
    stored = {path.name for path in GOLDENS.glob("*.npz")} - {"tiling.npz"}
    blocks = {name for name in stored if name.startswith("block_")}
    assert stored - blocks == set(CLIPS)
    assert len(blocks) == 25
