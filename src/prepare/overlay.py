"""Pictures on which a person sees at once whether spikes belong to their frames.

Per frame one page: blurry frame, spikes of its exposure, sharp frame; below, both on top of each
other, in complementary colours and as outlines; below that, the spikes with the blurry frame
before, with this one and with the next, enlarged where the scene moves most.
"""

import html
import logging
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from skimage.exposure import match_histograms
from tqdm import tqdm

from src.data.exposures import read_alignment
from src.data.frames import read_image
from src.data.recordings import Recording
from src.data.scanning import ScanSettings, scan_split
from src.paths import atomic_write
from src.pictures.panels import Panel, busiest_region, make_page, to_grey, write_page
from src.prepare.exposure_shift import (
    FRAME_NAMES,
    ExposureFit,
    check_exposures,
    fit_exposure,
    frames_around,
)
from src.prepare.frame_checks import Findings

logger = logging.getLogger(__name__)

INDEX_NAME = "index.html"
PANEL_PX = 400
EDGE_COLOUR = (255, 60, 0)
EDGE_QUANTILES = (0.80, 0.93)  # of the slopes: where outlines end, and where they begin
WHITE_QUANTILE = 0.995
HOW_TO_READ = (
    "Red and cyan show blurry frame and spikes on top of each other: where they match the picture "
    "is grey, where they do not it has red and cyan borders. In the last row of each page the "
    "middle picture must be the grey one; if the left or the right one is, the spikes are off by "
    "one exposure. A scene without motion is grey everywhere and shows nothing."
)


def overlay_splits(
    scan: ScanSettings, splits: Sequence[str], log: Path, count: int, folder: Path, seed: int
) -> Findings:
    """Write overlays of prepared splits, and check all of them for shifts by exposures."""
    alignment = read_alignment([log])
    recordings = {split: scan_split(scan, split, alignment) for split in splits}
    everything = [recording for found in recordings.values() for recording in found]
    index, *pages = write_overlays(everything, count, folder, seed)
    findings = Findings(seen=[f"{len(pages)} overlays; open {index} in a browser"])
    for split, found in recordings.items():
        for recording in found:
            where = f"{split}/{recording.name}"
            findings.include(check_exposures(where, recording.frames, scan.num_bins))
    return findings


def write_overlays(
    recordings: Sequence[Recording], count: int, folder: str | Path, seed: int
) -> list[Path]:
    """Write one page per randomly drawn frame, and `index.html` that shows them all.

    Pages of the same name in `folder` are replaced. Returns the index, then the pages.
    """
    frames = [(recording, i) for recording in recordings for i in range(len(recording))]
    if count < 1 or not frames:
        raise ValueError(f"{count} of {len(frames)} frames requested; at least 1 of 1 is needed")
    drawn = np.random.default_rng(seed).choice(len(frames), min(count, len(frames)), replace=False)
    folder = Path(folder)
    pages, fits = [], []
    for chosen in tqdm(sorted(drawn), desc="overlays", unit="frame", disable=None):
        recording, i = frames[chosen]
        frame = recording.frames[i]
        page, fit = draw_overlay(recording, i)
        split = frame.blurry.parents[2].name
        pages.append(folder / f"{split}_{recording.name}_{frame.name}.png")
        write_page(pages[-1], page)
        fits.append(fit)
    index = folder / INDEX_NAME
    with atomic_write(index) as partial:
        partial.write_text(_index_page(pages, fits), encoding="utf-8")
    logger.info("overlays: %s", summary_of(fits))
    return [index, *pages]


def summary_of(fits: Sequence[ExposureFit]) -> str:
    """Return how many frames fit which blurry frame best, as one sentence."""
    best = [fit.best for fit in fits]
    names = {**FRAME_NAMES, 0: "their own frame"}
    parts = [f"{best.count(d)} of {len(fits)} fit {names[d]} best" for d in (0, -1, 1)]
    return f"{'; '.join(parts)}; {best.count(None)} cannot tell"


