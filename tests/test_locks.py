"""Locks between processes: held by one, released at its end, a warning if there are none."""

import errno
import fcntl

import pytest
from filelock import FileLock

from src.data.parallel import is_locked, locked
from src.prepare.sources.run import PARTIAL, remove_abandoned


def test_a_lock_is_held_by_one_and_released(tmp_path):
    path = tmp_path / "folder/a.lock"
    with locked(path) as is_mine:
        assert is_mine
        assert is_locked(path)
        with locked(path, wait=False) as is_mine_too:
            assert not is_mine_too
    assert not is_locked(path)


def answering(monkeypatch, owner, name, error):
    """Let a call raise an error."""

    def call(*_, **__):
        raise error

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, recwarn, number):
    """Lustre and NFS without locks; what is left of a killed process blocks no other."""
    answering(monkeypatch, fcntl, "flock", OSError(number, "no locks here"))
    for _ in range(2):
        with locked(tmp_path / "a.lock", wait=False) as is_mine:
            assert is_mine
            assert not is_locked(tmp_path / "a.lock")
    assert "this file system has no locks" in caplog.text
    assert not list(recwarn)


def test_a_lock_of_another_user_is_an_error_and_is_not_removed(tmp_path, monkeypatch):
    answering(monkeypatch, FileLock, "acquire", PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(OSError, match="Permission denied"), locked(tmp_path / "a.lock"):
        raise AssertionError
    lock = tmp_path / "train" / f"{PARTIAL}other-1-a.lock"
    lock.parent.mkdir()
    lock.touch()
    lock.with_suffix("").mkdir()
    assert is_locked(lock)
    remove_abandoned(tmp_path, ["train"])
    assert lock.exists()
    assert lock.with_suffix("").exists()
