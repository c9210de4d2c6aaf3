"""Validation during training: full frames by tiles, scores to a file, pictures now and then."""

import json
import logging
import sys

import numpy as np
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from src.data.recordings import Recording
from src.engine.distributed import Ranks
from src.engine.run_directory import RunDirectory, git_commit
from src.engine.run_log import Scalars
from src.engine.signals import StoppedError, StopSignals
from src.inference.build import build_lpips, build_restorer
from src.inference.data_identity import describe_root
from src.inference.evaluate import evaluate_recordings
from src.inference.pictures import Column, write_strip
from src.metrics.report import FrameScores, Report, merge_reports
from src.paths import atomic_write

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
        self, model: nn.Module, step: int, scalars: Scalars, *, is_last: bool
    ) -> float | None:
        """Score the model; return the mean PSNR in dB on every rank.

        None where a rank was asked to stop: it leaves between two tiles, the others when they
        come to the end of their share.

        The main rank writes `outputs/metrics/val_<exp>_<step>.json`, the scalars, and at every
        TRAIN.VISUAL_EVERY steps and at the end the pictures.
        """
        mine = self.recordings[self.ranks.rank :: self.ranks.world_size]
        restorer = build_restorer(self.cfg, model, self.ranks.device)
        restorer.before_tile = self.stop.raise_if_asked
        pictures = _Pictures(
            self.run, step, enabled=self.ranks.is_main and (is_last or self._is_picture_due(step))
        )
        with self._progress_bar(mine) as bar:

            def on_frame(
                recording: Recording, i: int, image: np.ndarray, scores: FrameScores
            ) -> None:
                bar.update()
                pictures.take(recording, i, image, scores)

            try:
                report = evaluate_recordings(
                    restorer,
                    mine,
                    score_blurry=True,
                    lpips=self.lpips,
                    on_frame=on_frame,
                    notes=self.notes,
                )
            except StoppedError:
                report = None
        reports = self.ranks.gather(report)
        if None in reports:
            return None
        merged = merge_reports(reports)
        if self.ranks.is_main:
            self._write(merged, step, scalars)
        pictures.add_to(scalars)
        return merged.means["psnr_rgb"]

    def _is_picture_due(self, step: int) -> bool:
        """Whether this validation is the first since a multiple of the interval."""
        train = self.cfg.TRAIN
        return step % train.VISUAL_EVERY < train.VAL_EVERY

    def _write(self, report: Report, step: int, scalars: Scalars) -> None:
        path = self.run.metrics / f"val_{self.run.name}_{step:07d}.json"
        data = describe_root(self.cfg.DATA.ROOT)
        content = {"step": step, "commit": git_commit(), "data": data, **report.to_json()}
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
        means, blurry = report.means, report.blurry_means
        scalars.add(step, {f"val/{name}": value for name, value in means.items()})
        logger.info(
            "%s validation at step %d: PSNR %.2f dB, SSIM %.4f (blurry input %.2f dB, %.4f)",
            *(self.run.name, step, means["psnr_rgb"], means["ssim_rgb"]),
            *(blurry["psnr_rgb"], blurry["ssim_rgb"]),
        )

    def _progress_bar(self, recordings: list[Recording]) -> tqdm:
        return tqdm(
            total=sum(len(recording) for recording in recordings),
            desc="validation",
            unit="frame",
            leave=False,
            disable=not (self.ranks.is_main and sys.stderr.isatty()),
        )


class _Pictures:
    """Strips blur | recon | sharp of the middle frame of the main rank's first recordings."""

    def __init__(self, run: RunDirectory, step: int, *, enabled: bool) -> None:
        self.folder, self.step = run.visuals / f"step_{step:07d}", step
        self.left = PICTURES_PER_VALIDATION if enabled else 0
        self.strips: dict[str, np.ndarray] = {}

    def take(self, recording: Recording, i: int, image: np.ndarray, scores: FrameScores) -> None:
        """Write the strip if this is the frame that stands for its recording."""
        if self.left == 0 or i != len(recording) // 2:
            return
        self.left -= 1
        columns = [
            Column("blur", recording.read_blurry(i), scores.blurry_scores),
            Column("recon", image, scores.scores),
            Column("sharp", recording.read_sharp(i)),
        ]
        name = f"{recording.name}_{recording.frames[i].name}"
        self.strips[name] = write_strip(self.folder / f"{name}.png", columns)

    def add_to(self, scalars: Scalars) -> None:
        """Show the strips in TensorBoard."""
        for name, strip in self.strips.items():
            scalars.add_image(self.step, f"val/{name}", strip)
