"""The RGB-only twin of a run, and the comparison of the two."""

from yacs.config import CfgNode

TWIN_SUFFIX = "_rgb_twin"


def twin_overrides(cfg: CfgNode) -> list[str]:
    """Return the overrides that turn a configuration into its RGB-only twin.

    Same data, seed, steps, schedule and initial VRT weights; only the spikes are missing.
    """
    return ["EXP_NAME", cfg.EXP_NAME + TWIN_SUFFIX, "MODEL.USE_SPIKE", "false"]
