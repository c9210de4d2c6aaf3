"""LPIPS with the AlexNet trunk.

The `lpips` package brings its linear layers. The trunk is torchvision's ImageNet AlexNet: a given
file, or the published one from torch's hub cache, which is downloaded once.
"""

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from src.models.downloads import WEIGHT_FILES, fetch_weights, sha256_of

ALEXNET = WEIGHT_FILES["alexnet"]
MIN_SIDE_PX = 32  # AlexNet's strides leave nothing of a smaller image


class LpipsUnavailableError(RuntimeError):
    """LPIPS cannot be computed; the message says which file is missing and where to put it."""


class LpipsMetric:
    """Perceptual distance of two images (Zhang et al. 2018, version 0.1, AlexNet).

    `weights` is the file of the trunk; empty: torch's hub cache. LpipsUnavailableError says that
    it is absent or, by its checksum, not the published one.
    """

    def __init__(
        self,
        weights: str | Path = "",
        device: str | torch.device = "cpu",
        sha256: str = ALEXNET.sha256,
    ) -> None:
        path = find_weights(weights)
        if (found := sha256_of(path)) != sha256:
            raise LpipsUnavailableError(
                f"{path} is not the published {ALEXNET.name}: its SHA-256 is {found}, "
                f"expected {sha256}; download {ALEXNET.url} again"
            )
        self.device = torch.device(device)
        self.network = _build(path).to(self.device)

    def __call__(self, restored: np.ndarray, sharp: np.ndarray) -> float:
        """Return the distance of two uint8 RGB images [H, W, 3]; 0 for equal ones."""
        if min(sharp.shape[:2]) < MIN_SIDE_PX:
            raise ValueError(
                f"LPIPS needs images of at least {MIN_SIDE_PX} x {MIN_SIDE_PX} pixels, "
                f"got {sharp.shape[0]} x {sharp.shape[1]}"
            )
        pair = [torch.from_numpy(np.ascontiguousarray(image)) for image in (restored, sharp)]
        with torch.inference_mode():  # [1, 3, H, W] in -1..1
            pair = [x.to(self.device).permute(2, 0, 1)[None].float() / 127.5 - 1.0 for x in pair]
            return float(self.network(*pair))


def find_weights(weights: str | Path = "") -> Path:
    """Return the file with AlexNet's weights; by default the published one, from the network."""
    if not str(weights):
        try:
            return fetch_weights("alexnet", "or give its path as VAL.LPIPS_WEIGHTS")
        except RuntimeError as error:
            raise LpipsUnavailableError(f"LPIPS needs AlexNet: {error}") from error
    if not Path(weights).is_file():
        raise LpipsUnavailableError(
            f"VAL.LPIPS_WEIGHTS: {weights} does not exist; get {ALEXNET.url}, or leave it empty"
        )
    return Path(weights)


def _build(path: Path) -> nn.Module:
    import lpips  # slow to import, and only needed here

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", category=UserWarning)  # it uses a deprecated argument
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    published = torch.load(path, map_location="cpu", weights_only=True)
    # "slice2.3.weight" of the trunk is "features.3.weight" of AlexNet.
    network.net.load_state_dict(
        {name: published["features." + name.partition(".")[2]] for name in network.net.state_dict()}
    )
    return network.eval().requires_grad_(False)
