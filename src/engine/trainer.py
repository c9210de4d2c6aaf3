"""Training: fetch, step, log, save, validate, until the schedule ends."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext

import torch
import yaml
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from src.data.build import (
    WatchedDataset,
    build_train_dataset,
    build_train_loader,
    build_val_recordings,
    run_watched,
)
from src.data.normalization import Normalization
from src.engine.alignment_watch import AlignmentWatch
from src.engine.checkpoint import BEST, LAST, Checkpoints, identity_of
from src.engine.log import Scalars, StepLog, open_trackers, profiled
from src.engine.optim import WeightAverage, build_optimizer, build_schedule, freeze, read_rules
from src.engine.processes import Ranks, choose_precision, reporting_nondeterminism, wrap_model
from src.engine.progress import Batch, DroppedClips, Progress, SkippedSteps, StepOutcome
from src.engine.signals import StoppedError, ignore_first_stop
from src.engine.stall import AFTER_VALIDATION
from src.engine.step import BatchTransfer, TrainingStep
from src.engine.validation import Validation
from src.losses.build import build_loss
from src.models.build import build_model, read_vrt_arguments
from src.models.compiled import compile_and_time
from src.run_directory import RunDirectory

logger = logging.getLogger(__name__)


class Trainer:
    """One run on one rank: `resume` and `fit`."""

    def __init__(self, cfg: CfgNode, ranks: Ranks, run: RunDirectory) -> None:
        self.cfg, self.ranks, self.run = cfg, ranks, run
        self.stopped_by = 0  # the signal that ended the run early, on any rank
        train, self.progress = cfg.TRAIN, Progress()
        self.dataset = build_train_dataset(cfg)
        self.clips = WatchedDataset(self.dataset, train.NUM_WORKERS)
        of_rank = train.BATCH_SIZE * train.GRADIENT_ACCUMULATION_STEPS
        self.clips_per_step, num_clips = of_rank * ranks.world_size, len(self.dataset)
        self.total_steps = count_steps(
            train.MAX_STEPS, train.EPOCHS, num_clips, self.clips_per_step
        )
        torch.manual_seed(cfg.SEED)  # the same initial weights on every rank
        vrt_arguments = read_vrt_arguments(cfg.MODEL.VRT_CFG)
        self.model = build_model(cfg, vrt_arguments=vrt_arguments)
        freeze(self.model, train.FREEZE)
        wrapped = wrap_model(self.model, ranks)
        self.train_step = build_step(cfg, wrapped, ranks, self.dataset.norm, self.total_steps)
        self.average = WeightAverage(self.model, train.EMA_DECAY) if train.EMA_DECAY else None
        self.evaluated_model: nn.Module = self.average.model if self.average else self.model
        self.checkpoints = Checkpoints(
            run,
            ranks,
            {  # all that changes while the run trains
                "model": self.model,
                **({"ema": self.average} if self.average else {}),
                "optimizer": self.train_step.optimizer,
                "scaler": self.train_step.scaler,
                "schedule": self.train_step.schedule,
                "progress": self.progress,
            },
            identity_of(cfg, vrt_arguments, self.clips_per_step, self.train_step.precision.name),
        )
        self.resume = self.checkpoints.resume
        self.skipped = SkippedSteps(run, ranks, self.progress, self.train_step.scaler)
        self.dropped = DroppedClips(
            cfg.DATA.MAX_BAD_FRACTION,
            at_least=len(self.dataset) // ranks.world_size,
            batch_size=train.BATCH_SIZE,
            progress=self.progress,
        )
        self.validation = Validation(cfg, ranks, run, build_val_recordings(cfg))
        self.alignment = AlignmentWatch(self.model)
        self.clock = self.train_step.clock
        self.log = StepLog(run.name, self.clock)

    def fit(self) -> int:
        """Train from the current step to the last one; return the signal that ended it, or 0."""
        step, progress = self.progress.step, self.progress
        if self._is_unfinished():
            self.describe()
            self.compile()
            scalars = self._open_scalars()
            try:
                with reporting_nondeterminism(self.run.add_nondeterministic):
                    run_watched(self.clips, lambda: self._train(scalars))
            finally:
                scalars.close()
        else:
            logger.info("finished already: step %d of %d", step, self.total_steps)
        if not self._is_unfinished():
            best = f"best.pth (step {progress.best_step}, {progress.best_psnr or 0:.2f} dB) and "
            logger.info(
                "finished: %s has %slast.pth; raise TRAIN.MAX_STEPS to train longer",
                *(self.run.checkpoints, "" if progress.best_psnr is None else best),
            )
        return self.stopped_by

    def compile(self) -> None:
        """Compile parts of the model, and of the average that is validated, if TRAIN.COMPILE."""
        if self.cfg.TRAIN.COMPILE:
            models = [self.model, *([self.average.model] if self.average else [])]
            compile_and_time(models, self.train_step.rehearse, "TRAIN.COMPILE")

    def _open_scalars(self) -> Scalars:
        """Open what this rank writes scalars to."""
        if not self.ranks.is_main:
            return Scalars(None)
        log, folder = self.cfg.LOG, self.run.events
        folder.mkdir(parents=True, exist_ok=True)
        trackers = open_trackers(log, self.run.name, folder, yaml.safe_load(self.cfg.dump()))
        options = {"tensorboard": log.TENSORBOARD, "trackers": trackers}
        return Scalars(folder, first_step=self.progress.step, **options)

    def _train(self, scalars: Scalars) -> None:
        """The loop."""
        self.clock.start()
        if self._is_validation_pending():
            self.validate(scalars)  # the run ended between saving and validating
        profiled_steps = self.cfg.TRAIN.PROFILE_STEPS if self.ranks.is_main else 0
        with self._progress_bar() as bar, profiled(self.run.events, profiled_steps) as profile:
            for batches in self.batches():
                self.log.add(self.step(batches))
                profile()
                self.progress.compute_s += self.clock.compute_s * self.ranks.world_size
                bar.update()
                if self._is_due("LOG_EVERY"):
                    self._write_log(scalars)
                if self._is_save_due():
                    self.save(LAST)
                if self._is_due("VAL_EVERY"):
                    self.validate(scalars)
        if self._is_unfinished() and not self.stopped_by:
            self.must_stop()  # the signal came in the last validation

    def batches(self) -> Iterator[list[Batch]]:
        """Yield the collated micro-batches of one optimiser step at a time."""
        loader = build_train_loader(
            self.cfg,
            self.clips,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            start_step=self.progress.step,
            num_steps=self.total_steps - self.progress.step,
            setup_worker=ignore_first_stop,
        )
        incoming = iter(loader)
        while self.progress.step < self.total_steps and not self.must_stop():
            self.ranks.at("loading data", self.progress.step)
            with self.clock.measure("data"):
                count = self.cfg.TRAIN.GRADIENT_ACCUMULATION_STEPS
                group = [next(incoming) for _ in range(count)]
            self.dropped.count(group)
            yield group

    def step(self, batches: list[Batch]) -> StepOutcome:
        """Do one optimiser step and count it."""
        self.ranks.at("computing a step", self.progress.step)
        is_observed = self._is_due("LOG_EVERY", self.progress.step + 1)
        with self.alignment.observing() if is_observed else nullcontext():
            outcome = self.train_step(batches, self.progress.step)
        self.progress.step += 1
        self.ranks.at("logging", self.progress.step)
        self.skipped.judge(outcome)
        if outcome.is_finite and self.average is not None:
            self.average.update(self.model)
        return outcome

    def save(self, name: str, stage: str = "saving") -> bool:
        """Write a checkpoint; at the end of the run it has to succeed."""
        self.ranks.at(stage, self.progress.step)
        return self.checkpoints.save(name, must_succeed=self.progress.step >= self.total_steps)

    def validate(self, scalars: Scalars) -> None:
        """Restore the validation sequences; write scores and pictures; keep the best weights.

        Raises:
            StoppedError: A signal came and other ranks do not leave; the run is saved.
        """
        step = self.progress.step
        try:
            with self.clock.validation():
                psnr = self.validation(
                    self.evaluated_model,
                    step,
                    scalars,
                    is_last=step == self.total_steps,
                    seconds_per_step=self.clock.step_s,
                )
        except StoppedError as error:
            self._save_stopped(f"a signal ({error})")
            raise
        if psnr is None:
            logger.info(
                "%s: validation at step %d stopped; it is repeated on resume", self.run.name, step
            )
            return
        scalars.add(step, {"time/validation_s": self.clock.validation_s})
        if self.progress.is_best(psnr):
            self.keep_best(psnr)
        self.progress.validated_step = step
        if self.checkpoints.step_of_last == step:
            self.save(LAST, AFTER_VALIDATION)  # with the score

    def keep_best(self, psnr: float) -> None:
        """Write best.pth; if that fails every rank keeps the earlier best score."""
        before = self.progress.best_psnr, self.progress.best_step
        self.progress.best_psnr, self.progress.best_step = psnr, self.progress.step
        is_lost = not self.save(BEST, AFTER_VALIDATION)
        self.ranks.at("agreeing on the best score", self.progress.step)
        if self.ranks.largest(int(is_lost)):
            self.progress.best_psnr, self.progress.best_step = before

    def must_stop(self) -> bool:
        """Whether a rank was asked to stop: then every rank stops here, and the run is saved."""
        self.ranks.at("between two steps", self.progress.step)
        self.stopped_by = self.ranks.largest(self.ranks.stop.number)
        if self.stopped_by:
            self._save_stopped(signal.Signals(self.stopped_by).name)
        return bool(self.stopped_by)

    def _save_stopped(self, reason: str) -> None:
        """Save a run that ends early; the ranks need not do this together."""
        if self.progress.step and self.checkpoints.step_of_last != self.progress.step:
            self.checkpoints.save(LAST, must_succeed=True)
        logger.info(
            "%s: stopped by %s at step %d of %d, the same command resumes",
            *(self.run.name, reason, self.progress.step, self.total_steps),
        )

    def describe(self) -> None:
        """Log the numbers that follow from the configuration before training starts."""
        train, name = self.cfg.TRAIN, self.run.name
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        logger.info(
            "%s: %.2f M trained parameters, %s on %s, steps %d to %d",
            *(name, trained / 1e6, self.train_step.precision.name, self.ranks.device),
            *(self.progress.step, self.total_steps),
        )
        logger.info(
            "%s: %d clips a step (%d rank(s) x %d x %d accumulated) out of %d training clips",
            *(name, self.clips_per_step, self.ranks.world_size, train.BATCH_SIZE),
            *(train.GRADIENT_ACCUMULATION_STEPS, len(self.dataset)),
        )
        for rule in self.train_step.rules:
            logger.info(
                "%s: %s is frozen before step %d, then trained at %g x the learning rate",
                *(name, rule.part, rule.freeze_steps, rule.lr_multiplier),
            )

    def _is_due(self, interval: str, step: int | None = None) -> bool:
        step = self.progress.step if step is None else step
        return step % self.cfg.TRAIN[interval] == 0 or step == self.total_steps

    def _is_save_due(self) -> bool:
        """Steps after skipped ones are not saved: the fault may lie before them."""
        is_last = self.progress.step == self.total_steps
        return self._is_due("SAVE_EVERY") and (is_last or not self.progress.skipped_in_a_row)

    def _is_unfinished(self) -> bool:
        return self.progress.step < self.total_steps or self._is_validation_pending()

    def _is_validation_pending(self) -> bool:
        done, step = self.progress.validated_step, self.progress.step
        return done < step <= self.total_steps and self._is_due("VAL_EVERY")

    def _write_log(self, scalars: Scalars) -> None:
        step, val_every = self.progress.step, self.cfg.TRAIN.VAL_EVERY
        self.log.write(step, self.total_steps, val_every, scalars, self.alignment.reaches())

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.total_steps,
            initial=self.progress.step,
            desc=self.run.name,
            unit="step",
            dynamic_ncols=True,
            disable=not (self.ranks.is_main and sys.stderr.isatty()),
        )


def count_steps(max_steps: int, epochs: int, num_clips: int, clips_per_step: int) -> int:
    """Return the optimiser steps of a run: `max_steps`, or what `epochs` need if it is 0."""
    return max_steps or max(1, -(-epochs * num_clips // clips_per_step))


def build_step(
    cfg: CfgNode, model: nn.Module, ranks: Ranks, norm: Normalization, total_steps: int
) -> TrainingStep:
    """Return the optimiser step of a configuration over `model`, which is on the ranks' device."""
    data, train, device = cfg.DATA, cfg.TRAIN, ranks.device
    optimizer = build_optimizer(model, cfg)
    return TrainingStep(
        model,
        build_loss(cfg).to(device),
        optimizer,
        build_schedule(optimizer, cfg, total_steps),
        choose_precision(train.AMP, device),
        BatchTransfer(device, norm, (data.CLIP_LEN, data.CROP_SIZE, data.K)),
        ranks,
        seed=cfg.SEED,
        grad_clip=train.GRAD_CLIP,
        rules=read_rules(cfg),
        may_retry=train.OOM_RETRY,
    )
