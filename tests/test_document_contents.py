"""What the documents promise beyond names: current tables, a program that works, shapes."""

import ast
import re

import pytest
import yaml

from scripts import update_config_guide, validate_model_shapes
from scripts.prepare_data import main as prepare_data
from src.config import get_defaults, load_config, walk_schema
from src.data.build import build_train_dataset
from src.data.exposures import read_alignment
from src.data.spikes.spike_dat import SpikeFile, SpikeGeometry
from src.engine.checkpoint import FREE_TO_CHANGE
from src.paths import REPO_ROOT
from tests.test_documents import KEY


def test_configuration_guide_is_what_the_script_would_write():
    text = update_config_guide.GUIDE.read_text(encoding="utf-8")
    renewed, notes = update_config_guide.renew(text)
    assert notes == []  # no key without advice, no advice without a key
    assert renewed == text, "run python scripts/update_config_guide.py"
    assert set(update_config_guide.advice_of(text)) == {dotted for dotted, _ in walk_schema()}


def test_renewing_keeps_advice_and_names_what_is_missing():
    text = update_config_guide.GUIDE.read_text(encoding="utf-8")
    advice = update_config_guide.advice_of(text)["SEED"]
    spoiled = text.replace("`123`", "`99`").replace(advice, "| mine \\| yours".lstrip("| "))
    spoiled = re.sub(r"\| `DATA.K` .*\n", "", spoiled)
    renewed, notes = update_config_guide.renew(spoiled)
    assert "| `SEED` | `123` |" in renewed
    assert update_config_guide.advice_of(renewed)["SEED"] == "mine \\| yours"
    assert notes == ["DATA.K: write when to change it"]
    with pytest.raises(ValueError, match="each needs"):
        update_config_guide.renew(text.replace("<!-- keys of LOG -->", ""))


def test_keys_that_a_resumed_run_may_change():
    text = (REPO_ROOT / "docs" / "CONFIG_GUIDE.md").read_text(encoding="utf-8")
    section = text.partition("## What a resumed run may change")[2].partition("\n## ")[0]
    named = KEY.findall(section)
    assert len(named) > 10
    assert [key for key in named if not key.startswith(FREE_TO_CHANGE)] == []


def test_example_of_the_data_guide(tmp_path, monkeypatch):
    """The program of the guide writes data that preparation takes and training can read."""
    text = (REPO_ROOT / "docs" / "DATALOADER_GUIDE.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- example: own data -->\n```python\n(.*?)```", text, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "DATALOADER_GUIDE.md", "exec"), {})  # noqa: S102 (our own document)

    config, root = tmp_path / "mine.yaml", tmp_path / "data" / "mine"
    values = {
        "DATA": {"ROOT": str(root), "CLIP_LEN": 3, "CROP_SIZE": 64},
        "LOG": {"SAVE_DIR": str(tmp_path / "outputs")},
    }
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    arguments = ["--config", str(config), "--workers", "1"]
    assert prepare_data(arguments) == 0
    assert prepare_data([*arguments, "--check_only"]) == 0

    log = read_alignment([tmp_path / "outputs" / "logs" / "align_mine.txt"])
    stream = SpikeFile(root / "train" / "street" / "spike" / "stream.dat", SpikeGeometry(32, 48))
    record = log.of_sequence("train", "street")[2]
    assert (record.t0, record.t1) == pytest.approx((0.020, 0.028))
    assert record.num_spikes == stream.read(400, 560).sum() > 0

    dataset = build_train_dataset(load_config(config), as_uint8=False)
    sample = dataset[0]
    assert len(dataset) == 2 * (6 - 3 + 1)
    assert list(sample["blur"].shape) == list(sample["sharp"].shape) == [3, 3, 64, 64]
    assert list(sample["spike_vox"].shape) == [3, 32, 32, 32]
    assert set(sample["meta"]) == {"seq", "frame_idx", "t0", "t1"}


def test_shapes_and_parameters_of_the_architecture_page():
    """The page shows T = 5 and 256 x 256; a quarter of the size and two frames are run here."""
    text = (REPO_ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    options = validate_model_shapes.parse_arguments(["--size", "64", "64", "--frames", "2"])
    cfg = load_config(REPO_ROOT / options.config, check_paths=False)
    model = validate_model_shapes.build_model(cfg, read_weights=False).eval()

    shown = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \| [\d.]+% \|", text, re.MULTILINE))
    counted = {name: n for name, n, _ in validate_model_shapes.count_parameters(model)}
    total = counted.pop("all")
    assert shown == counted
    assert f"| all | {total} |" in text

    rows = re.findall(r"^\| (.*?) \|.*\| (1 x [\dx ]+) \|$", text, re.MULTILINE)
    expected = {
        name: smaller(shape, time_axis=1 if "blocks" in name else 2)
        for names, shape in rows
        for name in re.findall("`(.*?)`", names)
    }
    shapes, problems = validate_model_shapes.record_shapes(model, cfg, options)
    assert not any(problems.values())
    seen = {n: s for n, _, s in shapes}
    del expected["vrt.stage8.0"], expected["vrt.stage8.4"]
    last = {name: shape for name, shape in seen.items() if "." in name and "stage8" not in name}
    assert last == expected
    assert {s for n, s in seen.items() if "stage8" in n} == {"1 x 120 x 2 x 64 x 64"}
    assert get_defaults().DATA.CLIP_LEN == 5


def smaller(shape: str, time_axis: int) -> str:
    """Turn a shape of the page into that of the run here."""
    sizes = [int(n) for n in shape.split(" x ")]
    sizes[time_axis] = 2
    return " x ".join(map(str, [*sizes[:3], sizes[3] // 4, sizes[4] // 4]))


def test_messages_of_the_table_of_errors_are_in_the_code():
    """The words of each part of a message stand in one string, whatever it inserts between them."""
    page = (REPO_ROOT / "docs" / "QUICK_START.md").read_text(encoding="utf-8")
    table = page.partition("| message | what to do |")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines()[2:]]
    messages = [span for cell in cells for span in re.findall("`(.*?)`", cell) if " " in span]
    assert len(messages) > 15
    files = [path for d in ("src", "third_party") for path in (REPO_ROOT / d).rglob("*.py")]
    nodes = (n for path in files for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    known = (REPO_ROOT / "scripts" / "setup_env.sh").read_text(encoding="utf-8").splitlines()
    for node in nodes:
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        known.append(" ".join(str(p.value) for p in parts if isinstance(p, ast.Constant)))
    known = [set(re.findall(r"[a-z]+", string)) for string in known]
    parts = [part for message in messages for part in re.split(r"\.\.\.|;", message)]
    words = {part: set(re.findall(r"(?<![\w./])[a-z]{3,}(?![\w./])", part)) for part in parts}
    assert [part for part in parts if not any(words[part] <= of for of in known)] == []


def test_functions_of_the_architecture_page_are_where_it_says():
    text = (REPO_ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`(?: and `(\w+)`)? in `([\w/]+\.py)`", text)
    assert len(named) > 12
    for *names, path in named:
        tree = ast.parse((REPO_ROOT / path).read_text(encoding="utf-8"))
        there = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        there |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert {name for name in names if name} <= there, path
