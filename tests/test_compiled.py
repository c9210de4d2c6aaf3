"""TRAIN.COMPILE and `src/test.py --compile`: equal results, equal keys, and what is logged."""

import copy
import re

import pytest
import torch
from torch import nn

from src.models import compiled
from src.models.spike_encoder3d import ResidualBlock3D
from src.models.spike_temporal_sa import TemporalSelfAttentionBlock
from tests.training_cases import make_trainer, read_checkpoint, run_ranks, write_run
from third_party.VRT.models.blocks import GatedMlp

LINE = r"\d+ parts are compiled: the first run took [\d.]+ s; now [\d.]+ s in place of [\d.]+, "
CHANGES = {
    "TRAIN__MAX_STEPS": 2,
    "TRAIN__EMA_DECAY": 0.5,
    "MODEL__USE_CHECKPOINT_ATTN": True,
    "MODEL__USE_CHECKPOINT_FFN": True,
}

COMPILING = """
import sys
from src import train
from src.models import compiled
compiled.BACKEND = "eager"
sys.exit(train.main())
"""


@pytest.fixture(name="backend")
def _backend(monkeypatch):
    """Trace without a compiler, which takes minutes; forget it afterwards."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_close(first, second):
    """Weights and their average of two checkpoints are equal within rounding."""
    for part in ("model", "ema"):
        assert first[part].keys() == second[part].keys()
        for key, value in first[part].items():
            torch.testing.assert_close(value, second[part][key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.nightly
@pytest.mark.usefixtures("backend")
def test_a_compiled_training_equals_another(tmp_path, caplog):
    """With recomputation and an average; the checkpoint resumes without the compiler."""
    config = write_run(tmp_path, **CHANGES)
    assert make_trainer(config, "EXP_NAME", "plain").fit() == 0
    trainer = make_trainer(config, "TRAIN.COMPILE", "true")
    with caplog.at_level("INFO"):
        assert trainer.fit() == 0
    assert re.search(LINE, caplog.text)
    assert any(part._compiled_call_impl for part in trainer.average.model.modules())
    assert_close(read_checkpoint(tmp_path), read_checkpoint(tmp_path, "plain"))
    later = make_trainer(config, "TRAIN.MAX_STEPS", "3")
    later.resume("auto")
    assert later.progress.step == 2


@pytest.mark.nightly
def test_two_ranks_that_compile_equal_two_that_do_not(tmp_path):
    """With DDP, recomputation and an average."""
    config, script = write_run(tmp_path, **CHANGES), tmp_path / "compiling.py"
    script.write_text(COMPILING)
    for name, is_compiled in (("plain", "false"), ("run", "true")):
        command = [script, "--config", config, "EXP_NAME", name, "TRAIN.COMPILE", is_compiled]
        codes, output = run_ranks(command, tmp_path, 2)
        assert codes == [0, 0], output
        assert bool(re.search(LINE, output)) == (name == "run")
    assert_close(read_checkpoint(tmp_path), read_checkpoint(tmp_path, "plain"))


@pytest.mark.usefixtures("backend")
def test_parts_are_compiled_in_place(caplog):
    """With gradients; keys stay, copies and other parts are not compiled."""
    kinds = {
        "vrt": nn.ModuleDict({"mlp": GatedMlp(4, 8, 4), "norm": nn.LayerNorm(4)}),
        "block": TemporalSelfAttentionBlock(4),
        "encoder": nn.Sequential(ResidualBlock3D(2)),
    }
    model, maps, tokens = nn.ModuleDict(kinds), torch.rand(1, 2, 4, 3, 3), torch.rand(5, 4)
    keys = list(model.state_dict())

    def run():
        model.zero_grad()
        outs = kinds["vrt"]["mlp"](tokens), kinds["block"](maps), kinds["encoder"](maps)
        sum(out.square().sum() for out in outs).backward()
        return [
            parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
        ]

    want = run()
    with caplog.at_level("INFO", "src"):
        compiled.compile_and_time([model], run, "TRAIN.COMPILE")
    assert re.search(LINE, caplog.text)
    torch.testing.assert_close(run(), want)
    assert list(model.state_dict()) == keys
    names = {name for name, part in model.named_modules() if part._compiled_call_impl}
    assert names == {"vrt.mlp", "block.mlp", "encoder.0"}
    assert not any(part._compiled_call_impl for part in copy.deepcopy(model).modules())


def test_a_compiler_that_does_not_work_is_one_sentence(monkeypatch, tmp_path):
    def fail(*_):
        raise OSError("No working C++ compiler found\nin 20 more lines")

    monkeypatch.setattr(compiled, "BACKEND", fail)
    part = GatedMlp(2, 4, 2)
    run = lambda: part(torch.ones(1, 2))  # noqa: E731
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    message = rf"^--compile: .*C\+\+ compiler.*remove {tmp_path} if .*do without --compile$"
    with pytest.raises(RuntimeError, match=message):
        compiled.compile_and_time([part], run, "--compile")
    torch.compiler.reset()
