"""docs/PYTHON.md and docs/first_steps.ipynb: what they show runs."""

import os
import re

import nbformat
import pytest
from nbclient import NotebookClient

from src.paths import REPO_ROOT
from tests.training_cases import checkpoint_of, make_trainer, write_run

PAGE = REPO_ROOT / "docs" / "PYTHON.md"


def test_every_block_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """In order, in one namespace, with a run of one step in place of the demo."""
    config = write_run(tmp_path, TRAIN__MAX_STEPS=1, VAL__LPIPS=False)
    assert make_trainer(config).fit() == 0
    text = PAGE.read_text(encoding="utf-8")
    for shown, here in {
        '"configs/deblur/demo.yaml"': repr(str(config)),
        '"outputs/ckpts/demo/best.pth"': repr(str(checkpoint_of(tmp_path, name="best.pth"))),
        '"outputs/metrics"': repr(str(tmp_path / "outputs" / "metrics")),
        "val_demo_": "val_run_",
    }.items():
        assert shown in text
        text = text.replace(shown, here)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 10
    monkeypatch.chdir(REPO_ROOT)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"block {number} of PYTHON.md", "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    assert "spike_vox (2, 4, 16, 16) torch.float32" in printed
    assert "psnr_rgb" in printed


@pytest.mark.nightly
def test_the_notebook_runs_and_shows_pictures(monkeypatch, tmp_path):
    """Its last code cells compare restored clips with the blurry one."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    path = REPO_ROOT / "docs" / "first_steps.ipynb"
    book = nbformat.read(path, as_version=4)
    assert str(REPO_ROOT) not in path.read_text(encoding="utf-8")
    assert path.stat().st_size < 500_000
    where = {"metadata": {"path": os.fspath(path.parent)}}
    NotebookClient(book, timeout=300, resources=where).execute()
    kinds = [out.output_type for cell in book.cells for out in cell.get("outputs", [])]
    assert kinds.count("display_data") == 5
