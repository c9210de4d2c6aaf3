"""Validation during training: full frames by tiles, scores to a file, pictures now and then."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from src.data.description import describe_root
from src.data.frames import write_png
from src.data.recordings import Recording
from src.engine.log import Scalars
from src.engine.processes import SHARE_SECONDS, Ranks
from src.engine.signals import StoppedError
from src.engine.stall import AFTER_VALIDATION
from src.inference.restore import Restorer, build_lpips, build_restorer, evaluate, report_on
from src.inference.tiling import share_out
from src.metrics.psnr_ssim import score_text
from src.metrics.report import BLURRY, RESTORED, FrameScores, Report, merge_reports, notes_on_sizes
from src.paths import atomic_write
from src.pictures.panels import Panel, make_strip, scored
from src.run_directory import RunDirectory, git_commit

PICTURES_PER_VALIDATION = 4
PROGRESS_SECONDS = 60
Pictures = dict[tuple[str, str], dict[str, Panel]]  # by recording and frame: blur, recon, sharp
logger = logging.getLogger(__name__)


class Validation:
    """Restores the validation recordings, divided among the ranks, and reports their scores.

    Everything is computed in float32, so that `src/test.py` gives the same numbers.
    """

    def __init__(
        self, cfg: CfgNode, ranks: Ranks, run: RunDirectory, recordings: list[Recording]
    ) -> None:
        self.cfg, self.ranks, self.run, self.recordings = cfg, ranks, run, recordings
        self.lpips, self.notes = build_lpips(cfg, ranks.device)

    def __call__(
        self,
        model: nn.Module,
        step: int,
        scalars: Scalars,
        *,
        is_last: bool,
        seconds_per_step: float | None = None,
    ) -> float | None:
        """Score the model; return the mean PSNR in dB on every rank, None if one has to stop.

        The main rank writes scores and scalars, and pictures at the first validation after a
        multiple of TRAIN.VISUAL_EVERY and at the end.
        """
        self.ranks.at("validating", step)
        restorer = build_restorer(self.cfg, model, self.ranks.device)
        restorer.before_tile = self._before_tile
        has_pictures = is_last or step % self.cfg.TRAIN.VISUAL_EVERY < self.cfg.TRAIN.VAL_EVERY
        pictures: Pictures = {}
        report = self._evaluate(restorer, pictures if has_pictures else None)
        self.ranks.at("done with its share of the validation", step)
        self.ranks.meet(f"validation {step}", SHARE_SECONDS)
        gathered = self.ranks.gather((report, pictures))
        reports = [report for report, _ in gathered]
        if None in reports:
            return None
        merged = merge_reports(reports)
        merged.notes += notes_on_sizes(merged.frames, has_lpips=self.lpips is not None)
        self.ranks.at(AFTER_VALIDATION, step)
        if self.ranks.is_main:
            self._log(merged, step, scalars)
            with self._tolerating():
                self._write_scores(merged, step, seconds_per_step)
            for _, shown in gathered:
                with self._tolerating():
                    self._write_pictures(shown, step, scalars)
        return merged.means()["psnr_rgb"]

    def _evaluate(self, restorer: Restorer, pictures: Pictures | None) -> Report | None:
        """Return the scores of this rank's share, None if it was asked to stop.

        `pictures` receives the middle frame of some recordings.
        """
        counts = [restorer.num_clips(recording) for recording in self.recordings]
        shares = share_out(counts, self.ranks.rank, self.ranks.world_size)
        recordings = [self.recordings[number] for number, _ in shares]
        clips = [part for _, part in shares]
        shown = {recording.name for recording in self.recordings[:PICTURES_PER_VALIDATION]}
        num_frames = sum(map(restorer.num_frames, recordings, clips))
        bar = tqdm(
            total=num_frames,
            desc="validation",
            unit="frame",
            leave=False,
            disable=not (self.ranks.is_main and sys.stderr.isatty()),
        )
        rows: list[FrameScores] = []
        self._progress, self._logged = (rows, num_frames), time.monotonic()
        frames = evaluate(restorer, recordings, clips=clips, score_blurry=True, lpips=self.lpips)
        try:
            with bar:
                for recording, i, image, scores in frames:
                    rows.append(scores)
                    bar.update()
                    is_middle = i == len(recording) // 2
                    if pictures is not None and recording.name in shown and is_middle:
                        blurry, sharp = recording.read_blurry(i), recording.read_sharp(i)
                        pictures[recording.name, recording.frames[i].name] = {
                            "blur": scored("blur", blurry, scores.scores[BLURRY]),
                            "recon": scored("recon", image, scores.scores[RESTORED]),
                            "sharp": Panel("sharp", sharp),
                        }
        except StoppedError:
            return None
        return report_on(restorer, rows, self.notes)

    def _before_tile(self) -> None:
        self.ranks.part_done()
        self.ranks.stop.raise_if_asked()
        if self.ranks.is_main and time.monotonic() - self._logged > PROGRESS_SECONDS:
            self._logged = time.monotonic()
            rows, num_frames = self._progress
            logger.info("validation: %d of %d frames of this rank", len(rows), num_frames)

    def _write_pictures(self, pictures: Pictures, step: int, scalars: Scalars) -> None:
        """Write blur | recon | sharp as a strip of this step, and each by itself, the newest."""
        for (sequence, frame), columns in pictures.items():
            name, strip = f"{sequence}_{frame}", make_strip([*columns.values()])
            scalars.add_image(step, f"val/{name}", strip)
            write_png(self.run.visuals / f"step_{step:07d}" / f"{name}.png", strip)
            for kind, panel in columns.items():
                write_png(self.run.visuals / sequence / f"{frame}_{kind}.png", panel.image)

    def _log(self, report: Report, step: int, scalars: Scalars) -> None:
        means, blurry = report.means(), report.means(BLURRY)
        scalars.add(step, {f"val/{name}": value for name, value in means.items()})
        logger.info(
            "%s validation at step %d: PSNR %.2f dB, SSIM %s (blurry input %.2f dB, %s)",
            *(self.run.name, step, means["psnr_rgb"], score_text(means["ssim_rgb"], 4)),
            *(blurry["psnr_rgb"], score_text(blurry["ssim_rgb"], 4)),
        )

    @contextmanager
    def _tolerating(self) -> Iterator[None]:
        """Warn if a file could not be written, on a full disk for example, and continue."""
        try:
            yield
        except OSError as error:
            logger.warning(
                "%s: a file of the validation could not be written: %s; training continues",
                *(self.run.name, error),
            )

    def _write_scores(self, report: Report, step: int, seconds_per_step: float | None) -> None:
        content = {
            "step": step,
            "commit": git_commit(),
            "data": describe_root(self.cfg.DATA.ROOT),
            "seconds_per_step": seconds_per_step,
            **report.to_json(),
        }
        with atomic_write(self.run.scores(step)) as partial:
            partial.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
