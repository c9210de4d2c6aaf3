"""Distance of two images in the features of a VGG network."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from src.losses.charbonnier import check_images
from src.models.downloads import fetch_weights
from src.models.weights import UNREADABLE
from src.paths import resolve

CONVOLUTIONS_PER_BLOCK = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CRITERIA = {"l1": F.l1_loss, "l2": F.mse_loss}
TURN_OFF = "or turn the term off with LOSS.VGG_PERCEPTUAL.WEIGHT 0"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def layer_positions(backbone: str) -> dict[str, int]:
    """Return the index of every `reluB_C` (block, convolution) in torchvision's `features`."""
    positions = {}
    index = 0
    for block, count in enumerate(CONVOLUTIONS_PER_BLOCK[backbone], start=1):
        for convolution in range(1, count + 1):
            positions[f"relu{block}_{convolution}"] = index + 1
            index += 2
        index += 1  # pooling
    return positions


def vgg_features(backbone: str) -> nn.Sequential:
    """Return torchvision's `features` with random weights; importing torchvision takes 3 s."""
    layers: list[nn.Module] = []
    channels = 3
    for block, count in enumerate(CONVOLUTIONS_PER_BLOCK[backbone]):
        width = min(64 * 2**block, 512)
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def read_vgg_features(backbone: str, path: str = "") -> dict[str, torch.Tensor]:
    """Return the state dict of a VGG file, with keys `features.0.weight` and so on.

    `path` holds at least the layers that are used; empty: torch's hub cache, else a download.
    """
    name_a_file = f"or name a file in LOSS.VGG_PERCEPTUAL.WEIGHTS, {TURN_OFF}"
    file = resolve(path) if path else fetch_weights(backbone, name_a_file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise RuntimeError(
            f"LOSS.VGG_PERCEPTUAL.WEIGHTS: {file} cannot be read as weights ({error}). Give a "
            f"torchvision VGG file or an extract with its `features.*` keys, {TURN_OFF}"
        ) from error


class VGGPerceptualLoss(nn.Module):
    """Mean over layers of the distance between VGG features; computed in float32.

    The network is frozen and cut after the last layer that is used.

    Args:
        layers: names like "relu3_3".
        backbone: "vgg16" or "vgg19".
        criterion: "l1" or "l2".
        weights: a file; empty: torch's hub cache, else a download.
    """

    def __init__(
        self,
        layers: Sequence[str] = ("relu3_3",),
        backbone: str = "vgg16",
        criterion: str = "l1",
        weights: str = "",
    ) -> None:
        super().__init__()
        for name, known in ((backbone, CONVOLUTIONS_PER_BLOCK), (criterion, CRITERIA)):
            if name not in known:
                raise ValueError(f"perceptual loss: {name!r} is none of {list(known)}")
        positions = layer_positions(backbone)
        unknown = [layer for layer in layers if layer not in positions]
        if unknown or not layers:
            raise ValueError(
                f"LOSS.VGG_PERCEPTUAL.LAYERS is {list(layers)}; {backbone} has {list(positions)}"
            )
        self.positions = sorted(positions[layer] for layer in layers)
        self.criterion = criterion
        stored = read_vgg_features(backbone, weights)
        self.features = vgg_features(backbone)[: self.positions[-1] + 1]
        self._load(stored)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def _load(self, stored: dict[str, torch.Tensor]) -> None:
        own = self.features.state_dict()
        lacking = [
            key
            for key, value in own.items()
            if f"features.{key}" not in stored or stored[f"features.{key}"].shape != value.shape
        ]
        if lacking:
            raise RuntimeError(
                "LOSS.VGG_PERCEPTUAL.WEIGHTS: the file lacks (in the right shape) "
                f"{', '.join('features.' + key for key in lacking)}; give a torchvision VGG file "
                f"of this BACKBONE or an extract up to the last of LAYERS, {TURN_OFF}"
            )
        self.features.load_state_dict({key: stored[f"features.{key}"] for key in own})

    def train(self, mode: bool = True) -> "VGGPerceptualLoss":
        """Stay in evaluation mode: the network is a fixed yardstick."""
        del mode
        return super().train(False)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of images in 0..1, [B, T, 3, H, W] or [N, 3, H, W].

        The gradient reaches `prediction` only.
        """
        check_images(prediction, target)
        compare = CRITERIA[self.criterion]
        with torch.autocast(prediction.device.type, enabled=False):
            x = self._normalised(prediction)
            with torch.no_grad():
                y = self._normalised(target)
            total = x.new_zeros(())
            for index, layer in enumerate(self.features):
                x = layer(x)
                with torch.no_grad():
                    y = layer(y)
                if index in self.positions:
                    total = total + compare(x, y)
        return total / len(self.positions)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        images = images.reshape(-1, *images.shape[-3:]).float()
        return (images - self.mean) / self.std
