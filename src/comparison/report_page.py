"""The comparison as one HTML page that opens from disk: no server, no network, no scripts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from src.comparison.acceptance import overall
from src.comparison.report_curves import difference_plot, line_plot
from src.comparison.report_pictures import (
    ERROR_LEVELS,
    Example,
    data_uri,
    edges_shown,
    error_map,
    marked,
    motion_region,
)
from src.comparison.report_runs import describe_method, describe_runs
from src.comparison.report_tables import Cell, make_table, number
from src.comparison.result import Comparison
from src.comparison.scores import BLURRY, METHODS, SPIKE, TWIN
from src.metrics.paired import FEW_SEQUENCES, Interval, PairedDifference
from src.paths import atomic_write
from src.pictures.strips import enlarge_to

ZOOM_WIDTH_PX = 320
# Metric: what it is called, how many decimals, which direction is better.
SHOWN = {
    "psnr_rgb": ("PSNR-RGB in dB", 3, "higher"),
    "ssim_rgb": ("SSIM-RGB", 4, "higher"),
    "psnr_y": ("PSNR-Y in dB", 3, "higher"),
    "ssim_y": ("SSIM-Y", 4, "higher"),
    "lpips": ("LPIPS", 4, "lower"),
    "edge_sharpness": ("motion-edge sharpness", 3, "nearer to 1"),
    "edge_error": ("motion-edge error", 3, "lower"),
}


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the page, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(render_page(comparison), encoding="utf-8")


def render_page(comparison: Comparison) -> str:
    """Return the page as HTML."""
    title = f"{comparison.spike.run.name}: VRT+Spike and its RGB-only twin"
    sections = (
        _verdicts(comparison),
        _means(comparison),
        _differences(comparison),
        _curves(comparison),
        _pictures(comparison.examples),
        _sequences(comparison),
        describe_runs(comparison),
        describe_method(comparison),
    )
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def _verdicts(comparison: Comparison) -> str:
    rows = [[v.rule, v.found, _badge(v.word)] for v in comparison.verdicts]
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.frames.notes)
    result = overall(comparison.verdicts)
    return (
        f"<h2>Acceptance</h2><p class='result'>{_badge(result)} on "
        f"{len(comparison.frames.frames)} frames of {_count(comparison)} sequence(s)</p>"
        + make_table(["rule", "measured, mean over frames", "verdict"], rows, raw_last=True)
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _count(comparison: Comparison) -> int:
    return len(set(comparison.frames.sequences))


def _badge(word: str) -> str:
    kind = {"pass": "good", "accepted": "good", "fail": "bad", "not accepted": "bad"}
    return f"<span class='badge {kind.get(word, 'open')}'>{escape(word)}</span>"


def _means(comparison: Comparison) -> str:
    header = ["", *(f"{name} ({better})" for name, _, better in SHOWN.values())]
    frames = [[method, *_cells(comparison.frames.means(method))] for method in METHODS]
    sequences = [
        [method, *_cells(comparison.frames.means_over_sequences(method))] for method in METHODS
    ]
    return (
        "<h2>Means</h2><h3>over all frames</h3>"
        + make_table(header, frames)
        + "<h3>over the means of the sequences</h3>"
        + make_table(header, sequences)
    )


def _cells(means: dict[str, float | None]) -> list[Cell]:
    return [number(means[metric], decimals) for metric, (_, decimals, _) in SHOWN.items()]


def _differences(comparison: Comparison) -> str:
    header = [
        "VRT+Spike less twin", "mean", "95% interval, frames drawn",
        "95% interval, sequences drawn", "frames with more", "frames",
    ]  # fmt: skip
    rows = [
        _difference_row(SHOWN[metric][0], found, SHOWN[metric][1])
        for metric, found in comparison.differences.items()
    ]
    psnr = comparison.differences["psnr_rgb"]
    pairs = zip(
        comparison.frames.values(TWIN, "psnr_rgb"),
        comparison.frames.values(SPIKE, "psnr_rgb"),
        strict=True,
    )
    plot = difference_plot(
        [0.0 if a == b else b - a for a, b in pairs],
        comparison.frames.sequences,
        mean=psnr.mean,
        interval=psnr.over_sequences or psnr.over_frames,
        unit="PSNR difference in dB",
    )
    few = ""
    if psnr.num_sequences < FEW_SEQUENCES:
        few = (
            f"<p>There are {psnr.num_sequences} sequence(s). With fewer than {FEW_SEQUENCES} an "
            "interval over sequences says little, of one there is none.</p>"
        )
    return (
        "<h2>Paired differences</h2><p>Frame by frame, on the same frames. Neighbouring frames "
        "look alike, so drawing single frames gives too narrow an interval; the one that draws "
        f"whole sequences is the one to trust.</p>{few}"
        + make_table(header, rows)
        + f"<figure>{plot}</figure>"
    )


def _difference_row(name: str, found: PairedDifference | None, decimals: int) -> list[Cell]:
    if found is None:
        return [name, None, None, None, None, "0"]
    return [
        name,
        number(found.mean, decimals, "+"),
        _interval(found.over_frames, decimals),
        _interval(found.over_sequences, decimals),
        f"{found.share_positive:.0%}",
        str(found.num_frames),
    ]


def _interval(interval: Interval | None, decimals: int) -> Cell:
    if interval is None:
        return None
    return f"{number(interval.low, decimals, '+')} … {number(interval.high, decimals, '+')}"


def _curves(comparison: Comparison) -> str:
    blurry = comparison.frames.means(BLURRY)["psnr_rgb"]
    plot = line_plot(
        {TWIN: comparison.twin.curve, SPIKE: comparison.spike.curve},
        level=(BLURRY, blurry),
        unit="PSNR in dB",
    )
    return f"<h2>Validation while training</h2><figure>{plot}</figure>"


def _pictures(examples: Sequence[Example]) -> str:
    return (
        "<h2>Pictures</h2><p>Whole frames; the outlined part, where most edges move, enlarged "
        f"without smoothing; absolute errors, black for 0, brightest from {ERROR_LEVELS} of 255 "
        "grey levels on. Whole frames and errors are shrunk and compressed for this page, the "
        "enlarged parts are exact.</p>" + "".join(_example(example) for example in examples)
    )


def _example(example: Example) -> str:
    images, region = example.images, motion_region(example.images)
    scores = example.frame.scores
    versions = (
        (BLURRY, images.blurry),
        (TWIN, images.twin),
        (SPIKE, images.spike),
        ("sharp", images.sharp),
    )
    cells = []
    for name, image in versions:
        caption = name
        if name in scores:
            psnr, ssim = scores[name]["psnr_rgb"], scores[name]["ssim_rgb"]
            caption = f"{name}: {psnr:.2f} dB, SSIM {ssim:.4f}"
        cells.append(_figure(data_uri(marked(image, region), is_exact=False), caption))
    for name, image in versions:
        detail = enlarge_to(image[region], ZOOM_WIDTH_PX)
        cells.append(_figure(data_uri(detail, is_exact=True), f"{name}, enlarged"))
    for name, image in versions[:3]:
        errors = error_map(image, images.sharp)
        cells.append(_figure(data_uri(errors, is_exact=False), f"error of {name}"))
    cells.append(_figure(data_uri(edges_shown(images), is_exact=False), "motion edges"))
    title = f"{example.frame.sequence}/{example.frame.frame}: {example.why}"
    return f"<h3>{escape(title)}</h3><div class='grid'>{''.join(cells)}</div>"


def _figure(uri: str, caption: str) -> str:
    text = escape(caption, quote=True)
    return f"<figure><img src='{uri}' alt='{text}'><figcaption>{text}</figcaption></figure>"


def _sequences(comparison: Comparison) -> str:
    header = ["sequence", "frames", "method", *(name for name, _, _ in SHOWN.values())]
    names = comparison.frames.sequences
    rows = [
        [name, str(names.count(name)), method, *_cells(comparison.frames.means(method, name))]
        for name in dict.fromkeys(names)
        for method in METHODS
    ]
    return "<h2>Sequences</h2>" + make_table(header, rows)
