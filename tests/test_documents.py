"""README and docs/: what they name exists, what they promise to do can be done."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from src.config import load_config, walk_schema
from src.config_schema import FORMER_KEYS
from src.paths import REPO_ROOT

PAGES = sorted((REPO_ROOT / "docs").rglob("*.md"))
CHINESE = {REPO_ROOT / "README.zh-CN.md": REPO_ROOT / "README.md"} | {
    page: REPO_ROOT / "docs" / page.name for page in PAGES if page.parent.name == "zh"
}
OTHERS = [REPO_ROOT / "README.md", REPO_ROOT / "README.zh-CN.md"]
DOCUMENTS = [*OTHERS, REPO_ROOT / "third_party/VRT/README.md", *PAGES]
EACH = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(REPO_ROOT)))

WRITTEN_BY_THE_READER = {"configs/deblur/mine.yaml", "my_run.yaml", "mine.yaml"}
SHOWN_AS_WRONG = {"DATA.CLIP_LENGHT"}
FOREIGN_FLAGS = {"--shm-size", "--options", "--no-index", "--find-links", "--index-url"}
FOREIGN_FLAGS |= {"--nodes", "--gpus-per-node", "--time", "--signal"}  # of sbatch
NOT_KEYS = {"DATA_ROOT", "CUDA_VISIBLE_DEVICES", "TORCH_HOME", "OMP_NUM_THREADS"}
NOT_KEYS |= {"UV_NO_INDEX", "UV_FIND_LINKS", "UV_DEFAULT_INDEX"}  # of uv
# The files with the options of a command, if it is not the command itself.
LAUNCHERS = ("launch_train.sh", "launch_train.ps1", "train_multi_gpu.sh")
OPTIONS_OF = {f"scripts/{name}": ["scripts/launch.py"] for name in LAUNCHERS} | {
    "scripts/prepare_data.py": ["scripts/prepare_data.py", "src/prepare/sources/run.py"]
}
PASSED_TO_PYTEST = "scripts/run_tests.sh"

# Without outputs and data, which runs and users make.
FOLDERS = r"(?:src|scripts|configs|docs|tests|third_party|benchmarks|\.ci)"
PATH = re.compile(rf"(?<![\w./<-]){FOLDERS}/[\w./<>*{{}},-]*")
PLACEHOLDER = re.compile(r"[<*{]|\bSEQ\b|\.\.\.")
SCRIPT_NAME = re.compile(r"(?<![\w./*-])[\w-]+\.(?:py|sh|ps1)\b")
KEY = re.compile(r"(?<![\w.])(?:[A-Z][A-Z0-9_]*\.)+[A-Z][A-Z0-9_]*\b")
LONELY_KEY = re.compile(r"[A-Z]+(?:_[A-Z]+)+")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
COMMAND = re.compile(r"^(?:\w+=\S+ )*(?:python|bash|torchrun|source|tensorboard|cp|pip|make)\b")
NUMBER = re.compile(r"\d+(?:[.,]\d+)+|\d{3,}")  # smaller ones are written as words in places
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


@dataclass(frozen=True)
class Document:
    """A page cut into code (spans and lines of blocks), and the spans and commands among it."""

    text: str
    code: tuple[str, ...]
    spans: tuple[str, ...]
    commands: tuple[str, ...]


def read(path: Path) -> Document:
    text = path.read_text(encoding="utf-8")
    blocks, prose, fence = [], [], None
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip("` ")
        elif fence is not None:
            if fence != "python":
                blocks.append(line.strip())
        elif line.startswith("    "):
            blocks.append(line.strip())
        else:
            prose.append(line)
    lines = re.sub(r"\s*\\\n\s*", " ", "\n".join(blocks)).splitlines()
    lines = [re.split(r"\s#\s", line)[0].strip() for line in lines]  # comments name no options
    spans = [" ".join(s.split()) for s in re.findall(r"`([^`]+)`", "\n".join(prose))]
    code = [*lines, *spans]
    commands = [line for line in code if COMMAND.match(line) and " " in line]
    return Document(text, tuple(code), tuple(spans), tuple(commands))


def missing_paths(document: Document) -> list[str]:
    return [
        path
        for code in document.code
        for path in (found.rstrip(".,") for found in PATH.findall(code))
        if path not in SHOWN_AS_WRONG | WRITTEN_BY_THE_READER and not exists(path)
    ]


def exists(path: str) -> bool:
    """Whether a path is there; of one with a placeholder, the folder before it."""
    hidden = PLACEHOLDER.search(path)
    if hidden is None:
        return (REPO_ROOT / path).exists()
    return (REPO_ROOT / path[: hidden.start()].rpartition("/")[0]).is_dir()


def missing_scripts(document: Document) -> list[str]:
    known = {
        path.name
        for folder in ("src", "scripts", "tests", "benchmarks", "third_party")
        for path in (REPO_ROOT / folder).rglob("*.*")
    }
    names = [name for code in document.code for name in SCRIPT_NAME.findall(code)]
    return [name for name in names if name not in known]


def unknown_keys(document: Document) -> list[str]:
    keys = {dotted for dotted, _ in walk_schema()}
    sections = {k.rsplit(".", i)[0] for k in keys for i in range(1, k.count(".") + 1)}
    parts = {part for key in keys for part in key.split(".")}
    dotted = [
        key
        for key in KEY.findall(document.text)
        if key.partition(".")[0] in sections and key not in keys | sections | SHOWN_AS_WRONG
    ]
    lonely = [
        code
        for code in document.code
        if LONELY_KEY.fullmatch(code) and code not in parts | NOT_KEYS | FORMER_KEYS.keys()
    ]
    return dotted + lonely


def script_of(words: list[str]) -> str | None:
    """Return the file of this repository that a command runs."""
    runs = [word.replace("\\", "/") for word in words if word.endswith((".py", ".sh", ".ps1"))]
    return next((word for word in runs if "/" in word), None)


def flags_of(script: str) -> set[str]:
    files = OPTIONS_OF.get(script, [script])
    source = "".join((REPO_ROOT / file).read_text(encoding="utf-8") for file in files)
    return {"--help", *re.findall(r'"(--[a-z][\w-]*)"', source)}


def unknown_flags(document: Document) -> list[str]:
    everything = {
        flag
        for folder in ("src", "scripts", "benchmarks")
        for path in (REPO_ROOT / folder).rglob("*.py")
        for flag in flags_of(str(path.relative_to(REPO_ROOT)))
    }
    unknown = []
    for code in document.code:
        flags = [flag for flag in FLAG.findall(code) if flag not in FOREIGN_FLAGS]
        if code not in document.commands:
            unknown += [flag for flag in flags if flag not in everything]
            continue
        words = shlex.split(code)
        script = script_of(words)
        if script is None or script == PASSED_TO_PYTEST:
            continue
        behind = words[words.index(script) + 1 :] if script in words else words
        known = flags_of(script)
        unknown += [f"{script} {w}" for w in behind if w.startswith("--") and w not in known]
    return unknown


def overrides_of(words: list[str]) -> tuple[str | None, list[str]]:
    """Return the configuration file of a command and its KEY VALUE pairs."""
    config = words[words.index("--config") + 1] if "--config" in words else None
    keys = {dotted for dotted, _ in walk_schema()}
    starts = [i for i, word in enumerate(words) if word in keys or KEY.fullmatch(word)]
    return config, [word for i in starts for word in words[i : i + 2]]


@EACH
def test_what_a_document_names_exists(path):
    document = read(path)
    assert missing_paths(document) == []
    assert missing_scripts(document) == []
    assert unknown_keys(document) == []
    assert unknown_flags(document) == []
    links = [link for link in LINK.findall(document.text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


@EACH
def test_commands_have_values_that_load(path):
    for command in read(path).commands:
        words = shlex.split(command)
        if "[" in command and "KEY" in command:  # a synopsis
            continue
        config, overrides = overrides_of(words)
        if overrides or config:
            is_there = config is not None and (REPO_ROOT / config).is_file()
            file = config if is_there else "configs/deblur/demo.yaml"
            load_config(REPO_ROOT / file, overrides, check_paths=False)


def test_the_checks_find_what_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`src/nothing.py` and `src/data/<time>.x`, `scripts/*/x.py`, `outputs/logs/a_<time>.txt`, "
        "`TRAIN.LEARNING`, `DATA.NORM`, `BATCH_SIZES`, `--fast`, `gone.sh`\n\n"
        "    python src/train.py --config configs/deblur/demo.yaml --dry_run \\\n"
        "        --output X TRAIN.MAX_STEPS 3  # --comment\n"
        "    bash scripts/train_multi_gpu.sh 4 --config F --workers 3\n"
        "    bash scripts/run_tests.sh --lf\n",
        encoding="utf-8",
    )
    document = read(page)
    assert missing_paths(document) == ["src/nothing.py"]
    assert missing_scripts(document) == ["gone.sh"]
    assert unknown_keys(document) == ["TRAIN.LEARNING", "BATCH_SIZES"]
    assert sorted(unknown_flags(document)) == [
        "--fast",
        "scripts/train_multi_gpu.sh --workers",
        "src/train.py --output",
    ]
    assert len(document.commands) == 3
    words = shlex.split(document.commands[0])
    assert overrides_of(words) == ("configs/deblur/demo.yaml", ["TRAIN.MAX_STEPS", "3"])


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(REPO_ROOT / "docs")))
def test_a_page_says_which_question_it_answers(path):
    title, empty, first = path.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ")
    assert not empty
    assert first.startswith("本页回答：" if path in CHINESE else "This page answers: ")


def facts(path: Path, language_of: Path) -> dict[str, list[str]]:
    """Return what a page and its translation have in common."""
    document = read(path)
    targets = {(path.parent / link).resolve() for link in LINK.findall(document.text)}
    pages = {CHINESE.get(target, target) for target in targets} - {path, language_of}
    return {
        "commands": list(document.commands),
        "flags, keys and files": sorted({s for s in document.spans if s.isascii()}),
        "programs": re.findall(r"```python\n(.*?)```", document.text, re.DOTALL),
        "numbers": sorted(set(NUMBER.findall(document.text))),
        "rows of tables": [str(len(re.findall(r"^ *\|", document.text, re.MULTILINE)))],
        "links": sorted(page.name for page in pages),
    }


def untranslated(english: Path, chinese: Path) -> list[str]:
    ours, theirs = facts(english, chinese), facts(chinese, english)
    return [
        f"{kind}: {set(ours[kind]) ^ set(theirs[kind]) or 'another order'}"
        for kind in ours
        if ours[kind] != theirs[kind]
    ]


@pytest.mark.parametrize("chinese", CHINESE, ids=lambda p: p.name)
def test_chinese_pages_say_what_the_english_ones_say(chinese):
    english = CHINESE[chinese]
    assert untranslated(english, chinese) == []
    for page, other in ((english, chinese), (chinese, english)):
        links = LINK.findall(page.read_text(encoding="utf-8"))
        assert other in [(page.parent / link).resolve() for link in links]


def test_a_translation_that_drifted_is_found(tmp_path):
    pages = tmp_path / "page.md", tmp_path / "zh.md"
    text = "`--tile 12`, 0.15 dB, [a](a.md)\n\n    python src/train.py --dry_run\n\n| a |\n"
    pages[0].write_text(text, encoding="utf-8")
    for old, new in (
        ("12", "13"),
        ("0.15", "0.16"),
        ("a.md", "b.md"),
        ("--dry", "--wet"),
        ("|", ""),
    ):
        pages[1].write_text(text, encoding="utf-8")
        assert untranslated(*pages) == []
        pages[1].write_text(text.replace(old, new), encoding="utf-8")
        assert untranslated(*pages) != []
