"""Locks between processes: held by one, given up at its end, left out where there are none."""

import errno

import pytest
from filelock import FileLock

from src.data.parallel import is_locked, locked


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


def test_another_error_is_not_passed_over(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="Permission denied"), locked(tmp_path / "a.lock"):
        raise AssertionError
