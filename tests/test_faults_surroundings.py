"""F20, F21, F31, F55: odd names, another locale, a clock that jumps, full disks."""

import io
import logging
import os
import re
import sys
import threading
import time

import pytest

from src.engine.log import Scalars, log_thread_error, start_logging
from src.paths import REPO_ROOT, free_name
from src.run_directory import RunDirectory
from tests.training_cases import (
    make_trainer,
    one_thread,
    read_checkpoint,
    run_train,
    write_run,
)

needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs it")  # noqa: PTH110
FILE = "a file where a folder has to be"


@pytest.fixture(name="root_logger")
def _root_logger():
    """Restore the handlers that the test runner had installed."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def test_f31_f55_a_run_with_an_odd_name_in_the_c_locale(tmp_path, monkeypatch):
    name = "übung 'a' \"b\" $(touch pwned) ;x"
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    folder = tmp_path / "a folder $(touch pwned)"
    config = write_run(folder, TRAIN__MAX_STEPS=1, EXP_NAME=name)
    assert "validation at step 1" in run_train(config)
    assert read_checkpoint(folder, name)["progress"]["step"] == 1
    assert not list(tmp_path.rglob("pwned"))


def test_f55_a_log_file_that_is_deleted_is_created_again(tmp_path, root_logger, capsys):
    log_file = tmp_path / "logs" / "train.log"
    start_logging(log_file)
    logging.getLogger("train").info("before")
    log_file.unlink()
    log_file.parent.rmdir()
    logging.getLogger("train").info("after the file was deleted")
    assert "after the file was deleted" in capsys.readouterr().out
    assert "after the file was deleted" in log_file.read_text()
    line = logging.LogRecord("train", logging.INFO, "a.py", 7, "%d steps", ("three",), None)
    root_logger.handlers[-1].handle(line)  # a mistake in the code is no full disk
    assert "--- Logging error ---" in capsys.readouterr().err


def test_a_letter_that_the_terminal_lacks_is_shown_by_its_code(root_logger, monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", shown)
    start_logging(None)
    logging.getLogger("train").info("run 你好")
    assert shown.buffer.getvalue().endswith(b"run \\u4f60\\u597d\n")


def test_a_tensorboard_that_cannot_be_imported_is_a_warning(tmp_path, monkeypatch, caplog):
    """The table of a resumed run has no rows of steps that are repeated."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for first_step, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        scalars = Scalars(tmp_path, first_step=first_step)
        for step in steps:
            scalars.add(step, {"lr": step / 8, "loss/total": None})
        scalars.close()
    assert "no TensorBoard events, as it cannot be imported" in caplog.text
    rows = (tmp_path / "scalars.csv").read_text().split()
    assert rows == ["step,tag,value", "2,lr,0.25", "4,lr,0.5", "6,lr,0.75", "8,lr,1.0"]


FULL = """
import logging, sys
from pathlib import Path
from src.engine.log import start_logging
start_logging(Path(sys.argv[1]))
for number in range(3):
    logging.getLogger("train").info("line %d", number)
"""


@needs_dev_full
def test_f55_a_full_disk_under_the_log_is_reported_once_and_the_process_exits_normally(
    tmp_path, forks
):
    (tmp_path / "full.log").symlink_to("/dev/full")
    (tmp_path / "full.py").write_text(FULL)
    done = forks([tmp_path / "full.py", tmp_path / "full.log"])
    assert done.wait(60) == 0, done.output
    assert done.output.count("full.log cannot be written (No space left on device)") == 1
    assert [f"line {number}\n" in done.output for number in range(3)] == [True] * 3
    assert "Traceback" not in done.output


def test_f55_a_thread_that_fails_is_reported_in_one_line(monkeypatch, caplog):
    def fail(error):
        raise error

    monkeypatch.setattr(threading, "excepthook", log_thread_error)
    caplog.set_level("DEBUG")
    for error in (OSError("no room"), SystemExit(0)):
        thread = threading.Thread(target=fail, args=(error,), name="writer")
        thread.start()
        thread.join()
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "DEBUG"]
    assert caplog.messages[0] == "the thread writer has failed: no room"
    assert caplog.records[1].exc_info is not None


LOSING = """
import shutil, sys
from src import train
from src.engine.trainer import Trainer
step = Trainer.step
def losing(self, batches):
    if self.progress.step == 1:
        while self.run.logs.exists():  # TensorBoard's thread writes into it
            shutil.rmtree(self.run.logs, ignore_errors=True)
        self.run.logs.write_text("a file where the folder was")
    return step(self, batches)
Trainer.step = losing
sys.exit(train.main())
"""


