"""A checkpoint becomes one .safetensors file, which restores like the checkpoint."""

import json

import pytest
import torch
from safetensors import safe_open

from scripts.export_weights import main
from src.config import config_to_text, get_defaults
from src.engine.checkpoint import save_checkpoint
from src.models.weights import load_weights, read_torch_file

STATE = {
    "model": {"vrt.weight": torch.ones(2, 3).T, "vrt.bias": torch.zeros(1)},
    "ema": {"vrt.weight": torch.full((3, 2), 2.0), "vrt.bias": torch.ones(1)},
    "optimizer": {"exp_avg": torch.ones(100)},
    "config": config_to_text(get_defaults()),
    "vrt": "depths: [1, 2]\n",
    "data": "source: demo\n",
    "progress": {"step": 7, "best_psnr": 27.5, "best_step": 7, "compute_s": 12.5},
}


@pytest.fixture(name="checkpoint")
def _checkpoint(tmp_path):
    save_checkpoint(tmp_path / "best.pth", STATE)
    return tmp_path / "best.pth"


def facts_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_both_sets_of_weights_and_the_facts(checkpoint, tmp_path, capsys):
    report = tmp_path / "test.json"
    report.write_text(json.dumps({"scores": {"restored": {"mean_over_frames": {"ssim_rgb": 1}}}}))
    output = tmp_path / "small.safetensors"
    options = ["--licence", "Apache-2.0", "--report", str(report)]
    assert main([str(checkpoint), str(output), *options]) == 0
    assert f"src/test.py --ckpt {output}" in capsys.readouterr().out
    stored = read_torch_file(output, "weights")
    for part in ("model", "ema"):
        assert stored[part].keys() == STATE[part].keys()
        assert all(torch.equal(stored[part][name], value) for name, value in STATE[part].items())
    assert (stored["vrt"], stored["data"]) == (STATE["vrt"], STATE["data"])
    assert "EXP_NAME: small\n" in stored["config"]
    assert stored["progress"] == {"step": 7}
    assert (stored["licence"], stored["compute_s"]) == ("Apache-2.0", 12.5)
    validation = {"psnr_rgb": 27.5}
    assert stored["scores"] == {"validation": validation, str(report): {"ssim_rgb": 1}}
    assert "optimizer" not in stored


def test_merged_weights_are_the_averaged_ones(checkpoint, tmp_path):
    output = tmp_path / "small.safetensors"
    assert main([str(checkpoint), str(output), "--merge", "--name", "other"]) == 0
    assert "EXP_NAME: other\n" in facts_of(output)["config"]
    assert "ema" not in read_torch_file(output, "weights")
    model = torch.nn.ModuleDict({"vrt": torch.nn.Linear(2, 3)})
    model["vrt"].bias = torch.nn.Parameter(torch.zeros(1))
    assert load_weights(model, output, require_all=True).missing == ()
    assert model["vrt"].weight.eq(2).all()
    assert model["vrt"].bias.eq(1).all()


def test_a_score_of_other_weights_is_not_theirs(tmp_path):
    progress = STATE["progress"] | {"step": 8}
    save_checkpoint(tmp_path / "last.pth", STATE | {"progress": progress})
    assert main([str(tmp_path / "last.pth"), str(tmp_path / "a.safetensors")]) == 0
    assert facts_of(tmp_path / "a.safetensors")["scores"] == "{}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("best.pth out.pth", "a name that ends in .safetensors is needed"),
        ("absent.pth out.safetensors", "absent.pth"),
        ("plain.pth out.safetensors --merge", "has no averaged weights"),
        ("best.pth out.safetensors --report plain.pth", "no report of src/test.py"),
    ],
)
def test_what_cannot_be_exported(checkpoint, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "plain.pth", {k: v for k, v in STATE.items() if k != "ema"})
    assert main(arguments.split()) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
