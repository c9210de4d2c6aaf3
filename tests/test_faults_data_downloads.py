"""What arrives from the network is checked, or it does not stay.

The project downloads files of weights and unpacks no archive: `.npz`, `.pth` and `.tar` files are
read in place, and nothing calls `extract`, `extractall` or `shutil.unpack_archive`, which the last
test pins. So a member of an archive cannot be written outside its folder.
"""

import hashlib
import http.client
import io
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from scripts import fetch_weights as command
from src.metrics.lpips_metric import find_weights
from src.models import downloads
from src.models.downloads import WEIGHT_FILES, WeightFile, fetch_weights
from src.paths import REPO_ROOT


class BrokenStream(io.BytesIO):
    """A connection that ends after some bytes, with an error if there is one."""

    length, error = None, None

    def read(self, *size):
        block = super().read(*size)
        if not block and self.error:
            raise self.error
        return block


def deliver(monkeypatch, content, error=None):
    stream = BrokenStream(content)
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
        (b"a page that asks to log in", None, "what arrived is another file"),
        (b"", None, "what arrived is another file"),
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
    assert list(hub.rglob("*.pth")) == []  # only .part, which the next attempt completes


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


class Server(BaseHTTPRequestHandler):
    """Serves `CONTENT`, its first answer cut in the middle; `asked` lists the ranges."""

    CONTENT = bytes(range(256)) * 40
    asked: list[str | None]

    def do_GET(self):  # noqa: N802
        wanted = self.headers["Range"]
        is_first = not self.asked
        self.asked.append(wanted)
        start = int(wanted[6:-1]) if wanted else 0
        if start >= len(self.CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.CONTENT) - start))
        self.end_headers()
        self.wfile.write(self.CONTENT[start : start + 5000 if is_first else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch):
    """A file on a server of this machine, and the list of requests for it."""
    monkeypatch.setattr(Server, "asked", [], raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    digest = hashlib.sha256(Server.CONTENT).hexdigest()
    url = f"http://127.0.0.1:{server.server_port}/net.pth"
    monkeypatch.setitem(WEIGHT_FILES, "alexnet", WeightFile(url, digest))
    yield Server.asked
    server.shutdown()
    server.server_close()


def test_f32_an_interrupted_download_resumes_where_it_ended(hub, served, capsys):
    assert command.main(["alexnet"]) == 1
    assert "get http://127.0.0.1" in capsys.readouterr().err
    assert [p.stat().st_size for p in hub.rglob("*.part")] == [5000]
    assert command.main(["alexnet"]) == command.main(["alexnet"]) == 0
    assert served == [None, "bytes=5000-"]
    assert WEIGHT_FILES["alexnet"].cached.read_bytes() == Server.CONTENT
    assert list(hub.rglob("*.part")) == []


@pytest.mark.parametrize("left", [b"x" * 5000, b"x" * 20000])  # the second is longer than the file
def test_f32_a_wrong_beginning_is_thrown_away(hub, served, left):
    part = WEIGHT_FILES["alexnet"].cached.with_suffix(".pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    served.append("a first answer that was whole")
    assert command.main(["alexnet"]) == (0 if len(left) > len(Server.CONTENT) else 1)
    assert command.main(["alexnet"]) == 0
    assert served[-1] is None


def test_f32_processes_that_share_a_cache_download_once(hub, served):
    served.append("a first answer that was whole")
    threads = [threading.Thread(target=fetch_weights, args=("alexnet", "")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert find_weights().read_bytes() == Server.CONTENT
    found = {path.name for path in hub.rglob("*")}
    assert found - {".net.pth.lock"} == {"checkpoints", "net.pth"}  # some filelock remove it


def test_weights_travel_in_a_folder_to_a_machine_without_network(hub, served, tmp_path, capsys):
    served.append("a first answer that was whole")
    assert command.main(["alexnet", "--to", str(tmp_path / "usb")]) == 0
    assert command.main(["--list"]) == 0
    assert "alexnet: missing" in capsys.readouterr().out
    assert not hub.exists()
    assert command.main(["alexnet", "--from", str(tmp_path / "usb")]) == 0
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "alexnet: there" in listed
    assert "size 244,408,911 bytes" in listed
    (hub / "checkpoints/net.pth").write_bytes(b"half of it")
    (tmp_path / "usb/net.pth").write_bytes(b"half of it")
    assert command.main(["alexnet"]) == 1
    (hub / "checkpoints/net.pth").unlink()
    assert command.main(["alexnet", "--from", str(tmp_path / "usb")]) == 1
    assert capsys.readouterr().err.count("damaged or another") == 2
    assert len(served) == 2


def test_f32_a_damaged_file_in_the_cache_is_named_and_kept(hub):
    file = WEIGHT_FILES["vgg16"]
    file.cached.parent.mkdir(parents=True)
    file.cached.write_bytes(b"half of it")
    with pytest.raises(RuntimeError, match=r"is damaged or another file.*Delete it and get"):
        fetch_weights("vgg16", "")
    assert file.cached.read_bytes() == b"half of it"


def test_f32_no_archive_is_unpacked():
    calls = re.compile(r"\b(unpack_archive|extractall)\b|\.extract\(")
    files = [
        path
        for folder in ("src", "scripts", "third_party")
        for path in (REPO_ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 50
    found = {str(path) for path in files if calls.search(path.read_text(encoding="utf-8"))}
    assert found == set()
