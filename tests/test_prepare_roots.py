"""One configuration, one alignment log, several data roots: nothing is mixed up silently."""

import errno
import os

import pytest

from src.prepare import prepare as preparing
from tests.data_cases import copy_root
from tests.source_cases import norm_of, prepare_data, write_config


def run(config, *arguments):
    return prepare_data.main(["--config", str(config), "--workers", "1", *map(str, arguments)])


def test_numbers_of_a_root_from_the_command_line_are_announced(miniature, tmp_path, capsys):
    mine, miniature = (copy_root(miniature, tmp_path / name) for name in ("mine", "named"))
    config = write_config(tmp_path, miniature)
    assert run(config, "DATA.ROOT", mine) == 0
    printed = capsys.readouterr().out
    assert f"note: {config} now has the mean and deviation of {mine}" in printed
    assert f"but names DATA.ROOT {miniature}" in printed
    assert norm_of(config)["MEAN"] > 0
    assert run(config, "DATA.ROOT", miniature) == 0
    assert "on the command line" not in capsys.readouterr().out  # the same root as in the file


def test_a_log_of_another_root_is_not_replaced(miniature, tmp_path, capsys):
    config = write_config(tmp_path, miniature)
    first = copy_root(miniature, tmp_path / "a/mini")
    second = copy_root(miniature, tmp_path / "b/mini")
    (second / "train/seq_000").rename(second / "train/street")
    assert run(config, "DATA.ROOT", first) == 0
    log = tmp_path / "out/logs/align_mini.txt"
    before = log.read_text()
    capsys.readouterr()
    assert run(config, "DATA.ROOT", second) == 1
    printed = capsys.readouterr().err
    assert f"has 1 of 3 sequences that are not in {second} (train/seq_000)" in printed
    assert "set DATA.ALIGN_LOG_PATHS" in printed
    assert log.read_text() == before
    assert not list(second.rglob("index.json"))  # it stopped before it counted
    other = tmp_path / "out/logs/other.txt"
    assert run(config, "DATA.ROOT", second, "DATA.ALIGN_LOG_PATHS", f"['{other}']") == 0
    assert "train/street" in other.read_text()


def test_a_damaged_log_is_replaced(miniature, tmp_path):
    config = write_config(tmp_path, copy_root(miniature, tmp_path / "mini"))
    log = tmp_path / "out/logs/align_mini.txt"
    log.parent.mkdir(parents=True)
    log.write_text("nothing\n")
    assert run(config) == 0
    assert "train/seq_000" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "3", "--shard", "0/2"], "--threshold, --shard: only with --source"),
        (["--source", "gopro"], "--source needs --input"),
        (["--source", "gopro", "--input", "/nowhere/at/all"], "/nowhere/at/all: no such folder"),
    ],
)
def test_options_of_sources_alone(miniature, tmp_path, arguments, message, capsys):
    config = write_config(tmp_path, miniature)
    assert run(config, *arguments) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):  # checking makes nothing
        run(config, "--check_only", "--source", "gopro")


def test_names_are_kept_as_they_are(miniature, tmp_path, capsys):
    """Spaces at the ends, quotes and commas are part of a name."""
    root = copy_root(miniature, tmp_path / "größe mit leer")
    (root / "train/seq_000").rename(root / "train" / ' a, "b" ')
    config = write_config(tmp_path, root)
    assert run(config) == 0
    assert run(config, "--check_only") == 0, capsys.readouterr().out


@pytest.mark.parametrize("place", ["train/seq_000", "train/seq_000/blur/000001.png"])
def test_names_that_are_no_text_are_refused(miniature, tmp_path, place, capsys):
    root = copy_root(miniature, tmp_path / "mini")
    path = os.fsencode(root / place)
    os.rename(path, os.path.dirname(path) + b"/gr\xfcn_1.png")  # noqa: PTH104, PTH120 (bytes)
    assert run(write_config(tmp_path, root)) == 1
    assert r"the name gr\xfcn_1.png is not UTF-8" in capsys.readouterr().err


def test_f21_a_folder_that_must_not_be_written_to(miniature, tmp_path, monkeypatch, capsys):
    root = copy_root(miniature, tmp_path / "mini")

    def refuse(folder, entries):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(preparing, "write_index", refuse)
    assert run(write_config(tmp_path, root)) == 1
    printed = capsys.readouterr().err
    assert f"error: {root}/" in printed
    assert "spike_vox: Permission denied; this command writes beside the data" in printed
