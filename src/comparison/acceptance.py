"""When VRT+Spike counts as better than its RGB-only twin: the rules of the project's owner."""

from collections.abc import Callable
from dataclasses import dataclass

from src.metrics.report import Scores

MAX_PSNR_LOSS_DB = 0.05
MAX_LPIPS_GAIN = 0.005


@dataclass(frozen=True)
class Verdict:
    """One rule, applied.

    Attributes:
        rule: What is asked for.
        found: What was measured, in words.
        is_met: Whether it holds; None: not decided.
        reason: Why it is not decided.
    """

    rule: str
    found: str
    is_met: bool | None
    reason: str = ""

    @property
    def word(self) -> str:
        """`pass`, `fail` or `not decided`."""
        return {True: "pass", False: "fail", None: "not decided"}[self.is_met]


def judge(twin: Scores, spike: Scores, *, notes: list[str]) -> list[Verdict]:
    """Apply every rule to the means over frames.

    Args:
        twin: Metric to mean of the RGB-only twin.
        spike: The same of VRT+Spike.
        notes: Why a metric is missing.
    """
    why_no_lpips = next((note for note in notes if "LPIPS" in note), "LPIPS was not measured")
    no_edges = "no frame has enough pixels that move"
    return [
        _rule(
            f"PSNR of VRT+Spike >= twin - {MAX_PSNR_LOSS_DB} dB",
            (twin["psnr_rgb"], spike["psnr_rgb"]),
            lambda a, b: b >= a - MAX_PSNR_LOSS_DB,
            "{:.3f} dB, twin {:.3f} dB",
            "PSNR was not measured",
        ),
        _rule(
            f"LPIPS of VRT+Spike <= twin + {MAX_LPIPS_GAIN}",
            (twin["lpips"], spike["lpips"]),
            lambda a, b: b <= a + MAX_LPIPS_GAIN,
            "{:.4f}, twin {:.4f}",
            why_no_lpips,
        ),
        _rule(
            "edges that move are steeper: sharpness of VRT+Spike > twin",
            (twin["edge_sharpness"], spike["edge_sharpness"]),
            lambda a, b: b > a,
            "{:.3f}, twin {:.3f} (1: as steep as the sharp frame)",
            no_edges,
        ),
        _rule(
            "and not by overshooting: error of the edges that move <= twin",
            (twin["edge_error"], spike["edge_error"]),
            lambda a, b: b <= a,
            "{:.3f}, twin {:.3f} (0: equal to the sharp frame)",
            no_edges,
        ),
    ]


def overall(verdicts: list[Verdict]) -> str:
    """Return `accepted`, `not accepted`, or `not decided` where a rule is open and none failed."""
    if any(verdict.is_met is False for verdict in verdicts):
        return "not accepted"
    return "accepted" if all(verdict.is_met for verdict in verdicts) else "not decided"


def _rule(
    rule: str,
    values: tuple[float | None, float | None],
    holds: Callable[[float, float], bool],
    words: str,
    reason: str,
) -> Verdict:
    twin, spike = values
    if twin is None or spike is None:
        return Verdict(rule, "not measured", None, reason)
    return Verdict(rule, words.format(spike, twin), holds(twin, spike))
