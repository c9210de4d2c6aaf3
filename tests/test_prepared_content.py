"""Preparation checks the content once and records the result, which training relies on."""

import shutil

import pytest

from src.config import load_config
from src.data.description import (
    DataDescription,
    DescriptionError,
    content_key,
    content_of,
    description_differences,
    description_from_text,
    description_to_text,
    read_description,
)
from src.prepare import prepare
from src.prepare.checks import content_problems, quick_check
from tests.prepare_cases import rewrite, run, state_of, write_config


@pytest.fixture
def config(timed, tmp_path):
    return write_config(timed, tmp_path / "timed.yaml")


def swap_folders(timed):
    for folder in (timed / "train/a", timed / "val/b"):
        (folder / "blur").rename(folder / "other")
        (folder / "sharp").rename(folder / "blur")
        (folder / "other").rename(folder / "sharp")


def test_data_that_pass_are_looked_at_once(timed, config, monkeypatch):
    assert run(config) == 0
    assert content_of(read_description(timed)) == "passed"
    assert quick_check(load_config(config)) == []
    before = state_of(timed)
    monkeypatch.setattr(prepare, "check_content", None)  # not called again
    assert run(config) == 0
    assert run(config, "--accept", "not needed") == 0
    assert state_of(timed) == before


def test_training_refuses_data_that_failed_until_they_are_accepted(timed, config, capsys, caplog):
    swap_folders(timed)
    states = []
    for _ in range(2):  # printed every time
        assert run(config) == 1
        printed = capsys.readouterr().out
        assert "are the folders blur and sharp swapped?" in printed
        assert 'give the same command with --accept "REASON"' in printed
        states.append(state_of(timed))
    assert states[0] == states[1]  # what is known is not written again
    assert run(config, "--overlay", "1") == 1  # its own findings are no problem
    assert read_description(timed).content == "failed"
    (problem,) = quick_check(load_config(config))
    assert "--check_only says where" in problem
    assert run(config, "--accept", "sharp: from 'another' camera") == 0
    assert "are the folders blur and sharp swapped?" in capsys.readouterr().out
    assert read_description(timed).content == "accepted: sharp: from 'another' camera"
    assert quick_check(load_config(config)) == []
    assert "accepted: sharp: from 'another' camera" in caplog.text
    assert run(config) == 0  # a reason once given holds
    assert run(config, "--accept", "a better one") == 0
    assert read_description(timed).content == "accepted: a better one"


def test_a_result_holds_for_the_files_and_the_description_it_was_found_for(timed, config):
    assert run(config, "--accept", "nothing to accept") == 0
    assert read_description(timed).content == "passed"
    rewrite(timed / "dataset.yaml", "bit_order: little", "bit_order: big")
    assert "not checked yet" in quick_check(load_config(config))[-1]
    rewrite(timed / "dataset.yaml", "bit_order: big", "bit_order: little")
    assert quick_check(load_config(config)) == []
    swap_folders(timed)
    problems = quick_check(load_config(config))
    assert any("sha256 was" in problem for problem in problems)
    assert run(config) == 1


def test_data_prepared_before_results_were_recorded_are_unknown(timed, config):
    assert run(config) == 0
    path = timed / "dataset.yaml"
    path.write_text(path.read_text()[: path.read_text().index("content:")])
    (problem,) = quick_check(load_config(config))
    assert "run scripts/prepare_data.py once, it takes seconds" in problem
    assert content_problems(None, str(timed)) == [problem]
    assert run(config) == 0
    assert quick_check(load_config(config)) == []
    path.unlink()
    (problem,) = quick_check(load_config(config))  # the result is gone with it, which needs no line
    assert "dataset.yaml: missing" in problem


def test_a_split_that_cannot_be_read_says_nothing_of_mean_and_deviation(timed, config, capsys):
    assert run(config) == 0
    shutil.copytree(timed / "train/a", timed / "train/c")
    rewrite(timed / "train/c/exposures.csv", "t0[s]", "t0[weeks]")
    other = ["DATA.NORM.MEAN", "0.9"]
    problems = quick_check(load_config(config, other))
    assert any("weeks" in problem for problem in problems)
    assert not any("DATA.NORM" in problem for problem in problems)
    assert run(config, "--check_only", *other) == 1
    printed = capsys.readouterr().out
    assert "weeks" in printed
    assert "DATA.NORM:" not in printed
    (timed / "train/c").rename(timed / "val/c")  # mean and deviation are not of this split
    assert any("DATA.NORM: " in problem for problem in quick_check(load_config(config, other)))
    assert run(config, "--check_only", *other) == 1
    assert "DATA.NORM: MEAN 0.9" in capsys.readouterr().out


def test_the_reason_travels_and_is_no_difference():
    accepted = DataDescription("a", content="accepted: we know", content_of="0f")
    assert description_from_text(description_to_text(accepted), "here") == accepted
    assert description_differences(DataDescription("a"), accepted) == []
    for value in ("fine", "'accepted: '", "3"):
        with pytest.raises(DescriptionError, match="content: expected one of passed, failed"):
            description_from_text(f"source: a\ncontent: {value}\n", "here")
    with pytest.raises(DescriptionError, match="content_of: expected a text, got 3"):
        description_from_text("source: a\ncontent_of: 3\n", "here")
    assert content_key(accepted) == content_key(DataDescription("a"))


@pytest.mark.parametrize("arguments", [["--accept", " "], ["--accept", "a", "--check_only"]])
def test_accept_needs_a_reason_and_a_place_to_write_it(config, arguments):
    with pytest.raises(SystemExit):
        run(config, *arguments)
