"""Restores any number of frames of any size in bounded memory, and scores them.

Clips stream through time; inside a clip tiles cover the frame. Frames and spike counts travel to
the device tile by tile as small integers and are normalised there; results return to the CPU.
"""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from src.data.normalization import Normalization, normalization_from, normalize_counts, to_unit
from src.data.recordings import Recording
from src.inference.tiling import (
    TileSettings,
    blend_clips,
    blend_tiles,
    frames_of_clips,
    mirror_to,
    padded_size,
    plan_space,
    plan_time,
)
from src.metrics.lpips_metric import LpipsMetric, LpipsUnavailableError
from src.metrics.report import BLURRY, RESTORED, FrameScores, Report, score_frame
from src.paths import resolve

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)
Image = TypeVar("Image")
# A recording, the number of a frame, the restored image and its scores (None: not scored).
Evaluated = tuple[Recording, int, np.ndarray, FrameScores | None]


class NonFiniteOutputError(RuntimeError):
    """The network returned a NaN or an infinity; nothing may be scored or written."""


class TileMemoryError(RuntimeError):
    """Even the smallest tile does not fit into the device's memory."""


class Restorer:
    """A model with everything that is needed to run it on whole videos.

    The model is called as `model(rgb [1, t, 3, h, w], spikes [1, t, K, hs, ws])` with float32 on
    `device`, with None for the spikes without `use_spikes`. `autocast_dtype` is the number format
    of its blocks; None: float32, without TF32.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TileSettings,
        norm: Normalization,
        device: str | torch.device,
        autocast_dtype: torch.dtype | None = None,
        use_spikes: bool = True,
    ) -> None:
        self.model, self.norm, self.device = model, norm, torch.device(device)
        self.settings = self.first_settings = settings  # tiles shrink if memory runs out
        self.autocast_dtype, self.use_spikes = autocast_dtype, use_spikes
        self.seconds = 0.0  # in the model, transfers and blending so far, without reading files
        self.before_tile: Callable[[], None] = lambda: None  # what it raises ends the restoring

    def restore(
        self,
        recording: Recording,
        clips: range | None = None,
        convert: Callable[[torch.Tensor, str], Image] | None = None,
    ) -> Iterator[tuple[int, Image]]:
        """Yield (frame number, restored uint8 RGB [H, W, 3]) in order.

        `convert` turns a restored [3, H, W] and its name into something else. With `clips`, numbers
        of consecutive clips out of `num_clips`, only the frames that these complete come, as those
        of the whole video, so that processes can share it. At most the frames of two overlapping
        clips are held. The model is in eval mode while this runs.
        """
        if len(recording) == 0:
            return
        plan, indices = plan_time(len(recording), self.settings)
        window = _FrameWindow(recording, self.use_spikes, self.norm)
        with evaluating(self.model):
            frames = blend_clips(
                lambda clip: self._run_clip(window.read(clip)), plan, indices, clips
            )
            chosen = range(len(plan.starts)) if clips is None else clips
            for i in frames_of_clips(plan, len(recording), chosen):
                # No name for the frame: it may be a view that keeps a whole clip alive.
                yield i, (convert or to_uint8)(next(frames), f"frame {i}")

    def num_clips(self, recording: Recording) -> int:
        """Return into how many clips a video is cut in time."""
        return len(plan_time(len(recording), self.settings)[0].starts) if len(recording) else 0

    def num_frames(self, recording: Recording, clips: range) -> int:
        """Return how many frames consecutive clips of a video complete."""
        plan, _ = plan_time(len(recording), self.settings)
        return len(frames_of_clips(plan, len(recording), clips))

    def _run_clip(self, clip: "_Clip") -> torch.Tensor:
        """Return the result [t, 3, H, W] of one clip, in smaller tiles if memory runs out."""
        started = time.perf_counter()
        while True:
            try:
                result = self._run_tiles(clip)
                break
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).splitlines()[0]
            # Outside the handler: the error's traceback holds the tensors of the failed attempt.
            self._shrink_tiles(clip.rgb.shape[-2:], reason)
        self.seconds += time.perf_counter() - started
        return result

    def _shrink_tiles(self, size: tuple[int, int], reason: str) -> None:
        smaller = self.settings.halved(*size)
        if smaller is None:
            raise TileMemoryError(
                f"out of memory on {self.device} with tiles of {self.settings.size_px} px and "
                f"{self.settings.frames or 'all'} frames ({reason}); use fewer frames per tile "
                "(VAL.TILE_FRAMES), a smaller model, bf16, or a device with more memory"
            )
        logger.warning(
            "out of memory with %s on frames of %d x %d; trying again with %s",
            *(self.settings.describe(), *size, smaller.describe()),
        )
        self.settings = smaller
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run_tiles(self, clip: "_Clip") -> torch.Tensor:
        """Return the result [t, 3, H, W] in float32."""
        rgb, counts = clip.rgb, clip.counts
        height, width = rgb.shape[-2:]
        size, grids = padded_size((height, width), self.settings), ((1, 1), (1, 1))
        if counts is not None:
            grids = tuple(map(scene_grid, rgb.shape[-2:], counts.shape[-2:]))
            pairs = zip(size, grids, strict=True)
            spike_size = tuple(side // px * spike_px for side, (px, spike_px) in pairs)
            counts = mirror_to(counts, spike_size)
        rgb = mirror_to(rgb, size)
        rows, columns = plan_space(size, self.settings, grids=(grids[0][0], grids[1][0]))

        def run_tile(y: slice, x: slice) -> torch.Tensor:
            spikes = None
            if counts is not None:
                spikes = counts[..., on_spikes(y, grids[0]), on_spikes(x, grids[1])]
            return self._run_model(_Clip(rgb[..., y, x], spikes, clip.bin_ticks))

        return blend_tiles(run_tile, rows, columns)[..., :height, :width]

    def _run_model(self, tile: "_Clip") -> torch.Tensor:
        """Return [t, 3, h, w] float32 for one tile."""
        self.before_tile()
        with torch.inference_mode(), number_format(self.device.type, self.autocast_dtype):
            frames = tile.rgb.to(self.device)
            frames = frames.float() if frames.is_floating_point() else to_unit(frames)
            spikes = None
            if tile.counts is not None:
                counts = tile.counts.to(self.device)
                spikes = normalize_counts(counts, self.norm, tile.bin_ticks, frames)
            restored = self.model(frames, spikes)
            if restored.shape != frames.shape:
                raise ValueError(
                    f"the model returned {list(restored.shape)} for frames {list(frames.shape)}"
                )
        return restored[0].float()


def build_tile_settings(cfg: CfgNode) -> TileSettings:
    """Return how videos are cut, from the section `VAL`."""
    val = cfg.VAL
    overlap_frames = val.OVERLAP_FRAMES if val.TILE_FRAMES else 0
    overlap_px = val.OVERLAP_SIZE if val.TILE_SIZE else 0
    return TileSettings(val.TILE_FRAMES, val.TILE_SIZE, overlap_frames, overlap_px, val.BLEND)


def build_restorer(
    cfg: CfgNode,
    model: nn.Module,
    device: str | torch.device,
    autocast_dtype: torch.dtype | None = None,
    tiles: CfgNode | None = None,
) -> Restorer:
    """Return a restorer for a model of `cfg` that is on `device`; `tiles` brings another VAL."""
    settings, norm = build_tile_settings(tiles or cfg), normalization_from(cfg)
    return Restorer(model, settings, norm, device, autocast_dtype, use_spikes=cfg.MODEL.USE_SPIKE)


@dataclass(frozen=True)
class _Clip:
    """Some frames, or a tile of them, on the CPU; None is what the model does not need."""

    rgb: torch.Tensor  # [1, t, 3, H, W], uint8, or floats in 0..1
    counts: torch.Tensor | None  # [1, t, K, Hs, Ws]
    bin_ticks: torch.Tensor | None  # [1, t, K]


class _FrameWindow:
    """Reads the frames of one clip after the other; keeps only those that the clips share."""

    def __init__(self, recording: Recording, use_spikes: bool, norm: Normalization) -> None:
        self.recording, self.use_spikes = recording, use_spikes
        self.use_ticks = use_spikes and norm.bin_normalize
        self.bins = recording.centred_bins if norm.center_sharp else lambda i: slice(None)
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def read(self, frames: list[int]) -> _Clip:
        """Return the given frames as one clip."""
        self.kept = {i: self.kept[i] for i in self.kept if i in frames}
        for i in frames:
            if i not in self.kept:
                self.kept[i] = self._read_frame(i)
        counts = ticks = None
        if self.use_spikes:
            counts = torch.stack([self.kept[i][1] for i in frames])[None]
        if self.use_ticks:
            ticks = [self.recording.bin_ticks(i)[self.bins(i)] for i in frames]
            ticks = torch.from_numpy(np.stack(ticks))[None]
        return _Clip(torch.stack([self.kept[i][0] for i in frames])[None], counts, ticks)

    def _read_frame(self, i: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        rgb = torch.from_numpy(np.array(self.recording.read_blurry(i))).permute(2, 0, 1)
        counts = None
        if self.use_spikes:
            counts = torch.from_numpy(np.array(self.recording.read_counts(i)[self.bins(i)]))
        before = next(iter(self.kept.values()), (rgb, counts))
        for what, new, known in zip(("frame", "spike counts"), (rgb, counts), before, strict=True):
            if new is not None and new.shape != known.shape:
                raise ValueError(
                    f"{what} {i}: shape {list(new.shape)}, but {list(known.shape)} before it; "
                    "all frames of a video need one size"
                )
        return rgb, counts


def scene_grid(rgb_length: int, spike_length: int) -> tuple[int, int]:
    """Return the finest step, in RGB pixels and in spike pixels, that is whole in both.

    720 RGB rows over 360 spike rows give (2, 1): even RGB rows start a spike row.
    """
    common = math.gcd(rgb_length, spike_length)
    return rgb_length // common, spike_length // common


def on_spikes(pixels: slice, grid: tuple[int, int]) -> slice:
    """Return the spike pixels of the scene region that a slice of RGB pixels covers."""
    rgb_step, spike_step = grid
    return slice(pixels.start // rgb_step * spike_step, pixels.stop // rgb_step * spike_step)


def to_uint8(frame: torch.Tensor, name: str) -> np.ndarray:
    """Return a finite frame [3, H, W] in 0..1 as uint8 [H, W, 3], clamped and rounded."""
    pixels = (to_range(frame, name) * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().numpy()


def to_range(frame: torch.Tensor, name: str) -> torch.Tensor:
    """Return a finite frame clamped to 0..1, as a tensor of its own."""
    if not torch.isfinite(frame).all():
        raise NonFiniteOutputError(
            f"{name}: the model returned NaN or infinite values; the weights or the input are "
            f"broken, or half precision overflowed (try float32)"
        )
    return frame.clamp(0, 1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards every module is in the mode it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def number_format(device_type: str, autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Compute in `autocast_dtype`; None: in float32 with TF32 off, so that scores compare."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        if autocast_dtype is None:
            for backend in backends:
                backend.allow_tf32 = False
        with torch.autocast(device_type, autocast_dtype, enabled=autocast_dtype is not None):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


# ---------------------------------------------------------------- scoring


def evaluate(
    restorer: Restorer,
    recordings: Sequence[Recording],
    *,
    clips: Sequence[range] | None = None,
    score: bool = True,
    score_blurry: bool = False,
    lpips: LpipsMetric | None = None,
) -> Iterator[Evaluated]:
    """Restore every frame of the recordings in order and score it against the sharp one.

    Ranks that share the work evaluate the parts of `src.inference.tiling.share_out` and join their
    reports by `src.metrics.report.merge_reports`; `clips` are consecutive ones of each recording,
    None: all. Without `score` nothing sharp is read.
    """
    parts = [None] * len(recordings) if clips is None else clips
    for recording, part in zip(recordings, parts, strict=True):
        try:
            for i, image in restorer.restore(recording, part):
                row = _score(recording, i, image, score_blurry, lpips) if score else None
                yield recording, i, image, row
        except NonFiniteOutputError as error:
            raise NonFiniteOutputError(f"{recording.name}: {error}") from error


def report_on(restorer: Restorer, rows: list[FrameScores], notes: Sequence[str] = ()) -> Report:
    """Return the report on scored frames; notes say what differs from the protocol and why."""
    notes = list(notes)
    if restorer.settings != restorer.first_settings:
        notes.append(f"the device ran out of memory; {restorer.settings.describe()} was used")
    return Report(rows, describe_protocol(restorer), notes)


def build_lpips(cfg: CfgNode, device: str | torch.device) -> tuple[LpipsMetric | None, list[str]]:
    """Return LPIPS, or None with a note about the reason."""
    if not cfg.VAL.LPIPS:
        return None, ["LPIPS was not measured: VAL.LPIPS is false"]
    weights = resolve(cfg.VAL.LPIPS_WEIGHTS) if cfg.VAL.LPIPS_WEIGHTS else ""
    try:
        return LpipsMetric(weights, device), []
    except LpipsUnavailableError as error:
        return None, [f"LPIPS was not measured: {error}"]


def describe_protocol(restorer: Restorer) -> str:
    """Return in words how restored frames are computed and scored, for reports."""
    numbers = "float32" if restorer.autocast_dtype is None else str(restorer.autocast_dtype)[6:]
    return (
        "8-bit RGB after clamping to 0..1 and rounding; whole frames, border 0, no resizing; "
        "PSNR and SSIM (11x11 Gaussian, sigma 1.5, valid region, mean of channels) per frame in "
        "float64; Y is BT.601 studio range, unrounded; LPIPS is AlexNet v0.1; "
        f"{restorer.first_settings.describe()}; network in {numbers}"
    )


def _score(
    recording: Recording, i: int, image: np.ndarray, with_blurry: bool, lpips: LpipsMetric | None
) -> FrameScores:
    sharp, frame = recording.read_sharp(i), recording.frames[i].name
    try:
        scores = {RESTORED: score_frame(image, sharp, lpips)}
        if with_blurry:
            scores[BLURRY] = score_frame(recording.read_blurry(i), sharp, lpips)
    except ValueError as error:
        raise ValueError(f"{recording.name}/{frame}: {error}") from error
    return FrameScores(recording.name, frame, scores)


def peak_memory_gib(device: torch.device) -> tuple[float | None, str]:
    """Return the largest memory so far in GiB, and whose it is; None on Windows without CUDA.

    On a CUDA device it is what tensors used there, otherwise the memory of this process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30, f"tensors on {device}"
    if sys.platform == "win32":
        return None, "not measured on Windows"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "process"
