"""Weight files of VRT and its flow estimator; no test reaches the network."""

import hashlib
import logging

import pytest
import torch

from tests.vrt_cases import small_net, smooth_clip
from third_party.VRT.models.flow import SpyNet
from third_party.VRT.models.network_vrt import VRT
from third_party.VRT.models.weights import load_official, load_spynet


def save_named_by_hash(state, folder, stem):
    """Write a file whose name ends in the first digits of its SHA-256."""
    for salt in range(100):  # until the digits are not all decimal
        plain = folder / "plain.pth"
        torch.save({"params": state, "salt": salt}, plain)
        digits = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
        if not digits.isdecimal():
            return plain.rename(folder / f"{stem}-{digits}.pth")
    raise AssertionError


def convolutions(spynet):
    return {k: v for k, v in spynet.state_dict().items() if k not in ("mean", "std")}


@pytest.mark.parametrize("is_nested", [True, False])
def test_official_files_load_strictly(tmp_path, is_nested):
    source, target = small_net(), small_net()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01)
    state = source.state_dict()
    torch.save({"params": state} if is_nested else state, tmp_path / "005_VRT_deblur.pth")
    load_official(target, tmp_path / "005_VRT_deblur.pth")
    x = smooth_clip(2, 32, 32)
    with torch.no_grad():
        assert torch.equal(source(x), target(x))


def test_another_networks_file_is_refused(tmp_path):
    torch.save({"params": small_net(depths=[1] * 8).state_dict()}, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match=r"Missing key.*stage1\.residual_group1"):
        load_official(small_net(), tmp_path / "other.pth")


def test_files_that_hold_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        load_official(small_net(), tmp_path / "missing.pth")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Not found</html>")
    with pytest.raises(ValueError, match=r"page\.pth is damaged or no weight file"):
        load_official(small_net(), tmp_path / "page.pth")
    torch.save({"params": [1, 2]}, tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_official(small_net(), tmp_path / "list.pth")


def test_flow_estimator_from_a_path(tmp_path, caplog):
    source = SpyNet()
    path = save_named_by_hash(convolutions(source), tmp_path, "spynet")
    with caplog.at_level(logging.INFO):
        net = small_net(spynet_path=None)
        load_spynet(net.spynet, path)
    assert f"flow estimator weights: {path}" in caplog.text
    for key, value in net.spynet.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="delete it and fetch it again"):
        load_spynet(SpyNet(), path)


def test_constructor_reads_the_path(tmp_path):
    source = SpyNet()
    torch.save({"params": convolutions(source)}, tmp_path / "spynet.pth")
    arguments = {"depths": [1] * 8, "embed_dims": [8] * 8, "num_heads": [2] * 8}
    arguments.update(upscale=1, indep_reconsts=[], deformable_groups=2)
    net = VRT(**arguments, spynet_path=tmp_path / "spynet.pth")
    ours, theirs = (flow.basic_module[5].basic_module[0].weight for flow in (net.spynet, source))
    assert torch.equal(ours, theirs)
    with pytest.raises(FileNotFoundError, match="they are at https://github.com"):
        VRT(**arguments, spynet_path=tmp_path / "missing.pth")


def test_random_flow_estimator_is_said(caplog):
    with caplog.at_level(logging.DEBUG):
        small_net()
    assert "flow estimator: random weights" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        small_net(pa_frames=0, img_size=[2, 32, 32])
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("name", "is_checked"),
    [("spynet-3d2a1287.pth", True), ("run-20240131.pth", False), ("005_VRT.pth", False)],
)
def test_only_names_with_a_hash_are_checked(tmp_path, name, is_checked):
    torch.save({"params": convolutions(SpyNet())}, tmp_path / name)
    if is_checked:
        with pytest.raises(ValueError, match="its name says 3d2a1287"):
            load_spynet(SpyNet(), tmp_path / name)
    else:
        load_spynet(SpyNet(), tmp_path / name)
