"""Everything of a run that changes while it trains, and what makes it that run."""

from dataclasses import asdict, dataclass
from typing import Any

import yaml
from torch import nn
from yacs.config import CfgNode

from src.config import config_to_text
from src.data.description import description_to_text, read_description
from src.engine.averaging import WeightAverage
from src.engine.progress import Progress
from src.engine.resume_rules import resume_conflicts
from src.engine.schedule import set_rates
from src.engine.training_step import TrainingStep
from src.paths import resolve


@dataclass(frozen=True)
class RunState:
    """The parts of a run that a checkpoint holds; `checkpoints.py` describes its keys.

    Attributes:
        name: Of the run.
        model: Its weights, without a wrapper.
        average: The averaged weights, or None.
        train_step: Holds optimiser, scaler and schedule.
        progress: Counters; changed in place.
        identity: Texts and numbers that stay the same, see `identity_of`.
    """

    name: str
    model: nn.Module
    average: WeightAverage | None
    train_step: TrainingStep
    progress: Progress
    identity: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds; its tensors are those of the run, not copies."""
        averaged = {} if self.average is None else {"ema": self.average.state_dict()}
        return {
            "model": self.model.state_dict(),
            **averaged,
            "optimizer": self.train_step.optimizer.state_dict(),
            "scaler": self.train_step.scaler.state_dict(),
            "schedule": self.train_step.schedule.state_dict(),
            "progress": asdict(self.progress),
            **self.identity,
        }

    def checkpoint_bytes(self) -> int:
        """Return about how large a checkpoint gets: weights, their average, two moments each."""
        sizes = [t.numel() * t.element_size() for t in self.model.state_dict().values()]
        trained = [p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad]
        return sum(sizes) * (1 if self.average is None else 2) + 2 * sum(trained)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the run where `state` left it.

        Raises:
            ValueError: It would become another run; what differs is named.
        """
        current = {"model": self.model.state_dict(), **self.identity}
        conflicts = resume_conflicts(state, current)
        if conflicts:
            raise ValueError(
                f"run {self.name} cannot go on with a changed configuration:\n  "
                + "\n  ".join(conflicts)
                + "\nput the values back, choose another EXP_NAME, or start over: --resume never"
            )
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.train_step.optimizer.load_state_dict(state["optimizer"])
        self.train_step.scaler.load_state_dict(state["scaler"])
        self.train_step.schedule.load_state_dict(state["schedule"])
        set_rates(self.train_step.schedule)
        self.progress.put(state["progress"])


def identity_of(
    cfg: CfgNode, vrt_arguments: dict[str, Any], clips_per_step: int, precision: str
) -> dict[str, Any]:
    """Return what a checkpoint says about its run besides its state."""
    description = read_description(resolve(cfg.DATA.ROOT))
    return {
        "config": config_to_text(cfg),
        "vrt": yaml.safe_dump(vrt_arguments, sort_keys=False),
        "data": "" if description is None else description_to_text(description),
        "clips_per_step": clips_per_step,
        "precision": precision,
    }
