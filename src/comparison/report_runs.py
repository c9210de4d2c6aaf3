"""The part of a comparison's page that says what was compared and how."""

from html import escape

from src.comparison.report_tables import Cell, make_table, number
from src.comparison.result import Comparison
from src.comparison.runs import TrainedRun
from src.comparison.scores import SPIKE, TWIN
from src.engine.resume import config_differences
from src.metrics import motion_edges
from src.metrics.paired import NUM_RESAMPLES

RUN_ROWS = (
    "run", "weights", "SHA-256", "step of the weights", "steps trained", "clips per step",
    "seed", "precision of training", "parameters", "seconds per step", "hours of training",
)  # fmt: skip


def describe_runs(comparison: Comparison) -> str:
    """Return the section about the two runs: weights, cost, configuration."""
    twin, spike = comparison.twin, comparison.spike
    rows = [[name, _run_cell(twin, name), _run_cell(spike, name)] for name in RUN_ROWS]
    rows.append(["network, seconds per frame here", *(
        f"{comparison.frames.seconds_per_frame[method]:.3f}" for method in (TWIN, SPIKE)
    )])  # fmt: skip
    lines = config_differences(twin.state["config"], spike.state["config"], ())
    lines = [
        line.replace("the checkpoint has", "twin").replace("the configuration", "VRT+Spike")
        for line in lines
    ]
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        "<h2>The two runs</h2>"
        + make_table(["", TWIN, SPIKE], rows)
        + f"<h3>All configuration keys that differ</h3><ul>{items}</ul>"
    )


def _run_cell(run: TrainedRun, row: str) -> Cell:
    identity, speed = run.loaded.identity, run.seconds_per_step
    parameters = sum(p.numel() for p in run.loaded.model.parameters())
    values = {
        "run": run.run.name,
        "weights": identity["file"],
        "SHA-256": identity["sha256"],
        "step of the weights": str(identity["step"]),
        "steps trained": str(run.steps),
        "clips per step": str(run.state["clips_per_step"]),
        "seed": str(run.cfg.SEED),
        "precision of training": run.state["precision"],
        "parameters": f"{parameters / 1e6:.2f} M",
        "seconds per step": number(speed, 3),
        "hours of training": None if speed is None else f"{run.steps * speed / 3600:.2f}",
    }
    return values[row]


def describe_method(comparison: Comparison) -> str:
    """Return the section about how the numbers came about."""
    memory = comparison.peak_memory_gib
    rows = [
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
        ["device, memory", f"{comparison.device}, {number(memory, 2) or '?'} GiB at most"],
        ["commit", comparison.commit],
    ]
    return "<h2>How it was measured</h2>" + make_table(["", ""], rows)
