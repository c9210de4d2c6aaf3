"""What changes the weights: groups of parameters, learning rates, gradient rules, the average."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from yacs.config import CfgNode

# How the parameters of a part are recognised in a state dict.
PARTS = {
    "spynet": lambda name: "spynet." in name,
    "deform": lambda name: "pa_deform." in name,
    "refinement": lambda name: "first_estimate." not in name,
}
# Of Muon.
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
RMS_OF_ADAMW = 0.2  # of the entries of a step, at learning rate 1
TINY = 1e-7
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartRule:
    """How one part, a key of `PARTS`, is trained: from which step on, at what multiple of the LR.

    A part that is trained later keeps `requires_grad` from the first step: DDP and recomputation
    see the same graph all the time, and memory does not grow at the step at which the part joins.
    Without a gradient the optimiser neither moves a parameter nor decays it nor keeps moments.
    """

    part: str
    freeze_steps: int = 0
    lr_multiplier: float = 1.0


def read_rules(cfg: CfgNode) -> list[PartRule]:
    """Return the rules in TRAIN.GROUPS that are not the default, in the order of `PARTS`."""
    sections = {part: cfg.TRAIN.GROUPS[part.upper()] for part in PARTS}
    rules = [PartRule(p, s.FREEZE_STEPS, s.LR_MULTIPLIER) for p, s in sections.items()]
    return [rule for rule in rules if rule != PartRule(rule.part)]


def freeze(model: nn.Module, parts: list[str]) -> None:
    """Exclude the named parts of VRT (`spynet`, `deform`) from training for the whole run."""
    for name, parameter in model.named_parameters():
        if any(PARTS[part](name) for part in parts):
            parameter.requires_grad_(requires_grad=False)


def optimizer_groups(model: nn.Module, rules: list[PartRule], lr: float) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimiser: the rest first, then one per rule.

    Without rules there is one group without a name. Saved optimiser states go by this order.
    """
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not rules:
        return [{"params": list(named.values()), "lr": lr}]
    groups = []
    for rule in rules:
        names = [name for name in named if PARTS[rule.part](name)]
        if not names:
            raise ValueError(
                f"TRAIN.GROUPS.{rule.part.upper()}: the model has no trained parameters of that "
                "part; leave FREEZE_STEPS 0 and LR_MULTIPLIER 1"
            )
        members = [named.pop(name) for name in names]
        groups.append({"params": members, "lr": lr * rule.lr_multiplier, "name": rule.part})
    return [{"params": list(named.values()), "lr": lr, "name": "rest"}, *groups]


def build_optimizer(model: nn.Module, cfg: CfgNode) -> torch.optim.AdamW:
    """Return the optimiser that TRAIN.OPTIM and TRAIN.GROUPS describe, over what is trained."""
    optim = cfg.TRAIN.OPTIM
    groups = optimizer_groups(model, read_rules(cfg), optim.LR)
    options = {"lr": optim.LR, "betas": tuple(optim.BETAS), "weight_decay": optim.WEIGHT_DECAY}
    if optim.NAME == "muon":
        return Muon(groups, **options)
    return torch.optim.AdamW(groups, **options, fused=True)


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al., 2024) for all parameters of two or more dimensions, AdamW for the rest.

    A weight, seen as a matrix with a row per output channel, moves along its Nesterov momentum
    with all singular values made about equal: directions with small gradients are learnt as soon
    as the others. A step is as long as one of AdamW at the same learning rate (Liu et al., 2025,
    "Muon is scalable for LLM training", eq. 4). `torch.optim.Muon`, in torch since 2.9, takes no
    convolutions.
    """

    @torch.no_grad()
    def step(self) -> None:
        """Do one step. It uses up the gradients of matrices."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None and p.ndim > 1]
            directions = orthogonalize([self._averaged(p).flatten(1) for p in matrices])
            for parameter, direction in zip(matrices, directions, strict=True):
                length = group["lr"] * RMS_OF_ADAMW * math.sqrt(max(direction.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction.view_as(parameter), alpha=length)
                parameter.grad = None  # AdamW passes over it
        super().step()

    def _averaged(self, parameter: Tensor) -> Tensor:
        """Add a gradient to the momentum; return their Nesterov mean."""
        gradient, state = parameter.grad, self.state[parameter]
        if not state:  # AdamW expects its "step" on loading
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(gradient))
        state["step"] += 1
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def orthogonalize(matrices: list[Tensor]) -> list[Tensor]:
    """Return matrices [n, m] with their singular values replaced by values of 0.7 to 1.2.

    Five Newton-Schulz steps, X <- (a + b A + c A^2) X with A = X X^T (Jordan et al., 2024). Their
    factors are n x n: they are multiplied with each other first, for all matrices of equal n at
    once, and only then with X. That needs float32; rounded to TF32, small eigenvalues of A turn
    negative and grow. Singular values below about 1e-3 of the norm become smaller than 0.7.
    """
    a, b, c = NEWTON_SCHULZ
    wide = [x.T if x.shape[0] > x.shape[1] else x for x in matrices]
    wide = [x / (x.norm() + TINY) for x in wide]
    of_rows: dict[int, list[int]] = {}
    for i, x in enumerate(wide):
        of_rows.setdefault(len(x), []).append(i)
    for members in of_rows.values():
        gram = torch.stack([wide[i] @ wide[i].T for i in members])
        product = torch.eye(gram.shape[-1], device=gram.device).expand_as(gram)
        for _ in range(5):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product, gram = factor @ product, factor @ gram @ factor
        for i, whole in zip(members, product, strict=True):
            wide[i] = whole @ wide[i]
    return [x if x.shape == given.shape else x.T for x, given in zip(wide, matrices, strict=True)]