def test_f55_the_folder_of_logs_and_events_is_deleted_under_a_run(tmp_path, forks):
    config = write_run(tmp_path, LOG__TENSORBOARD=True, TRAIN__LOG_EVERY=1, TRAIN__MAX_STEPS=3)
    script = tmp_path / "losing.py"
    script.write_text(LOSING)
    done = forks([script, "--config", config])
    assert done.wait(150) == 0, done.output
    assert "Traceback" not in done.output
    assert done.output.count("cannot be written") == 2  # the log file, and the events
    assert "scalars.csv and TensorBoard events cannot be written" in done.output
    assert "validation at step 3" in done.output
    assert read_checkpoint(tmp_path)["progress"]["step"] == 3


FILLING = """
import sys
from contextlib import suppress
from src import train
from src.engine.trainer import Trainer
step, (filler, is_freed) = Trainer.step, (sys.argv.pop(1), sys.argv.pop(1) == "True")
def filling(self, batches):
    if self.progress.step == 1:
        with open(filler, "wb", 0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
    elif self.progress.step == 3 and is_freed:
        open(filler, "wb").close()
    return step(self, batches)
Trainer.step = filling
sys.exit(train.main())
"""
ON_SMALL_DISK = """
mkdir disk copy && mount -t tmpfs -o size=64m none disk || exit 77
cp -r outputs disk
"$@"
code=$?
cp -r disk/outputs copy
exit $code
"""


@pytest.mark.nightly
@pytest.mark.parametrize("is_freed", [True, False])
def test_f20_f55_a_whole_run_on_a_disk_that_becomes_full(tmp_path, processes, is_freed):
    """A file system of its own: checkpoints, log, scalars and events share it."""
    config = write_run(tmp_path, TRAIN__SAVE_EVERY=1, TRAIN__LOG_EVERY=1, LOG__TENSORBOARD=True)
    (tmp_path / "filling.py").write_text(FILLING)
    unshared = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", ON_SMALL_DISK]
    run = ["bash", sys.executable, "filling.py", "disk/filler", str(is_freed), "--config", config]
    save = ["LOG.SAVE_DIR", str(tmp_path / "disk/outputs")]
    env = one_thread() | {"PYTHONPATH": str(REPO_ROOT)}
    process = processes([*unshared, *map(str, run), *save], cwd=tmp_path, env=env)
    output = process.communicate(timeout=200)[0]
    if process.returncode == 77 or "unshare failed" in output:
        pytest.skip(f"no file system can be mounted here: {output}")
    assert process.returncode == (0 if is_freed else 1), output
    assert "Traceback" not in output
    assert "No space left on device; training continues" in output
    assert read_checkpoint(tmp_path / "copy")["progress"]["step"] == (4 if is_freed else 1)
    assert not list((tmp_path / "copy").rglob(".partial*"))


def test_f20_a_validation_whose_files_cannot_be_written_is_a_warning(tmp_path, caplog):
    config = write_run(tmp_path, TRAIN__MAX_STEPS=2, TRAIN__VAL_EVERY=1, TRAIN__VISUAL_EVERY=1)
    trainer = make_trainer(config)
    for folder in (trainer.run.metrics, trainer.run.visuals):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.write_text(FILE)
    with caplog.at_level("INFO"):
        assert trainer.fit() == 0
    assert caplog.text.count("validation at step 2: PSNR") == 1
    lost = [line for line in caplog.messages if "a file of the validation could not be" in line]
    assert ["metrics" in line for line in lost] == [True, False] * 2  # scores, then pictures
    assert trainer.progress.validated_step == 2
    assert read_checkpoint(tmp_path)["progress"]["best_psnr"] is not None


def test_f55_a_clock_that_jumps_back_does_not_change_the_pace(tmp_path, monkeypatch, caplog):
    trainer = make_trainer(write_run(tmp_path, TRAIN__LOG_EVERY=1, TRAIN__MAX_STEPS=2))
    hours = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(hours)))
    with caplog.at_level("INFO"):
        assert trainer.fit() == 0
    lines = [line for line in caplog.messages if "s/step" in line]
    paces = [re.search(r" ([\d.]+) s/step .*left 0\d:\d\d without", line) for line in lines]
    assert len(lines) == 2
    assert all(match and 0 < float(match[1]) < 60 for match in paces), lines


def test_f55_names_that_hold_the_time_are_unique(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20200101-000000")
    run = RunDirectory(tmp_path, "run")
    for text in ("first", "second", "third"):
        run.checkpoints.mkdir(parents=True)
        (run.checkpoints / "last.pth").write_text(text)
        run.set_aside()
    names = {path.name: (path / "last.pth").read_text() for path in (tmp_path / "ckpts").iterdir()}
    stamped = "run.before-20200101-000000"
    assert names == {stamped: "first", f"{stamped}-2": "second", f"{stamped}-3": "third"}
    for name in ("train_1.log", "train_1-2.log"):
        assert free_name(tmp_path / "train_1.log") == tmp_path / name
        (tmp_path / name).touch()
