"""Weight files from the network: whole and checked in torch's hub cache, or absent."""

import hashlib
import http.client
import logging
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from src.paths import atomic_write

logger = logging.getLogger(__name__)

TIMEOUT_S = 20.0


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
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name


WEIGHT_FILES = {
    "spynet": WeightFile(
        "https://github.com/JingyunLiang/VRT/releases/download/v0.0/"
        "spynet_sintel_final-3d2a1287.pth",
        "3d2a1287",
    ),
    "vgg16": WeightFile(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "vgg19": WeightFile(
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    ),
}


def fetch_weights(name: str, otherwise: str) -> Path:
    """Return the path of a file of `WEIGHT_FILES` in the cache; download it if it is missing.

    `otherwise` is what the user can do without the file, for the message.

    Raises:
        RuntimeError: The file is damaged or cannot be downloaded; says where to put it.
    """
    file = WEIGHT_FILES[name]
    path = file.cached
    if path.is_file():
        if not sha256_of(path).startswith(file.sha256):
            raise RuntimeError(
                f"{path} is damaged or another file: its SHA-256 is not {file.sha256}. "
                f"Delete it and get {file.url} again, {otherwise}"
            )
        return path
    logger.info("downloading %s to %s", file.url, path)
    try:
        with atomic_write(path) as partial:
            with (
                urllib.request.urlopen(file.url, timeout=TIMEOUT_S) as response,  # noqa: S310
                partial.open("wb") as handle,
            ):
                shutil.copyfileobj(response, handle)
            found = sha256_of(partial)
            if not found.startswith(file.sha256):
                raise OSError(f"what arrived has the SHA-256 {found}")
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"{file.name} is not at {path} and cannot be downloaded ({error}). "
            f"Get {file.url} elsewhere and put it there, {otherwise}"
        ) from error
    return path


def sha256_of(path: Path) -> str:
    """Return the hash of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
