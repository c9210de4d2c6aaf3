"""Whole networks against outputs, features, flows and gradients of the published network."""

import pytest
import torch

from tests.vrt_cases import GOLDENS, INDEX, golden_net, largest_difference, load

CLIPS = {
    n.removesuffix(".npz") for n, v in INDEX["files"].items() if v.get("kind") == "whole network"
}
WITH_GRADIENTS = "deblur_pa2_T5_72x88"
SAME_NETWORK = {"deblur_pa2_T2_64x64_B2", "deblur_pa2_T6_64x64"}
QUICK = "flags_pa2_T3_64x64"
LIMITS = {
    "output": 2e-4,
    "flows": 3e-5,
    "conv_first": 5e-6,
    **{f"stage{i}": 5e-5 for i in range(1, 7)},
    "stage7": 2e-4,
    "stage8": 5e-4,
}


def nightly(names):
    return [pytest.param(name, marks=pytest.mark.nightly) for name in sorted(names)]


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


@pytest.mark.parametrize("name", [*sorted(CLIPS - SAME_NETWORK), *nightly(SAME_NETWORK)])
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


@pytest.mark.parametrize("name", [QUICK, *nightly(CLIPS - {QUICK, WITH_GRADIENTS})])
def test_float64(name):
    golden = load(name)
    net = golden_net(INDEX["files"][f"{name}.npz"]["config"]).double()
    with torch.no_grad():
        output = net(golden["input"].double())
    (key,) = [key for key in golden if key.startswith("output_f64")]
    step = strided(key)[1]
    assert largest_difference(output[..., ::step, ::step], golden[key]) < 1e-10


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("dtype", "limits"),
    [
        (torch.float32, {"loss": 1e-5, "norm": 2e-3, "input": 5e-3}),
        (torch.float64, {"loss": 1e-10, "norm": 1e-10, "input": 1e-6}),  # its input is float32
    ],
    ids=["float32", "float64"],
)
def test_gradients(dtype, limits):
    """Loss and gradients; in float64 they are computed again in backward, chunk by chunk."""
    golden, is_double = load(WITH_GRADIENTS), dtype == torch.float64
    recomputed = {"use_checkpoint_attn": is_double, "use_checkpoint_ffn": is_double}
    net = golden_net("deblur_pa2", **recomputed).to(dtype)
    x = golden["input"].to(dtype).requires_grad_()
    output = net(x)
    loss = output.square().mean()
    loss.backward()
    wanted = float(golden["loss_f64" if is_double else "loss"])
    assert float(loss.detach()) == pytest.approx(wanted, rel=limits["loss"])
    if is_double:
        assert largest_difference(output[..., ::5, ::5], golden["output_f64_s5"]) < 1e-10
    parameters = dict(net.named_parameters())
    for key, wanted in golden.items():
        kind, _, name = key.partition("/")
        if kind == "gradnorm_f64":
            norm = float(parameters[name].grad.norm())
            assert norm == pytest.approx(float(wanted), rel=limits["norm"])
        elif kind == "grad":
            error = (parameters[name].grad - wanted).norm() / wanted.norm()
            assert float(error) < 5e-3, key  # stored from float32 arithmetic
    error = (x.grad - golden["input_grad"]).norm() / golden["input_grad"].norm()
    assert float(error) < limits["input"]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())


def test_goldens_are_all_used():
    stored = {path.stem for path in GOLDENS.glob("*.npz")} - {"tiling"}
    blocks = {name for name in stored if name.startswith("block_")}
    assert stored - blocks == CLIPS
    assert len(blocks) == 9
