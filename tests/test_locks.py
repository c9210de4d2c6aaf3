"""Locks between processes: held by one, given up at its end, left out where there are none."""

import errno
import fcntl

import pytest
from filelock import FileLock

from src.data.parallel import is_locked, locked
from src.prepare.sources.run import PARTIAL, remove_abandoned


def test_a_lock_is_held_by_one_and_given_up(tmp_path):
    path = tmp_path / "folder/a.lock"
    with locked(path) as is_mine:
        assert is_mine
        assert is_locked(path)
        with locked(path, wait=False) as is_mine_too:
            assert not is_mine_too
    assert not is_locked(path)


@pytest.mark.parametrize("answer", [OSError(errno.ENOLCK, "No locks"), NotImplementedError()])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, answer):
    def acquire(*_, **__):
        raise answer

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with locked(tmp_path / "a.lock", wait=False) as is_mine:
        assert is_mine
    assert "this file system has no locks" in caplog.text


def without_locks(monkeypatch, number):
    """Let the system answer a request for a lock as a file system without locks does."""

    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_what_the_system_answers_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    """Releases of filelock before 3.25 keep it to themselves and ask for ever."""
    without_locks(monkeypatch, number)
    with locked(tmp_path / "a.lock", wait=False) as is_mine:
        assert is_mine
    assert "this file system has no locks" in caplog.text


def test_where_flock_is_unknown_work_goes_ahead(tmp_path, monkeypatch, recwarn):
    """`filelock` locks by the existence of a file there, with a warning of its own."""
    without_locks(monkeypatch, errno.ENOSYS)
    with locked(tmp_path / "a.lock") as is_mine:
        assert is_mine
    assert any("SoftFileLock" in str(warning.message) for warning in recwarn)


def test_another_error_is_not_passed_over(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="Permission denied"), locked(tmp_path / "a.lock"):
        raise AssertionError


def test_a_lock_of_another_user_is_left_alone(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    lock = tmp_path / "train" / f"{PARTIAL}other-1-a.lock"
    lock.parent.mkdir()
    lock.touch()
    lock.with_suffix("").mkdir()
    assert is_locked(lock)
    remove_abandoned(tmp_path, ["train"])
    assert lock.exists()
    assert lock.with_suffix("").exists()