def drop_frozen(optimizer: Optimizer, rules: Sequence[PartRule], step: int) -> None:
    """Remove the gradients of parts that do not move at `step`, counted from 0."""
    joins_at = {rule.part: rule.freeze_steps for rule in rules}
    for group in optimizer.param_groups:
        first = joins_at.get(group.get("name"), 0)
        if step < first:
            for parameter in group["params"]:
                parameter.grad = None
        elif step == first > 0:
            logger.info("step %d: %s is trained from here on", step, group["name"])


def skip_frozen(model: nn.Module, rules: Sequence[PartRule], step: int) -> None:
    """Let a model with a first estimate run without its refinement while that is frozen."""
    for rule in rules:
        if rule.part == "refinement":
            for module in model.modules():
                if hasattr(module, "refines"):
                    module.refines = step >= rule.freeze_steps


def clip_gradients(optimizer: Optimizer, max_norm: float) -> Tensor:
    """Clip the gradients to a joint norm (0: no limit); return the norm that they had.

    NaN if it is not finite; the gradients then are unchanged, so that they can be named.
    """
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        return nn.utils.clip_grad_norm_(trained, max_norm or math.inf, error_if_nonfinite=True)
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        return torch.tensor(math.nan)


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int, floor: float) -> float:
    """Return the share of the peak learning rate that step `step` (from 0) uses.

    Linear from 1/warmup_steps to 1 over the warm-up, then a half cosine to `floor`, which the
    last step reaches. A warm-up that would take the whole run is cut to a tenth of it.
    """
    if warmup_steps >= total_steps:
        warmup_steps = min(warmup_steps, total_steps // 10)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))


class WarmupCosine(LambdaLR):
    """Linear warm-up, then a half cosine; each group keeps its own multiple of the rate."""

    def __init__(
        self, optimizer: Optimizer, peak: float, warmup_steps: int, total_steps: int, eta_min: float
    ) -> None:
        floor = eta_min / peak
        super().__init__(
            optimizer, lambda step: learning_rate_factor(step, warmup_steps, total_steps, floor)
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the step of `state_dict`, after the optimiser was loaded.

        The rates are those of this schedule, which differ from the optimiser's if the run has been
        made longer since.
        """
        super().load_state_dict(state_dict)
        self._last_lr = [
            base * factor(self.last_epoch)
            for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def build_schedule(optimizer: Optimizer, cfg: CfgNode, total_steps: int) -> WarmupCosine:
    """Return the schedule that TRAIN.SCHED describes."""
    sched, peak = cfg.TRAIN.SCHED, cfg.TRAIN.OPTIM.LR
    return WarmupCosine(optimizer, peak, sched.WARMUP_STEPS, total_steps, sched.ETA_MIN)


class WeightAverage:
    """The exponential moving average of a model's weights: average = d average + (1 - d) weights.

    It starts from the initial weights, so its state is a state dict like the model's. Buffers are
    copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._averaged.requires_grad_(requires_grad=False)
        self._averaged.n_averaged.fill_(1)  # 0 would copy the weights at the first update
        self.model = self._averaged.module
        self.state_dict = self.model.state_dict  # under the model's own keys
        self.load_state_dict = self.model.load_state_dict
        self.update = self._averaged.update_parameters  # after a step that was not skipped
