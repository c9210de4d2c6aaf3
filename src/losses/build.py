"""The training loss that a configuration asks for."""

import torch
from torch import nn
from yacs.config import CfgNode

from src.losses.charbonnier import CharbonnierLoss
from src.losses.vgg_perceptual import VGGPerceptualLoss


class WeightedLoss(nn.Module):
    """A weighted sum of named losses, in float32 also inside autocast."""

    def __init__(self, terms: dict[str, tuple[float, nn.Module]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("LOSS: every WEIGHT is 0, there is nothing to minimise")
        self.weights = {name: weight for name, (weight, _) in terms.items()}
        self.terms = nn.ModuleDict({name: term for name, (_, term) in terms.items()})

    def forward(
        self, prediction: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the sum for restored frames in 0..1 and its unweighted, detached parts by name."""
        with torch.autocast(prediction.device.type, enabled=False):
            parts = {
                name: term(prediction.float(), target.float()) for name, term in self.terms.items()
            }
            total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        return total, {name: part.detach() for name, part in parts.items()}


def build_loss(cfg: CfgNode) -> WeightedLoss:
    """Return the loss of `cfg.LOSS`; a term of weight 0 is not built."""
    terms, vgg, plain = {}, cfg.LOSS.VGG_PERCEPTUAL, cfg.LOSS.CHARBONNIER
    if plain.WEIGHT > 0:
        terms["charbonnier"] = plain.WEIGHT, CharbonnierLoss(plain.DELTA)
    if vgg.WEIGHT > 0:
        loss = VGGPerceptualLoss(vgg.LAYERS, vgg.BACKBONE, vgg.CRITERION, vgg.WEIGHTS)
        terms["perceptual"] = vgg.WEIGHT, loss
    return WeightedLoss(terms)
