"""Reading weights from a file: ours, plain VRT's, wrapped or compiled ones."""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from src.models.torch_file import read_torch_file
from src.paths import resolve

logger = logging.getLogger(__name__)

# The part of a file that holds weights: our checkpoints, files of BasicSR and of VRT. Averaged
# weights come first, they are what was validated.
NESTED_UNDER = ("ema", "model", "params_ema", "params")
VRT_PREFIX = "vrt."
MAX_NAMED = 8
# Names in earlier checkpoints: of a part of the model, then of the layers in its blocks.
FORMER_NAMES = {
    "spike_tsa": (
        "spike_temporal_sa.blocks",
        {"norm1": "ln1", "norm2": "ln2", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2"},
    ),
    "fuse.scales": (
        "cross_attn_fuse.fuse_blocks",
        {
            "norm_rgb": "ln_q",
            "norm_spike": "ln_kv",
            "norm_mlp": "ln_ffn",
            "mlp.fc1": "ffn.0",
            "mlp.fc2": "ffn.2",
        },
    ),
}


@dataclass(frozen=True)
class WeightsReport:
    """What came from a file.

    Attributes:
        loaded: keys that were taken from it.
        missing: keys of the model that it does not hold; they keep their values.
        unexpected: keys in it that the model does not have.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def log(self, path: Path) -> None:
        """Say what was loaded, by part of the model, and what was not."""
        total = len(self.loaded) + len(self.missing)
        logger.info(
            "%s: %d of %d weights loaded: %s", path, len(self.loaded), total, _parts(self.loaded)
        )
        if self.missing:
            logger.warning(
                "%s: missing, these keep their initial values: %s", path, _parts(self.missing)
            )
        if self.unexpected:
            logger.warning(
                "%s: not used, the model has no such weights: %s", path, _parts(self.unexpected)
            )


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    require_all: bool = False,
    parts: tuple[str, ...] = NESTED_UNDER,
) -> WeightsReport:
    """Load what fits by name into `VRTWithSpike` or `RGBOnly`, and log what does not.

    Keys of a plain VRT get the prefix `vrt.`; prefixes of DDP and torch.compile are removed.

    Args:
        model: its own keys begin with `vrt.`, `spike_encoder.` and so on.
        path: a checkpoint of ours, an official VRT file, or a plain state dict.
        require_all: refuse a file that lacks a key or holds one too many.
        parts: where in the file to look for the weights; the first that is there counts.

    Raises:
        ValueError: not readable as weights, nothing matches, a shape differs, a value is not
            finite, or keys differ with `require_all`.
    """
    path = resolve(path)
    stored = _with_prefix(read_state_dict(path, parts))
    own = model.state_dict()
    report = WeightsReport(
        loaded=tuple(key for key in own if key in stored),
        missing=tuple(key for key in own if key not in stored),
        unexpected=tuple(key for key in stored if key not in own),
    )
    _check(path, stored, own, report, require_all)
    model.load_state_dict(own | {key: stored[key] for key in report.loaded})
    report.log(path)
    return report


def read_state_dict(path: Path, parts: tuple[str, ...] = NESTED_UNDER) -> dict[str, torch.Tensor]:
    """Return the state dict in a file, keys without the prefixes of DDP and torch.compile.

    Raises:
        ValueError: not a file of weights that can be read without running code, or not finite.
    """
    stored = read_torch_file(path, "weights")
    for name in parts:
        if isinstance(stored, dict) and isinstance(stored.get(name), dict):
            stored = stored[name]
            break
    if not isinstance(stored, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in stored.items()
    ):
        raise ValueError(
            f"{path}: holds no state dict; expected tensors by name, or those under 'model' (our "
            "checkpoints) or 'params' (official VRT files)"
        )
    broken = [key for key, value in stored.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"{path}: values that are not finite (NaN or inf) in {_named(broken)}")
    return convert_keys(stored)


def convert_keys(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict under the current names, whatever version of this project wrote it.

    Prefixes of DDP and torch.compile are removed, the names in `FORMER_NAMES` replaced. The order
    stays, so the state of an optimizer, which goes by order, still fits.
    """
    return {_current_name(_strip(key)): value for key, value in stored.items()}


def _current_name(key: str) -> str:
    for former, (current, layers) in FORMER_NAMES.items():
        if key.startswith(former + "."):
            scale, _, rest = key.removeprefix(former + ".").partition(".")
            layer, _, parameter = rest.rpartition(".")
            return f"{current}.{scale}.{layers.get(layer, layer)}.{parameter}"
    return key


def _strip(key: str) -> str:
    key = ".".join(part for part in key.split(".") if part != "_orig_mod")
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key


def _with_prefix(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if any(key.startswith(VRT_PREFIX) for key in stored):
        return stored
    return {VRT_PREFIX + key: value for key, value in stored.items()}


def _check(
    path: Path,
    stored: dict[str, torch.Tensor],
    own: dict[str, torch.Tensor],
    report: WeightsReport,
    require_all: bool,
) -> None:
    if not report.loaded:
        raise ValueError(
            f"{path}: none of its {len(stored)} weights belongs to this model; it has keys like "
            f"{_named(list(stored)[:2])}, needed are keys like {_named(list(own)[:2])}"
        )
    wrong = [
        f"{key} {list(stored[key].shape)} (the model has {list(own[key].shape)})"
        for key in report.loaded
        if stored[key].shape != own[key].shape
    ]
    if wrong:
        raise ValueError(
            f"{path}: shapes differ in {_named(wrong)}; MODEL.VRT_CFG, CHANNELS_PER_SCALE and "
            "DATA.K must be those that the weights were trained with"
        )
    if require_all and (report.missing or report.unexpected):
        raise ValueError(
            f"{path}: its keys are not the model's; missing: {_named(report.missing) or 'none'}; "
            f"not used: {_named(report.unexpected) or 'none'}; check MODEL.USE_SPIKE and VRT_CFG"
        )


def _parts(keys: tuple[str, ...]) -> str:
    """Return the keys themselves where they are few, else how many there are of each part."""
    if len(keys) <= MAX_NAMED:
        return ", ".join(keys)
    counts = Counter(key.partition(".")[0] for key in keys)
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def _named(keys: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return ", ".join(keys[:MAX_NAMED]) + more
