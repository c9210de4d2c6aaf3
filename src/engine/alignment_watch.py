"""Watches how far VRT's deformable alignment reaches, and warns when it saturates.

Parallel warping samples a neighbour frame at `flow + residue`. The residue is
`max_residue * tanh(...)` and cannot leave its bound, so an explosion shows as saturation: the mean
of |residue| comes near the bound, and tanh passes no gradient there any more. The flow has no
bound; EDVR, which has no flow, warns if the mean offset is above 50 pixels, and that is the
limit here too, counted in pixels of the network's full resolution.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger(__name__)

# What a deformable alignment of our VRT has; the upstream's has other names.
MEASURED = ("conv_offset", "max_residue", "num_neighbours")
MAX_RESIDUE_PX = 10.0  # bound of the residue in VRT, at full resolution
MAX_MEAN_FLOW_PX = 50.0
MAX_SATURATION = 0.75


class Reach(NamedTuple):
    """How far one stage's alignment reaches, in pixels of that stage."""

    offset_mean: float  # length of the residue that is added to the flow
    offset_max: float
    flow_mean: float  # length of the flow
    saturation: float  # mean of |residue| per axis over its bound, 0..1
    pixel: float  # pixels of the full resolution in one pixel of the stage


class AlignmentWatch:
    """Measures every deformable alignment of a model while `observing`.

    The hooks exist only inside that block, so nothing of this is copied or saved with the model.
    A model without such a module, such as the upstream VRT, gives no numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if all(hasattr(module, name) for name in MEASURED)
        }
        if not self._modules:
            logger.info("this VRT has no alignment that can be measured: no alignment scalars")
        self._flows: dict[str, list[Tensor]] = {}
        self._residues: dict[str, list[Tensor]] = {}  # mean length, longest, mean of |x| and |y|

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Measure the forward passes in the block; earlier measurements are dropped."""
        self._flows, self._residues = ({name: [] for name in self._modules} for _ in range(2))
        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.callback(_watch_flows(module, self._flows[name]).remove)
                stack.callback(_watch_residue(module, self._residues[name]).remove)
            yield

    def reaches(self) -> dict[str, Reach]:
        """Return what the last block measured, by stage; this waits for the device."""
        found = {}
        for name, module in self._modules.items():
            if not self._flows.get(name) or not self._residues.get(name):
                continue  # a clip of one frame is not aligned
            rows = torch.stack(self._residues[name])
            # `stage3` for a module `vrt.stage3.pa_deform`, the whole name for another.
            stage = next((part for part in name.split(".") if part.startswith("stage")), name)
            found[stage] = Reach(
                offset_mean=rows[:, 0].mean().item(),
                offset_max=rows[:, 1].max().item(),
                flow_mean=torch.stack(self._flows[name]).mean().item(),
                saturation=rows[:, 2].mean().item() / module.max_residue,
                pixel=MAX_RESIDUE_PX / module.max_residue,
            )
        return found


def _watch_flows(module: nn.Module, kept: list[Tensor]) -> RemovableHandle:
    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flows = inputs[1 + module.num_neighbours :]  # none without a flow estimator
        flows = torch.stack(flows).detach().float() if flows else torch.zeros_like(inputs[0][None])
        kept.append(torch.linalg.vector_norm(flows, dim=2).mean())

    return module.register_forward_pre_hook(before)


def _watch_residue(module: nn.Module, kept: list[Tensor]) -> RemovableHandle:
    """Repeat the last convolution of the offset branch, whose input passes through a module."""
    last = module.conv_offset[-1]
    count = last.out_channels * 2 // 3  # y and x of each tap; the rest are its modulations

    @torch.no_grad()
    def after(_: nn.Module, __: tuple[Tensor, ...], hidden: Tensor) -> None:
        predicted = F.conv2d(hidden, last.weight[:count], last.bias[:count], padding=1)
        residue = module.max_residue * torch.tanh(predicted.float())
        # The published order is (group, tap, y x).
        length = torch.linalg.vector_norm(residue.unflatten(1, (-1, 2)), dim=2)
        kept.append(torch.stack((length.mean(), length.max(), residue.abs().mean())))

    return module.conv_offset[-2].register_forward_hook(after)


def alarms(reaches: dict[str, Reach]) -> list[str]:
    """Return a sentence per limit that the alignment of a stage exceeds."""
    sentences = []
    for stage, reach in reaches.items():
        full = reach.flow_mean * reach.pixel
        measured = {"offsets": reach.saturation, "mean flow": full}
        broken = [name for name, value in measured.items() if not math.isfinite(value)]
        if broken:
            sentences.append(
                f"{stage}: not finite in the alignment: {', '.join(broken)}; check whether steps "
                "are being skipped, and lower TRAIN.OPTIM.LR"
            )
        if MAX_SATURATION < reach.saturation < math.inf:
            sentences.append(
                f"{stage}: the alignment offsets are at {reach.saturation:.0%} of their bound "
                f"(mean {reach.offset_mean:.2f} px); lower TRAIN.GROUPS.DEFORM.LR_MULTIPLIER"
            )
        if MAX_MEAN_FLOW_PX < full < math.inf:
            sentences.append(
                f"{stage}: the mean flow is {full:.0f} px at full resolution, more than "
                f"{MAX_MEAN_FLOW_PX:.0f}; see TRAIN.GROUPS.SPYNET"
            )
    return sentences


def scalars_of(reaches: dict[str, Reach]) -> dict[str, float]:
    """Return the numbers by TensorBoard tag; `alignment/alarms` counts the sentences."""
    values = {"alignment/alarms": float(len(alarms(reaches)))} if reaches else {}
    for stage, reach in reaches.items():
        for name in ("offset_mean", "offset_max", "flow_mean"):
            values[f"alignment/{stage}_{name}_px"] = getattr(reach, name)
    return values
