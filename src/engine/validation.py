"""Validation during training: full frames by tiles, scores to a file, pictures now and then."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from src.data.description import describe_root
from src.data.frames import write_png
from src.data.recordings import Recording
from src.engine.log import Scalars
from src.engine.processes import SHARE_SECONDS, Ranks
from src.engine.signals import StoppedError, StopSignals
from src.engine.stall import AFTER_VALIDATION
from src.inference.evaluate import build_lpips, evaluate_recordings
from src.inference.restore import Restorer, build_restorer
from src.inference.tiling import share_out
from src.metrics.report import FrameScores, Report, merge_reports
from src.paths import atomic_write
from src.pictures.strips import Column, make_strip
from src.run_directory import RunDirectory, git_commit

PICTURES_PER_VALIDATION = 4
logger = logging.getLogger(__name__)


class Validation:
    """Restores the validation recordings, shared out among the ranks, and reports their scores.

    Everything is computed in float32, so that `src/test.py` gives the same numbers.
    """

    def __init__(
        self,
        cfg: CfgNode,
        ranks: Ranks,
        run: RunDirectory,
        recordings: list[Recording],
        stop: StopSignals,
    ) -> None:
        self.cfg, self.ranks, self.run = cfg, ranks, run
        self.recordings, self.stop = recordings, stop
        self.lpips, self.notes = build_lpips(cfg, ranks.device)

    def __call__(
        self,
        model: nn.Module,
        step: int,
        scalars: Scalars,
        *,
        is_last: bool,
        pace: float | None = None,
    ) -> float | None:
        """Score the model; return the mean PSNR in dB on every rank.

        None where a rank was asked to stop: it leaves between two tiles, the others when they
        come to the end of their share.

        The main rank writes `outputs/metrics/val_<exp>_<step>.json`, the scalars, and at every
        TRAIN.VISUAL_EVERY steps and at the end the pictures. A failed write is a warning.

        Args:
            model: The weights to score.
            step: Optimiser steps done.
            scalars: Where numbers and pictures go.
            is_last: Whether the run ends here.
            pace: Seconds per step of the training, for the file.
        """
        self.ranks.at("validating", step)
        restorer = build_restorer(self.cfg, model, self.ranks.device)
        restorer.before_tile = self._before_tile
        is_shown = is_last or self._is_picture_due(step)
        strips: dict[str, np.ndarray] = {}
        report = self._evaluate(restorer, strips if is_shown else None)
        self.ranks.at("done with its share of the validation", step)
        self.ranks.meet(f"validation {step}", SHARE_SECONDS)
        gathered = self.ranks.gather((report, strips))
        reports = [report for report, _ in gathered]
        if None in reports:
            return None
        merged = merge_reports(reports)
        self.ranks.at(AFTER_VALIDATION, step)
        if self.ranks.is_main:
            self._log(merged, step, scalars)
            with self._tolerating():
                self._write(merged, step, pace)
            with self._tolerating():
                self._write_pictures([strips for _, strips in gathered], step, scalars)
        return merged.means["psnr_rgb"]

    def _evaluate(self, restorer: Restorer, strips: dict[str, np.ndarray] | None) -> Report | None:
        """Return the scores of this rank's share, None where it was asked to stop.

        Args:
            restorer: The model.
            strips: Where blur | recon | sharp of the middle frame of some recordings goes, by name.
        """
        counts = [restorer.num_clips(recording) for recording in self.recordings]
        shares = share_out(counts, self.ranks.rank, self.ranks.world_size)
        recordings = [self.recordings[number] for number, _ in shares]
        clips = [part for _, part in shares]
        shown = {recording.name for recording in self.recordings[:PICTURES_PER_VALIDATION]}
        bar = tqdm(
            total=sum(map(restorer.num_frames, recordings, clips)),
            desc="validation",
            unit="frame",
            leave=False,
            disable=not (self.ranks.is_main and sys.stderr.isatty()),
        )

        def on_frame(recording: Recording, i: int, image: np.ndarray, scores: FrameScores) -> None:
            bar.update()
            if strips is not None and recording.name in shown and i == len(recording) // 2:
                name = f"{recording.name}_{recording.frames[i].name}"
                strips[name] = _strip(recording, i, image, scores)

        with bar:
            try:
                return evaluate_recordings(
                    restorer,
                    recordings,
                    clips=clips,
                    score_blurry=True,
                    lpips=self.lpips,
                    on_frame=on_frame,
                    notes=self.notes,
                )
            except StoppedError:
                return None

    def _before_tile(self) -> None:
        self.ranks.part_done()
        self.stop.raise_if_asked()

    def _is_picture_due(self, step: int) -> bool:
        """Whether this validation is the first since a multiple of the interval."""
        train = self.cfg.TRAIN
        return step % train.VISUAL_EVERY < train.VAL_EVERY

    def _log(self, report: Report, step: int, scalars: Scalars) -> None:
        means, blurry = report.means, report.blurry_means
        scalars.add(step, {f"val/{name}": value for name, value in means.items()})
        logger.info(
            "%s validation at step %d: PSNR %.2f dB, SSIM %.4f (blurry input %.2f dB, %.4f)",
            *(self.run.name, step, means["psnr_rgb"], means["ssim_rgb"]),
            *(blurry["psnr_rgb"], blurry["ssim_rgb"]),
        )

    @contextmanager
    def _tolerating(self) -> Iterator[None]:
        """Warn where a file could not be written, on a full disk for example, and continue."""
        try:
            yield
        except OSError as error:
            logger.warning(
                "%s: a file of the validation could not be written: %s; training continues",
                *(self.run.name, error),
            )

    def _write(self, report: Report, step: int, pace: float | None) -> None:
        path = self.run.scores(step)
        content = {
            "step": step,
            "commit": git_commit(),
            "data": describe_root(self.cfg.DATA.ROOT),
            "seconds_per_step": pace,
            **report.to_json(),
        }
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")

    def _write_pictures(
        self, of_ranks: list[dict[str, np.ndarray]], step: int, scalars: Scalars
    ) -> None:
        for strips in of_ranks:
            for name, strip in strips.items():
                scalars.add_image(step, f"val/{name}", strip)
                write_png(self.run.visuals / f"step_{step:07d}" / f"{name}.png", strip)


def _strip(recording: Recording, i: int, image: np.ndarray, scores: FrameScores) -> np.ndarray:
    columns = [
        Column("blur", recording.read_blurry(i), scores.blurry_scores),
        Column("recon", image, scores.scores),
        Column("sharp", recording.read_sharp(i)),
    ]
    return make_strip(columns)
