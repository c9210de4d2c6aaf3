"""Named parts of VRT that a run may leave untrained."""

from torch import nn

# How the parameters of a part are recognised in a state dict.
PARTS = {"spynet": "spynet.", "deform": "pa_deform."}


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Exclude the named parts of VRT (`spynet`, `deform`) from training."""
    for name, parameter in model.named_parameters():
        if any(PARTS[part] in name for part in parts):
            parameter.requires_grad_(requires_grad=False)
