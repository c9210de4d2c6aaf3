"""The comparison as one HTML page that opens from disk: no server, no network, no scripts."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.comparison.compare import Comparison, overall
from src.comparison.examples import (
    ERROR_LEVELS,
    Example,
    data_uri,
    edges_shown,
    error_map,
    marked,
    motion_region,
)
from src.comparison.plots import plot_differences, plot_validations
from src.comparison.runs import TrainedRun
from src.comparison.scores import BLURRY, METHODS, SPIKE, TWIN
from src.engine.resume import config_differences
from src.metrics import motion_edges
from src.metrics.paired import FEW_SEQUENCES, NUM_RESAMPLES, Interval, PairedDifference
from src.metrics.report import Scores
from src.paths import atomic_write
from src.pictures.strips import enlarge_to

ZOOM_WIDTH_PX = 320
# Metric: its name, decimals, which direction is better.
SHOWN = {
    "psnr_rgb": ("PSNR-RGB in dB", 3, "higher"),
    "ssim_rgb": ("SSIM-RGB", 4, "higher"),
    "psnr_y": ("PSNR-Y in dB", 3, "higher"),
    "ssim_y": ("SSIM-Y", 4, "higher"),
    "lpips": ("LPIPS", 4, "lower"),
    "edge_sharpness": ("motion-edge sharpness", 3, "nearer to 1"),
    "edge_error": ("motion-edge error", 3, "lower"),
}
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
Row = list[str | None]  # the cells of a table row; None is shown as a dash


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the page, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(render_page(comparison), encoding="utf-8")


def render_page(comparison: Comparison) -> str:
    """Return the page as HTML."""
    frames, twin, spike = comparison.frames, comparison.twin, comparison.spike
    names = list(dict.fromkeys(frames.sequences))
    return TEMPLATES.get_template("page.html").render(
        title=f"{spike.run.name}: VRT+Spike and its RGB-only twin",
        result=overall(comparison.rules),
        rules=comparison.rules,
        notes=frames.notes,
        num_frames=len(frames.frames),
        num_sequences=len(names),
        few_sequences=FEW_SEQUENCES,
        methods=[TWIN, SPIKE],
        means_header=["", *(f"{name} ({better})" for name, _, better in SHOWN.values())],
        means=[[method, *_cells(frames.means(method))] for method in METHODS],
        means_over_sequences=[
            [method, *_cells(frames.means_over_sequences(method))] for method in METHODS
        ],
        differences=[_difference(metric, d) for metric, d in comparison.differences.items()],
        difference_plot=_difference_plot(comparison),
        validation_plot=plot_validations(
            {TWIN: twin.curve, SPIKE: spike.curve}, (BLURRY, frames.means(BLURRY)["psnr_rgb"])
        ),
        error_levels=ERROR_LEVELS,
        examples=[
            {"title": f"{e.frame.sequence}/{e.frame.frame}: {e.why}", "pictures": _pictures(e)}
            for e in comparison.examples
        ],
        sequences_header=["sequence", "frames", "method", *(name for name, _, _ in SHOWN.values())],
        sequences=[
            [name, str(frames.sequences.count(name)), method, *_cells(frames.means(method, name))]
            for name in names
            for method in METHODS
        ],
        runs=_runs(comparison),
        config_differences=[
            line.replace("the checkpoint has", "twin").replace("the configuration", "VRT+Spike")
            for line in config_differences(twin.state["config"], spike.state["config"], ())
        ],
        method=_method(comparison),
    )


def _number(value: float | None, decimals: int, sign: str = "") -> str | None:
    return None if value is None else f"{value:{sign}.{decimals}f}"


def _cells(means: Scores) -> Row:
    return [_number(means[metric], decimals) for metric, (_, decimals, _) in SHOWN.items()]


def _difference(metric: str, found: PairedDifference | None) -> Row:
    name, decimals, _ = SHOWN[metric]
    if found is None:
        return [name, None, None, None, None, "0"]

    def shown(interval: Interval | None) -> str | None:
        if interval is None:
            return None
        return f"{interval.low:+.{decimals}f} … {interval.high:+.{decimals}f}"

    return [
        name,
        _number(found.mean, decimals, "+"),
        shown(found.over_frames),
        shown(found.over_sequences),
        f"{found.share_positive:.0%}",
        str(found.num_frames),
    ]


def _difference_plot(comparison: Comparison) -> str | None:
    frames, psnr = comparison.frames, comparison.differences["psnr_rgb"]
    pairs = zip(frames.values(TWIN, "psnr_rgb"), frames.values(SPIKE, "psnr_rgb"), strict=True)
    return plot_differences(
        [0.0 if a == b else b - a for a, b in pairs],
        frames.sequences,
        psnr.mean,
        psnr.over_sequences or psnr.over_frames,
    )


def _pictures(example: Example) -> list[tuple[str, str]]:
    """Return data URI and caption of every picture of an example, four to a row."""
    images, region, scores = example.images, motion_region(example.images), example.frame.scores
    versions = {BLURRY: images.blurry, TWIN: images.twin, SPIKE: images.spike}
    everything = versions | {"sharp": images.sharp}
    captions = {
        name: f"{name}: {scores[name]['psnr_rgb']:.2f} dB, SSIM {scores[name]['ssim_rgb']:.4f}"
        for name in versions
    }
    return [
        *(
            (data_uri(marked(image, region), is_exact=False), captions.get(name, name))
            for name, image in everything.items()
        ),
        *(
            (
                data_uri(enlarge_to(image[region], ZOOM_WIDTH_PX), is_exact=True),
                f"{name}, enlarged",
            )
            for name, image in everything.items()
        ),
        *(
            (data_uri(error_map(image, images.sharp), is_exact=False), f"error of {name}")
            for name, image in versions.items()
        ),
        (data_uri(edges_shown(images), is_exact=False), "motion edges"),
    ]


def _runs(comparison: Comparison) -> list[Row]:
    """Return the table of the two runs: weights, cost, configuration."""
    columns = [_run(run) for run in (comparison.twin, comparison.spike)]
    seconds = comparison.frames.seconds_per_frame
    for column, method in zip(columns, (TWIN, SPIKE), strict=True):
        column["network, seconds per frame here"] = f"{seconds[method]:.3f}"
    return [[name, *(column[name] for column in columns)] for name in columns[0]]


def _run(run: TrainedRun) -> dict[str, str | None]:
    identity, speed = run.loaded.identity, run.seconds_per_step
    parameters = sum(p.numel() for p in run.loaded.model.parameters())
    return {
        "run": run.run.name,
        "weights": identity["file"],
        "SHA-256": identity["sha256"],
        "step of the weights": str(identity["step"]),
        "steps trained": str(run.steps),
        "clips per step": str(run.state["clips_per_step"]),
        "seed": str(run.cfg.SEED),
        "precision of training": run.state["precision"],
        "parameters": f"{parameters / 1e6:.2f} M",
        "seconds per step": _number(speed, 3),
        "hours of training": None if speed is None else f"{run.steps * speed / 3600:.2f}",
    }


def _method(comparison: Comparison) -> list[Row]:
    """Return the table that says how the numbers were measured."""
    memory = _number(comparison.peak_memory_gib, 2) or "?"
    return [
        ["scores", comparison.frames.protocol],
        ["weights", "those with the best validation PSNR of each run, chosen on these same frames"],
        ["inputs, SHA-256", comparison.frames.inputs_sha256],
        [
            "intervals",
            f"percentile bootstrap, {NUM_RESAMPLES} resamples, seed {comparison.seed}; over "
            "frames, and as a block bootstrap over whole sequences",
        ],
        [
            "motion edges",
            f"pixels whose luma differs by {motion_edges.MOTION_LEVELS:g} levels or more from the "
            "sharp frame before or after, with a Sobel gradient / 8 of "
            f"{motion_edges.EDGE_LEVELS:g} levels per pixel or more in the sharp frame. Sharpness: "
            "gradient of the result along the true direction, summed, over the true gradient, "
            "summed. Error: length of the gradients' difference, summed, over the same.",
        ],
        ["device, memory", f"{comparison.device}, {memory} GiB at most"],
        ["commit", comparison.commit],
    ]
