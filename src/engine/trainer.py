"""Training: fetch, step, log, validate, save, until the schedule ends."""

import logging
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from src.config import config_to_text
from src.data.build import build_train_dataset, build_train_loader, build_val_recordings
from src.engine.alignment_watch import AlignmentWatch
from src.engine.averaging import WeightAverage
from src.engine.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    resume_conflicts,
    save_checkpoint,
)
from src.engine.distributed import Ranks, wrap_model
from src.engine.interval_log import IntervalLog
from src.engine.parameter_groups import GradientRules, build_optimizer, freeze, read_rules
from src.engine.precision import choose_precision
from src.engine.progress import DroppedClips, Progress, Stopwatch, count_steps
from src.engine.run_directory import RunDirectory
from src.engine.run_log import Scalars
from src.engine.schedule import build_schedule
from src.engine.training_step import BatchPlacer, StepDraws, TrainingStep
from src.engine.validation import Validation
from src.losses.build import build_loss
from src.models.build import build_model, read_vrt_arguments
from src.paths import resolve

MAX_SKIPPED_IN_A_ROW = 10
logger = logging.getLogger(__name__)
Batch = dict[str, Any]


class Trainer:
    """One run on one rank.

    Attributes:
        progress: How far it has come.
        total_steps: Optimiser steps of the whole schedule.
        clips_per_step: Clips of all ranks in one optimiser step.
    """

    def __init__(self, cfg: CfgNode, ranks: Ranks, run: RunDirectory) -> None:
        self.cfg, self.ranks, self.run = cfg, ranks, run
        self.progress, self.clock = Progress(), Stopwatch()
        self.dataset = build_train_dataset(cfg)
        train = cfg.TRAIN
        self.clips_per_step = (
            train.BATCH_SIZE * train.GRADIENT_ACCUMULATION_STEPS * ranks.world_size
        )
        self.total_steps = count_steps(
            train.MAX_STEPS, train.EPOCHS, len(self.dataset), self.clips_per_step
        )
        torch.manual_seed(cfg.SEED)  # the same initial weights on every rank
        self.vrt_arguments = read_vrt_arguments(cfg.MODEL.VRT_CFG)
        self.model = build_model(cfg, vrt_arguments=self.vrt_arguments)
        freeze(self.model, train.FREEZE)
        self.rules = read_rules(cfg)
        self.precision = choose_precision(train.AMP, ranks.device)
        self.train_step = self._build_step(wrap_model(self.model, ranks))
        self.average = WeightAverage(self.model, train.EMA_DECAY) if train.EMA_DECAY else None
        recordings = build_val_recordings(cfg)
        self.validation = Validation(cfg, ranks, run, recordings)
        self.dropped = DroppedClips(
            cfg.DATA.MAX_BAD_FRACTION,
            at_least=len(self.dataset) // ranks.world_size,
            batch_size=train.BATCH_SIZE,
        )
        self._skipped_in_a_row = 0
        self.alignment = AlignmentWatch(self.model)
        self.interval = IntervalLog(run.name, ranks.device, self.train_step.phases)

    def _build_step(self, wrapped: nn.Module) -> TrainingStep:
        data, train, device = self.cfg.DATA, self.cfg.TRAIN, self.ranks.device
        shape = (data.CLIP_LEN, data.CROP_SIZE, data.K)
        optimizer = build_optimizer(self.model, self.cfg)
        schedule = build_schedule(optimizer, self.cfg, self.total_steps)
        return TrainingStep(
            wrapped,
            build_loss(self.cfg).to(device),
            optimizer,
            schedule,
            self.precision,
            BatchPlacer(device, self.dataset.norm, shape),
            GradientRules(train.GRAD_CLIP, self.rules),
            StepDraws(self.cfg.SEED, self.ranks.rank, self.ranks.world_size),
        )

    def fit(self) -> None:
        """Train from the current step to the last one."""
        if self.progress.step >= self.total_steps:
            logger.info("finished already: step %d of %d", self.progress.step, self.total_steps)
            return
        self.describe()
        scalars = Scalars(
            self.run.events,
            enabled=self.cfg.LOG.TENSORBOARD and self.ranks.is_main,
            first_step=self.progress.step,
        )
        try:
            self._run_steps(scalars)
        finally:
            scalars.close()

    def _run_steps(self, scalars: Scalars) -> None:
        self.interval.pace.start()
        with self._progress_bar() as bar:
            for batches in self.batches():
                self.interval.add(self.step(batches), self.clock.take("data"))
                bar.update()
                if self._is_due("LOG_EVERY"):
                    self._log(scalars)
                if self._is_due("VAL_EVERY"):
                    self.validate(scalars)
                if self._is_due("SAVE_EVERY"):
                    self.save("last.pth")

    def batches(self) -> Iterator[list[Batch]]:
        """Yield the collated micro-batches of one optimiser step at a time."""
        train = self.cfg.TRAIN
        loader = build_train_loader(
            self.cfg,
            self.dataset,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            start_step=self.progress.step,
            num_steps=self.total_steps - self.progress.step,
        )
        incoming = iter(loader)
        while self.progress.step < self.total_steps:
            with self.clock.measure("data"):
                group = [next(incoming) for _ in range(train.GRADIENT_ACCUMULATION_STEPS)]
            self.dropped.count(group)
            yield group

    def step(self, batches: list[Batch]) -> Any:
        """Do one optimiser step and count it; return its `StepOutcome`.

        Raises:
            FloatingPointError: Too many steps in a row had gradients that are not finite.
        """
        is_observed = self._is_due("LOG_EVERY", self.progress.step + 1)
        with self.alignment.observing() if is_observed else nullcontext():
            outcome = self.train_step(batches, self.progress.step)
        self.progress.step += 1
        self._skipped_in_a_row = 0 if outcome.is_finite else self._skipped_in_a_row + 1
        if outcome.is_finite:
            if self.average is not None:
                self.average.update(self.model)
            return outcome
        self.progress.skipped_steps += 1
        step, clips = self.progress.step, ", ".join(outcome.names)
        logger.warning("step %d skipped, its gradients are not finite; clips %s", step, clips)
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row had gradients that are not finite, the "
                f"last one step {step} with clips {clips}; lower TRAIN.OPTIM.LR, or set TRAIN.AMP "
                "fp32 to see whether the number format is the cause"
            )
        return outcome

    def validate(self, scalars: Scalars) -> None:
        """Restore the validation sequences; write scores and pictures; keep the best weights."""
        with self.interval.pace.validation():
            is_last = self.progress.step == self.total_steps
            psnr = self.validation(
                self.evaluated_model, self.progress.step, scalars, is_last=is_last
            )
        scalars.add(
            self.progress.step, {"time/validation_s": self.interval.pace.validation_seconds}
        )
        best = self.progress.best_psnr
        if best is None or psnr > best:
            self.progress.best_psnr, self.progress.best_step = psnr, self.progress.step
            self.save("best.pth")

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated and tested: the averaged one where TRAIN.EMA_DECAY is set."""
        return self.model if self.average is None else self.average.model

    def save(self, name: str) -> None:
        """Write a checkpoint on the main rank."""
        if self.ranks.is_main:
            save_checkpoint(self.run.checkpoints / name, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes during the run; `checkpoints.py` describes it."""
        averaged = {} if self.average is None else {"ema": self.average.state_dict()}
        return {
            "model": self.model.state_dict(),
            **averaged,
            "optimizer": self.train_step.optimizer.state_dict(),
            "scaler": self.train_step.scaler.state_dict(),
            "schedule": self.train_step.schedule.state_dict(),
            "progress": asdict(self.progress),
            "config": config_to_text(self.cfg),
            "vrt": yaml.safe_dump(self.vrt_arguments, sort_keys=False),
            "clips_per_step": self.clips_per_step,
            "precision": self.precision.name,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the run where `state` left it.

        Raises:
            ValueError: The configuration would make it another run; the keys are named.
        """
        own = self.state_dict()
        conflicts = resume_conflicts(state, own)
        if conflicts:
            raise ValueError(
                f"run {self.run.name} cannot go on with a changed configuration:\n  "
                + "\n  ".join(conflicts)
                + "\nput the values back, choose another EXP_NAME, or start over: --resume never"
            )
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        self.train_step.optimizer.load_state_dict(state["optimizer"])
        self.train_step.scaler.load_state_dict(state["scaler"])
        self.train_step.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])

    def resume(self, choice: str) -> None:
        """Go on from where `choice` says: `auto` (this run's checkpoint), `never`, or a path."""
        if choice == "never":
            if self.ranks.is_main:
                self.run.set_aside()
            self.ranks.wait()
            return
        if choice == "auto":
            found = find_checkpoint(self.run.checkpoints)
            if found is None:
                return
            path, state = found
        else:
            path = Path(choice) if Path(choice).exists() else resolve(choice)
            state = load_checkpoint(path)
        self.load_state_dict(state)
        logger.info("resumed at step %d from %s", self.progress.step, path)
        if choice != "auto":
            # What this run had goes aside; otherwise the next `auto` might go on from there.
            if self.ranks.is_main:
                self.run.set_aside()
            self.ranks.wait()
        if path.name != "last.pth" or choice != "auto":
            self.save("last.pth")  # for `auto`: a kill came between best.pth and last.pth

    def describe(self) -> None:
        """Log the numbers that follow from the configuration before work starts."""
        train = self.cfg.TRAIN
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        logger.info(
            "%s: %.2f M trained parameters, %s on %s, steps %d to %d",
            *(self.run.name, trained / 1e6, self.precision.name, self.ranks.device),
            *(self.progress.step, self.total_steps),
        )
        logger.info(
            "%s: %d clips a step (%d rank(s) x %d x %d accumulated) out of %d training clips",
            *(self.run.name, self.clips_per_step, self.ranks.world_size, train.BATCH_SIZE),
            *(train.GRADIENT_ACCUMULATION_STEPS, len(self.dataset)),
        )
        for rule in self.rules:
            logger.info("%s: %s is %s", self.run.name, rule.part, rule.describe())

    def _is_due(self, interval: str, step: int | None = None) -> bool:
        step = self.progress.step if step is None else step
        return step % self.cfg.TRAIN[interval] == 0 or step == self.total_steps

    def _log(self, scalars: Scalars) -> None:
        self.interval.write(
            self.progress.step,
            self.total_steps,
            self.cfg.TRAIN.VAL_EVERY,
            scalars,
            self.alignment.reaches(),
        )

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.total_steps,
            initial=self.progress.step,
            desc=self.run.name,
            unit="step",
            dynamic_ncols=True,
            disable=not (self.ranks.is_main and sys.stderr.isatty()),
        )
