"""Where the weights of a VGG network come from: a path, torch's hub cache, or the network."""

import hashlib
import http.client
import logging
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch

from src.models.torch_file import UNREADABLE
from src.paths import atomic_write, resolve

logger = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 20.0
TURN_OFF = "or turn the term off with LOSS.VGG_PERCEPTUAL.WEIGHT 0"


@dataclass(frozen=True)
class VggFile:
    """A weights file of torchvision."""

    name: str
    sha256: str

    @property
    def url(self) -> str:
        """Where torchvision publishes it."""
        return f"https://download.pytorch.org/models/{self.name}"


VGG_FILES = {
    "vgg16": VggFile(
        "vgg16-397923af.pth", "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
    ),
    "vgg19": VggFile(
        "vgg19-dcbb9e9d.pth", "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44"
    ),
}


def load_vgg_features(backbone: str, path: str = "") -> dict[str, torch.Tensor]:
    """Return the state dict of a VGG file, with keys `features.0.weight` and so on.

    Args:
        backbone: "vgg16" or "vgg19".
        path: a file with at least the layers that are used (an extract will do); empty: the file
            in torch's hub cache, whose hash is checked, or else the download of it.

    Raises:
        RuntimeError: no usable weights; the message says which file to put where.
    """
    if path:
        return _read(resolve(path))
    file = VGG_FILES[backbone]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file.name
    if not cached.is_file():
        _download(file, cached)
    elif _sha256(cached) != file.sha256:
        raise RuntimeError(
            f"{cached} is damaged or another file: its SHA-256 is not {file.sha256}. "
            f"Delete it and get {file.url} again, {TURN_OFF}"
        )
    return _read(cached)


def _download(file: VggFile, destination: Path) -> None:
    """Fetch a file into torch's hub cache; it appears there whole and checked, or not at all."""
    logger.info("downloading %s to %s", file.url, destination)
    try:
        with atomic_write(destination) as partial:
            with (
                urllib.request.urlopen(file.url, timeout=DOWNLOAD_TIMEOUT_S) as response,  # noqa: S310
                partial.open("wb") as handle,
            ):
                shutil.copyfileobj(response, handle)
            found = _sha256(partial)
            if found != file.sha256:
                raise OSError(f"what arrived has the SHA-256 {found}")
    except (OSError, http.client.HTTPException) as error:
        raise RuntimeError(
            f"the perceptual loss needs {file.name}, which is not at {destination} and could not "
            f"be downloaded ({error}). Get {file.url} elsewhere and put it there, or name a file "
            f"in LOSS.VGG_PERCEPTUAL.WEIGHTS, {TURN_OFF}"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        raise RuntimeError(
            f"LOSS.VGG_PERCEPTUAL.WEIGHTS: {path} cannot be read as weights ({error}). Give a "
            f"torchvision VGG file or an extract with its `features.*` keys, {TURN_OFF}"
        ) from error