def draw_overlay(recording: Recording, i: int) -> tuple[np.ndarray, ExposureFit]:
    """Return the page of frame `i`, uint8 RGB [h, w, 3], and how its spikes fit."""
    frame = recording.frames[i]
    counts = recording.read_counts(i)
    blurry = {d: read_image(path) for d, path in frames_around(frame).items()}
    sharp = recording.read_sharp(i)
    spikes = counts.sum(axis=0, dtype=np.float32)
    middle = counts[len(counts) // 3 : max(1, 2 * len(counts) // 3)].sum(axis=0, dtype=np.float32)
    fit = fit_exposure(spikes, blurry)
    whole, part = _at_size(spikes, sharp), _at_size(middle, sharp)
    rows = [
        [
            Panel(f"blurry {frame.name}", blurry[0]),
            Panel("sum of its voxels", to_grey(whole, np.quantile(whole, WHITE_QUANTILE))),
            Panel("sharp", sharp),
        ],
        [
            Panel("blurry in red + spikes in cyan: grey = match", red_cyan(blurry[0], whole)),
            Panel("outlines of the spikes on blurry", outline(blurry[0], whole)),
            Panel("outlines of the middle spikes on sharp", outline(sharp, part)),
        ],
    ]
    region = busiest_region(blurry[min(blurry)], blurry[max(blurry)])
    details = []
    for distance, name in sorted(FRAME_NAMES.items()):
        if distance in blurry:
            image = red_cyan(blurry[distance], whole)[region]
            is_alarm = distance != 0 and fit.best == distance
            details.append(Panel(f"spikes with {name}, detail", image, is_alarm))
    lines = [
        f"{recording.name} / {frame.name}, exposure {frame.t0:.6f} to {frame.t1:.6f} s, "
        f"{int(spikes.sum())} spikes in {len(counts)} bins",
        fit.sentence,
    ]
    return make_page([*rows, details], PANEL_PX, lines), fit


def red_cyan(image: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """Return the image in red with the spikes in green and blue: grey where both agree.

    The spikes [H, W] get the histogram of the image uint8 RGB [H, W, 3]: only where they are
    counts.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    matched = match_histograms(spikes, grey.astype(np.float32))
    matched = np.clip(np.rint(matched), 0, 255).astype(np.uint8)
    return np.dstack([grey, matched, matched])


def outline(image: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """Return the image uint8 RGB [H, W, 3] with the outlines of spikes [H, W] drawn in colour."""
    smooth = cv2.GaussianBlur(np.asarray(spikes, np.float32), (0, 0), image.shape[1] / 160)
    levels = np.clip(smooth * (255 / max(np.quantile(smooth, WHITE_QUANTILE), 1e-6)), 0, 255)
    levels = np.rint(levels * 8).astype(np.int16)  # finer than grey levels: shallow edges count
    dx, dy = (cv2.Sobel(levels, cv2.CV_16S, *order) for order in ((1, 0), (0, 1)))
    low, high = np.quantile(np.hypot(dx, dy, dtype=np.float32), EDGE_QUANTILES)
    edges = cv2.Canny(dx, dy, low, high, L2gradient=True)
    thickness = max(1, round(image.shape[1] / 320))
    edges = cv2.dilate(edges, np.ones((thickness, thickness), np.uint8))
    drawn = image // 4 * 3 + 48  # a little paler, so that the outlines stand out
    drawn[edges > 0] = EDGE_COLOUR
    return drawn


def _at_size(spikes: np.ndarray, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.resize(spikes, (width, height), interpolation=cv2.INTER_LINEAR)


def _index_page(pages: Sequence[Path], fits: Sequence[ExposureFit]) -> str:
    """Return the HTML that shows all pages; it names them relative to itself."""
    blocks = []
    for path, fit in zip(pages, fits, strict=True):
        sentence = html.escape(fit.sentence.removeprefix("! "))
        kind = "wrong" if fit.sentence.startswith("!") else "right"
        name = html.escape(quote(path.name))  # a # in a name would end the address
        blocks.append(
            f'<h2>{html.escape(path.stem)}</h2>\n<p class="{kind}">{sentence}</p>\n'
            f'<a href="{name}"><img src="{name}" alt="{html.escape(path.stem)}"></a>'
        )
    return (
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>Overlays</title>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n<style>'
        "body{font:15px/1.5 system-ui,sans-serif;max-width:1250px;margin:2em auto;padding:0 16px}"
        "h1{font-size:24px}h2{font-size:19px;overflow-wrap:anywhere}"
        "a{display:block;overflow-x:auto}img{max-width:100%;min-width:800px}"  # readable on a phone
        ".wrong{color:#c00;font-weight:bold}</style></head><body>\n"
        "<h1>Do the spikes belong to their frames?</h1>\n"
        f"<p>{html.escape(summary_of(fits))}.</p>\n<p>{HOW_TO_READ}</p>\n"
        + "\n".join(blocks)
        + "\n</body></html>\n"
    )
