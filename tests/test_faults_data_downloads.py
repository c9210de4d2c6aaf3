"""What arrives from the network is checked, or it does not stay.

The project downloads two kinds of files, the weights of VGG and of the flow estimator, and unpacks
no archive: `.npz` and `.pth` files are archives that are read in place, and nothing calls
`extract`, `extractall`, `tarfile` or `shutil.unpack_archive`, which the last test pins. So a member
of an archive cannot be written outside its folder.
"""

import hashlib
import http.client
import io
import re

import pytest
import torch

from src.metrics.lpips_metric import LpipsUnavailableError, find_weights
from src.models import downloads
from src.models.downloads import WEIGHT_FILES, WeightFile, fetch_weights
from src.paths import REPO_ROOT


class BrokenStream(io.BytesIO):
    """A connection that ends with an error after some bytes."""

    def read(self, *size):
        block = super().read(*size)
        if not block:
            raise self.error
        return block


def deliver(monkeypatch, content, error=None):
    stream = BrokenStream(content) if error else io.BytesIO(content)
    stream.error = error
    monkeypatch.setattr(
        downloads.urllib.request,
        "urlopen",
        lambda url, timeout: stream if 0 < timeout <= 60 else None,
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"a page that asks to log in", None, "what arrived has the SHA-256"),
        (b"", None, "what arrived has the SHA-256"),
        (b"x" * 5000, ConnectionResetError("reset by peer"), "reset by peer"),
        (b"x" * 5000, http.client.IncompleteRead(b"x", 10), "IncompleteRead"),
        (b"x" * 5000, TimeoutError("timed out"), "timed out"),
    ],
)
def test_f32_a_broken_download_leaves_nothing(hub, monkeypatch, content, error, words):
    for name, file in WEIGHT_FILES.items():
        deliver(monkeypatch, content, error)
        with pytest.raises(RuntimeError, match=words) as caught:
            fetch_weights(name, "or turn it off")
        assert f"Get {file.url}" in str(caught.value)
        assert str(hub / "checkpoints" / file.name) in str(caught.value)
        assert "or turn it off" in str(caught.value)
    assert [path for path in hub.rglob("*") if path.is_file()] == []


def test_f32_a_whole_download_is_kept_and_not_fetched_again(hub, monkeypatch):
    digest = hashlib.sha256(b"weights").hexdigest()
    file = WeightFile("https://example.org/net.pth", digest[:8])
    monkeypatch.setitem(WEIGHT_FILES, "net", file)
    deliver(monkeypatch, b"weights")
    path = fetch_weights("net", "")
    assert path == hub / "checkpoints/net.pth"
    deliver(monkeypatch, b"other", TimeoutError("must not be fetched"))
    assert fetch_weights("net", "").read_bytes() == b"weights"
    assert [found.name for found in hub.rglob("*.pth")] == ["net.pth"]


def test_f32_machines_that_share_a_cache_download_at_the_same_time(hub, monkeypatch):
    """Their processes may have equal numbers, so this one counts as both."""
    file = WeightFile("https://example.org/net.pth", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(WEIGHT_FILES, "net", file)

    class Slow(io.BytesIO):
        def read(self, *size):
            if not file.cached.exists():
                deliver(monkeypatch, b"weights")
                fetch_weights("net", "")  # the other one is faster
            return super().read(*size)

    slow = Slow(b"weights")
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda url, timeout: slow)
    assert fetch_weights("net", "").read_bytes() == b"weights"
    assert [found.name for found in hub.rglob("*.pth")] == ["net.pth"]


def test_f32_a_damaged_file_in_the_cache_is_named_and_kept(hub):
    file = WEIGHT_FILES["vgg16"]
    file.cached.parent.mkdir(parents=True)
    file.cached.write_bytes(b"half of it")
    with pytest.raises(RuntimeError, match=r"is damaged or another file.*Delete it and get"):
        fetch_weights("vgg16", "")
    assert file.cached.read_bytes() == b"half of it"


def test_f32_lpips_weights_are_never_downloaded(hub):
    with pytest.raises(LpipsUnavailableError, match="does not exist; download https://"):
        find_weights()
    assert not hub.exists()


def test_f32_no_archive_is_unpacked():
    calls = re.compile(r"\b(tarfile|unpack_archive|extractall)\b|\.extract\(")
    files = [
        path
        for folder in ("src", "scripts", "third_party")
        for path in (REPO_ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 50
    found = {str(path) for path in files if calls.search(path.read_text(encoding="utf-8"))}
    assert found == set()
