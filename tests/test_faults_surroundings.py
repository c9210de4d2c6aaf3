"""F31 and F55: odd names, another locale, a log file that is deleted or has no room."""

import logging
import os

import pytest

from src.engine.run_log import start_logging
from tests.training_cases import read_checkpoint, run_train, write_run


@pytest.fixture(name="root_logger")
def _root_logger():
    """Give back the handlers that the test runner had installed."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.slow
def test_f31_f55_a_run_with_an_odd_name_in_the_c_locale(tmp_path, monkeypatch):
    name = "übung 'a' \"b\" $(touch pwned) ;x"
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    folder = tmp_path / "a folder $(touch pwned)"
    config = write_run(folder, TRAIN__MAX_STEPS=1, EXP_NAME=name)
    assert "validation at step 1" in run_train(config)
    assert read_checkpoint(folder, name)["progress"]["step"] == 1
    assert not list(tmp_path.rglob("pwned"))


def test_f55_a_log_file_that_is_deleted_or_full_ends_nothing(tmp_path, root_logger, capsys):
    log_file = tmp_path / "logs" / "train.log"
    start_logging(log_file, is_main=True)
    log_file.unlink()
    log_file.parent.rmdir()
    logging.getLogger("train").info("after the file was deleted")
    assert "after the file was deleted" in capsys.readouterr().out
    if os.path.exists("/dev/full"):  # noqa: PTH110
        full = tmp_path / "full.log"
        full.symlink_to("/dev/full")
        start_logging(full, is_main=True)
        logging.getLogger("train").info("on a full disk")
        assert "on a full disk" in capsys.readouterr().out
        logging.getLogger().handlers[-1].stream = None  # what is held back cannot be written
