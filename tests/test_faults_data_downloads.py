"""What arrives from the network is checked, or it does not stay.

The project downloads two kinds of files, the weights of VGG and of the flow estimator, and unpacks
no archive: `.npz` and `.pth` files are archives that are read in place, and nothing calls
`extract`, `extractall`, `tarfile` or `shutil.unpack_archive`, which the last test pins. So a member
of an archive cannot be written outside its folder.
"""

import http.client
import io
import re

import pytest
import torch

from src.losses import vgg_weights
from src.losses.vgg_weights import load_vgg_features
from src.metrics.lpips_metric import LpipsUnavailableError, find_weights
from src.paths import REPO_ROOT
from third_party.VRT.models import weights as vrt_weights
from third_party.VRT.models.weights import fetch_spynet

SPYNET = "https://example.org/spynet_sintel_final-3d2a1287.pth"


class BrokenStream(io.BytesIO):
    """A connection that ends with an error after some bytes."""

    def read(self, *size):
        block = super().read(*size)
        if not block:
            raise self.error
        return block


def deliver(monkeypatch, module, content, error=None):
    stream = BrokenStream(content) if error else io.BytesIO(content)
    stream.error = error
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda url, timeout: stream)


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
    deliver(monkeypatch, vgg_weights, content, error)
    with pytest.raises(RuntimeError, match=words) as told:
        load_vgg_features("vgg16")
    assert "Get https://download.pytorch.org" in str(told.value)
    assert [path for path in hub.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"a page", None), (b"x" * 5000, ConnectionResetError("reset by peer"))],
)
def test_f32_a_broken_flow_estimator_leaves_nothing(tmp_path, monkeypatch, content, error):
    deliver(monkeypatch, vrt_weights, content, error)
    with pytest.raises((ConnectionError, ValueError), match="spynet"):
        fetch_spynet(tmp_path / "cache", url=SPYNET)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_f32_a_damaged_file_in_the_cache_is_named_and_kept(hub, monkeypatch):
    file = vgg_weights.VGG_FILES["vgg16"]
    cached = hub / "checkpoints" / file.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half of it")
    with pytest.raises(RuntimeError, match=r"is damaged or another file.*Delete it and get"):
        load_vgg_features("vgg16")
    assert cached.read_bytes() == b"half of it"


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
