"""Weight files from the network: whole and checked in torch's hub cache, or absent."""

import hashlib
import http.client
import logging
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from src.data.parallel import locked
from src.paths import flush_folder

logger = logging.getLogger(__name__)

TIMEOUT_S = 20.0
BLOCK = 1 << 20


@dataclass(frozen=True)
class WeightFile:
    """A published file: its URL, and its SHA-256 or the first digits of it."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def cached(self) -> Path:
        """The path that torch.hub uses."""
        import torch  # slow to import, and only needed here

        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    def problem(self, path: Path) -> str:
        """Return what is wrong with a copy of the file; empty: its hash is right."""
        found = sha256_of(path)
        return "" if found.startswith(self.sha256) else f"its SHA-256 is {found}"


_TORCHVISION = "https://download.pytorch.org/models/"
WEIGHT_FILES = {
    "vgg16": WeightFile(
        _TORCHVISION + "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "vgg19": WeightFile(
        _TORCHVISION + "vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    ),
    "alexnet": WeightFile(
        _TORCHVISION + "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "spynet": WeightFile(
        "https://github.com/JingyunLiang/VRT/releases/download/v0.0/"
        "spynet_sintel_final-3d2a1287.pth",
        "3d2a1287",
    ),
}


def fetch_weights(name: str, otherwise: str) -> Path:
    """Return the path of a file of `WEIGHT_FILES` in the cache; download it if it is missing.

    `otherwise` is what the user can do without the file, for the message.
    """
    file = WEIGHT_FILES[name]
    path = file.cached
    if path.is_file():
        if file.problem(path):
            raise RuntimeError(
                f"{path} is damaged or another file: its SHA-256 is not {file.sha256}. "
                f"Delete it and get {file.url} again, {otherwise}"
            )
        return path
    try:
        download(file, path)
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"{file.name} is not at {path} and cannot be downloaded ({error}). "
            f"Get {file.url} elsewhere and put it there, {otherwise}"
        ) from error
    return path


def download(file: WeightFile, path: Path) -> None:
    """Put a file at `path`, checked; an interrupted download resumes where it ended.

    One process downloads, others wait for it. What has arrived is kept in `NAME.part`. OSError or
    HTTPException: it did not arrive, or it is another file.
    """
    part = path.with_name(path.name + ".part")
    start = part.stat().st_size if part.is_file() else 0
    logger.info("downloading %s to %s", file.url, path)
    with _open(file.url, start) as response, locked(path.with_name(f".{path.name}.lock")):
        if path.is_file():  # another process was faster
            return
        if start and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        _receive(response, part, start)
        if response.length:  # None where the server did not state it
            raise OSError(f"the connection ended {response.length} bytes too early")
        if problem := file.problem(part):
            part.unlink()
            raise OSError(f"what arrived is another file, {problem}")
        part.replace(path)
        flush_folder(path.parent)


def _receive(response: http.client.HTTPResponse, part: Path, start: int) -> None:
    """Append what arrives to the first `start` bytes of `part`, with a progress bar."""
    total = None if response.length is None else start + response.length
    hidden = not sys.stderr.isatty()
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=hidden)
    with part.open("r+b" if part.is_file() else "wb") as handle, bar:
        handle.seek(handle.truncate(start))
        while block := response.read(BLOCK):
            handle.write(block)
            bar.update(len(block))
        handle.flush()
        os.fsync(handle.fileno())


def _open(url: str, start: int) -> http.client.HTTPResponse:
    """Ask for a file from byte `start` on; from its beginning where the server has no such byte."""
    if not start:
        return urllib.request.urlopen(url, timeout=TIMEOUT_S)  # noqa: S310
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"})  # noqa: S310
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return _open(url, 0)


def sha256_of(path: Path) -> str:
    """Return the hash of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
