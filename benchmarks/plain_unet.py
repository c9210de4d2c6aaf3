"""Train a plain U-Net on a run's clips for the seconds that the run took: the network to beat.

    python benchmarks/plain_unet.py --config FILE [--seconds S | --steps N] [KEY VALUE ...]

It restores frame by frame: the blurry frame, unshuffled to the resolution of the spikes, and the
normalised voxels are concatenated; three levels; what comes out is shuffled back and added to the
blurry frame. Its blocks are those of the first estimate (src/models/first_estimate.py), clips per
step and optimiser those of the run. Without --seconds the time is that of the run
(`progress.compute_s` of its last.pth): CPU seconds, on a GPU seconds. The weights go to
outputs/ckpts/<exp>/plain_unet.pth, where scripts/compare_baseline.py finds them. A second call with
the same inputs trains nothing, one that was stopped resumes. A number of steps gives the same
weights every time.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="YAML file of the VRT+Spike run")
    parser.add_argument("--seconds", type=float, help="default: what the run took")
    parser.add_argument("--steps", type=int, help="in place of seconds")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="dotted keys")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    parse_arguments()  # --help and wrong arguments end here; the imports below take seconds

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from yacs.config import CfgNode

from src.comparison.runs import OtherNetwork
from src.config import ConfigError, load_config
from src.data.build import build_train_dataset, build_train_loader
from src.data.description import describe_root
from src.engine.checkpoint import load_checkpoint
from src.engine.optim import Muon
from src.engine.processes import choose_device
from src.engine.signals import StopSignals, exit_code
from src.engine.step import BatchTransfer
from src.losses.charbonnier import charbonnier
from src.models.downloads import sha256_of
from src.models.first_estimate import ResidualBlock
from src.models.weights import read_torch_file
from src.paths import atomic_write
from src.run_directory import RunDirectory

WIDTH = 24
CLIPS = 2  # of a step; 1 where they have spikes of several resolutions
LR, LR_END = 1e-3, 2e-5
WARMUP_STEPS = 20
# Usual norms are 0.04. Without this limit and with torch's betas a run broke off at step 480.
GRAD_CLIP = 0.2
SAVE_SECONDS = 30.0
COUNTERS = ("step", "compute_s", "loss")
ENDLESS = 10**8
VERSION = 5  # raise when equal inputs would give other weights


class PlainUNet(nn.Module):
    """Three levels of convolutions at the resolution of the spikes; about 0.4 M parameters.

    Args:
        bins: K.
        factor: pixels of a frame per spike pixel, along one side.
    """

    def __init__(self, bins: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        pixels = 3 * factor**2
        self.down1 = ResidualBlock(pixels + bins, WIDTH)
        self.down2 = ResidualBlock(WIDTH, 2 * WIDTH, stride=2)
        self.middle = ResidualBlock(2 * WIDTH, 4 * WIDTH, stride=2)
        self.up2 = ResidualBlock(6 * WIDTH, 2 * WIDTH)
        self.up1 = ResidualBlock(3 * WIDTH, WIDTH)
        self.last = nn.Conv2d(WIDTH, pixels, 3, padding=1)
        nn.init.zeros_(self.last.weight)  # a new network returns the blurry frame
        nn.init.zeros_(self.last.bias)

    def forward(self, blurry: Tensor, voxels: Tensor) -> Tensor:
        """Return [B, T, 3, H, W] from blurry frames of that shape and voxels [B, T, K, h, w]."""
        frames, height, width = blurry.shape[1], *blurry.shape[-2:]
        images, voxels = (rearrange(x, "b t c h w -> (b t) c h w") for x in (blurry, voxels))
        side = 4 * self.factor
        padding = (0, -width % side, 0, -height % side)
        pixels = functional.pad(images, padding, "replicate")
        pixels = functional.pixel_unshuffle(pixels, self.factor)
        size = (-(-height // self.factor), -(-width // self.factor))
        if voxels.shape[-2:] != size:  # finer, or no whole number of pixels per spike pixel
            voxels = functional.interpolate(voxels, size, mode="area")
        padding = (0, pixels.shape[-1] - size[1], 0, pixels.shape[-2] - size[0])
        voxels = functional.pad(voxels, padding, "replicate")
        fine = self.down1(torch.cat([pixels, voxels], 1))
        coarse = self.down2(fine)
        up = functional.interpolate(self.middle(coarse), scale_factor=2.0)
        up = functional.interpolate(self.up2(torch.cat([up, coarse], 1)), scale_factor=2.0)
        change = self.last(self.up1(torch.cat([up, fine], 1)))
        restored = images + functional.pixel_shuffle(change, self.factor)[..., :height, :width]
        return rearrange(restored, "(b t) c h w -> b t c h w", t=frames)


@dataclass(frozen=True)
class Budget:
    """How long to train: steps, or seconds of computing."""

    seconds: float | None = None
    steps: int | None = None

    def used(self, training: "Training") -> float:
        """Return the part that is used up; 1 is the end."""
        if self.steps is not None:
            return training.step / self.steps
        return training.compute_s / self.seconds


class Training:
    """A plain U-Net in training on the clips of a configuration.

    Attributes:
        step: Steps done.
        compute_s: What they cost: CPU seconds of this process, seconds where a GPU computes.
        loss: Charbonnier loss of the last step.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.device, self.dataset = choose_device(cfg.DEVICE), build_train_dataset(cfg)
        clips = clips_of(cfg) if len(self.dataset.spike_crop_sizes) == 1 else 1
        self.cfg.TRAIN.BATCH_SIZE, self.cfg.TRAIN.GRADIENT_ACCUMULATION_STEPS = clips, 1
        torch.manual_seed(cfg.SEED)
        ratios = [r.frame_size[0] / r.spike_size[0] for r in self.dataset.recordings]
        self.factor = max(1, round(max(ratios)))
        self.model = PlainUNet(cfg.DATA.K, self.factor).to(self.device)
        kind = Muon if cfg.TRAIN.OPTIM.NAME == "muon" else torch.optim.AdamW
        self.optimizer = kind(self.model.parameters(), LR, (0.9, 0.99), weight_decay=1e-4)
        self.step, self.compute_s, self.loss = 0, 0.0, math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming and `load_trained` need."""
        parts = {"model": self.model, "optimizer": self.optimizer}
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            **{"bins": self.cfg.DATA.K, "factor": self.factor, "device": str(self.device)},
            **{name: part.state_dict() for name, part in parts.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.compute_s, self.loss = (state[name] for name in COUNTERS)

    def run(self, budget: Budget, on_step: Callable[[], bool] = lambda: True) -> None:
        """Train until the budget is used up, or `on_step`, called after each step, is false."""
        data, last = self.cfg.DATA, budget.steps or ENDLESS
        window = {"start_step": self.step, "num_steps": last - self.step}
        batches = iter(build_train_loader(self.cfg, self.dataset, rank=0, world_size=1, **window))
        transfer = BatchTransfer(
            self.device, self.dataset.norm, (data.CLIP_LEN, data.CROP_SIZE, data.K)
        )
        clock = time.process_time if self.device.type == "cpu" else time.perf_counter
        began = clock()
        while (used := budget.used(self)) < 1:
            rate = LR_END + (LR - LR_END) * (1 + math.cos(math.pi * used)) / 2
            rate *= min(1.0, (self.step + 1) / WARMUP_STEPS)
            self.optimizer.param_groups[0]["lr"] = rate
            batch = transfer(next(batches))
            if batch.weight:  # else none of its clips could be read
                loss = charbonnier(self.model(batch.blurry, batch.voxels), batch.sharp)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
                self.optimizer.step()
                self.loss = loss.item()  # waits for a GPU
            self.step, now = self.step + 1, clock()
            self.compute_s, began = self.compute_s + now - began, now
            if not on_step():
                return


def train_beside(cfg: CfgNode, budget: Budget, stop: StopSignals) -> None:
    """Train the U-Net of a run, or resume it, and store it; do nothing where it is there."""
    path, inputs = weights_path(cfg), inputs_of(cfg, budget)
    state = _read(path)
    if state is not None and state["inputs"] != inputs:
        print(f"{path} was trained on other inputs or for another time: it is trained again")
        state = None
    if state is not None and state["is_finished"]:
        print(f"{path}: trained already, {state['step']} steps in {state['compute_s']:.0f} s")
        return
    training = Training(cfg)
    if state is not None:
        training.load_state_dict(state)
        print(f"resumed at step {training.step} from {path}")

    def save() -> None:
        used = budget.used(training)
        with atomic_write(path) as partial:
            facts = {"inputs": inputs, "is_finished": used >= 1}
            torch.save(facts | training.state_dict(), partial)
        print(
            f"plain U-Net step {training.step}, {min(used, 1):.0%}: {training.compute_s:.0f} s, "
            f"loss {training.loss:.5f}",
            flush=True,
        )

    saved = time.monotonic()
    bar = tqdm(total=100, unit="%", desc="plain U-Net", disable=not sys.stderr.isatty())

    def on_step() -> bool:
        nonlocal saved
        bar.update(min(100, round(100 * budget.used(training), 1)) - bar.n)
        if time.monotonic() - saved > SAVE_SECONDS:
            save()
            saved = time.monotonic()
        return not stop.number

    with bar:
        training.run(budget, on_step)
    save()


def clips_of(cfg: CfgNode) -> int:
    """Return the clips of a step, those of the run if it has more."""
    return max(CLIPS, cfg.TRAIN.BATCH_SIZE)


def inputs_of(cfg: CfgNode, budget: Budget = Budget()) -> dict[str, Any]:
    """Return what decides the weights; equal inputs need no second training."""
    keys = ("TRAIN_SPLIT", "CLIP_LEN", "CROP_SIZE", "K", "NORM", "GAIN", "AUGMENT")
    keys += ("BIN_NORMALIZE", "MATCH_LIGHT", "CENTER_SHARP")
    settings = "; ".join(f"{key} {cfg.DATA[key]}" for key in keys)
    data = describe_root(cfg.DATA.ROOT) or str(cfg.DATA.ROOT)
    # Files without these two had two clips and AdamW.
    others = {} if clips_of(cfg) == CLIPS else {"clips": clips_of(cfg)}
    if cfg.TRAIN.OPTIM.NAME != "adamw":
        others["optimizer"] = cfg.TRAIN.OPTIM.NAME
    return {
        "version": VERSION,
        "seed": cfg.SEED,
        "data": data,
        "settings": settings,
        **others,
        **vars(budget),
    }


def load_trained(cfg: CfgNode) -> OtherNetwork | None:
    """Return the finished U-Net beside a run; None where none has its data and settings."""
    path = weights_path(cfg)
    state = _read(path)
    if state is None or not state["is_finished"]:
        return None
    if {**state["inputs"], **vars(Budget())} != inputs_of(cfg):  # whatever time it had
        return None
    model = PlainUNet(state["bins"], state["factor"])
    model.load_state_dict(state["model"])
    record = {key: state[key] for key in (*COUNTERS, "device", "inputs")}
    return OtherNetwork(model, {"file": str(path), "sha256": sha256_of(path), **record})


def weights_path(cfg: CfgNode) -> Path:
    """Return where the U-Net of a run lies."""
    return RunDirectory.of(cfg).checkpoints / "plain_unet.pth"


def seconds_of(cfg: CfgNode) -> float:
    """Return the seconds of computing of a run.

    Raises:
        OSError, ValueError: It has not been trained, or by a version that did not count them.
    """
    path = RunDirectory.of(cfg).checkpoints / "last.pth"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; train the run first, or give --seconds")
    progress = load_checkpoint(path)["progress"]
    if not progress.get("compute_s"):
        raise ValueError(f"{path} does not hold what the run cost; give --seconds")
    return progress["compute_s"]


def _read(path: Path) -> dict[str, Any] | None:
    return read_torch_file(path, "a plain U-Net") if path.exists() else None


def main() -> int:
    """Train the U-Net of a run; return the exit status."""
    args, stop = parse_arguments(), StopSignals()
    stop.listen()
    try:
        cfg = load_config(args.config, args.overrides)
        budget = Budget(args.seconds, args.steps)
        if min(value for value in (args.seconds, args.steps, 1) if value is not None) <= 0:
            raise ValueError("--seconds and --steps must be above 0")
        if budget == Budget():
            budget = Budget(seconds_of(cfg))
        train_beside(cfg, budget, stop)
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return exit_code(stop.number)


if __name__ == "__main__":
    sys.exit(main())
