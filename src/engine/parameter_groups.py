"""Named parts of VRT that a run leaves untrained, trains later, or trains more slowly."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

# How the parameters of a part are recognised in a state dict.
PARTS = {"spynet": "spynet.", "deform": "pa_deform."}
REST = "rest"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartRule:
    """How one part is trained.

    Attributes:
        part: A key of `PARTS`.
        freeze_steps: Steps of the run before which it does not change.
        lr_multiplier: Its learning rate, in units of everybody else's.
    """

    part: str
    freeze_steps: int = 0
    lr_multiplier: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether the part is trained like all others."""
        return self.freeze_steps == 0 and self.lr_multiplier == 1.0

    def describe(self) -> str:
        """Return the rule as words for the log."""
        rate = f"trained at {self.lr_multiplier:g} x the learning rate"
        return f"frozen before step {self.freeze_steps}, then {rate}" if self.freeze_steps else rate


def read_rules(cfg: CfgNode) -> list[PartRule]:
    """Return the rules in TRAIN.GROUPS that say something, in the order of `PARTS`."""
    sections = {part: cfg.TRAIN.GROUPS[part.upper()] for part in PARTS}
    rules = [PartRule(p, s.FREEZE_STEPS, s.LR_MULTIPLIER) for p, s in sections.items()]
    return [rule for rule in rules if not rule.is_plain]


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Exclude the named parts of VRT (`spynet`, `deform`) from training for the whole run."""
    for name, parameter in model.named_parameters():
        if any(PARTS[part] in name for part in parts):
            parameter.requires_grad_(requires_grad=False)


def optimizer_groups(model: nn.Module, rules: list[PartRule], lr: float) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimiser: the rest first, then one per rule.

    Without rules there is one group without a name, as in checkpoints of runs that had none. The
    order of groups and of parameters in them is that of saved optimiser states.

    Raises:
        ValueError: A rule names a part that the model does not have.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not rules:
        return [{"params": [p for _, p in named], "lr": lr}]
    members = {rule.part: [p for n, p in named if PARTS[rule.part] in n] for rule in rules}
    for part, parameters in members.items():
        if not parameters:
            raise ValueError(
                f"TRAIN.GROUPS.{part.upper()}: the model has no trained parameters of that part; "
                "leave FREEZE_STEPS 0 and LR_MULTIPLIER 1"
            )
    taken = {id(p) for parameters in members.values() for p in parameters}
    rest = [p for _, p in named if id(p) not in taken]
    return [
        {"params": rest, "lr": lr, "name": REST},
        *(
            {"params": members[rule.part], "lr": lr * rule.lr_multiplier, "name": rule.part}
            for rule in rules
        ),
    ]


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.AdamW:
    """Return the AdamW that TRAIN.OPTIM and TRAIN.GROUPS describe, over what is trained."""
    optim = cfg.TRAIN.OPTIM
    return torch.optim.AdamW(
        optimizer_groups(model, read_rules(cfg), optim.LR),
        lr=optim.LR,
        betas=tuple(optim.BETAS),
        weight_decay=optim.WEIGHT_DECAY,
        fused=True,
    )


class GradientRules:
    """What happens to gradients between backward and update: frozen parts lose theirs, clipping.

    A part that is trained later keeps `requires_grad` from the first step: DDP and recomputation
    see the same graph all the time, and a run that fits into memory before the step at which the
    part joins fits after it. Without a gradient the optimiser neither moves a parameter nor decays
    it nor keeps moments of it, so those start at the step at which the part joins.
    """

    def __init__(self, grad_clip: float = 0.0, rules: list[PartRule] | None = None) -> None:
        """Prepare; `grad_clip` is the largest norm, 0 for no limit."""
        self.max_norm = grad_clip if grad_clip > 0 else float("inf")
        self.joins_at = {rule.part: rule.freeze_steps for rule in rules or []}

    def drop_frozen(self, optimizer: Optimizer, step: int) -> None:
        """Forget the gradients of parts that do not move at `step`, counted from 0."""
        if not self.joins_at:
            return
        for group in optimizer.param_groups[1:]:
            joins_at = self.joins_at[group["name"]]
            if step < joins_at:
                for parameter in group["params"]:
                    parameter.grad = None
            elif step == joins_at > 0:
                logger.info("step %d: %s is trained from here on", step, group["name"])

    def clip(self, optimizer: Optimizer) -> torch.Tensor:
        """Clip the gradients that are left; return the norm that they had together.

        NaN where it is not finite; the gradients then are as they were, so that they can be named.
        """
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        try:
            return nn.utils.clip_grad_norm_(trained, self.max_norm, error_if_nonfinite=True)
        except RuntimeError as error:
            if "non-finite" not in str(error):
                raise
            return torch.tensor(float("nan"))
