"""Reading weights from a file: ours, plain VRT's, wrapped or compiled ones.

Nothing pickled in a file runs, and damage is detected.
"""

import json
import logging
import pickle
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from src.data.errors import DAMAGED, listed, other_kind
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
        {"norm_rgb": "ln_q", "norm_spike": "ln_kv", "norm_mlp": "ln_ffn"}
        | {"mlp.fc1": "ffn.0", "mlp.fc2": "ffn.2"},
    ),
}


# What readers raise on a missing, foreign, cut or arbitrary file: torch's reader of the old
# format takes any bytes for a program and fails somewhere in it.
UNREADABLE = (*DAMAGED, AssertionError, MemoryError, pickle.UnpicklingError, SafetensorError)
# Of a checkpoint that was written as .safetensors: its texts, and the prefix of averaged weights.
EXPORTED_TEXTS = ("config", "vrt", "data")
EMA_PREFIX = "ema."
ZIP_START = b"PK\x03\x04"  # torch.load uses the same test
DOS_FOLDER = 0x10  # in the external attributes of an entry
FORBIDDEN = re.compile(r"GLOBAL (\S+) was not an allowed global|class (\S+) was not an allowed")


class WeightsReport(NamedTuple):
    """Keys that came from a file, those that it lacks, and those that the model lacks."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # they keep their values
    unexpected: tuple[str, ...]


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    require_all: bool = False,
    parts: tuple[str, ...] = NESTED_UNDER,
) -> WeightsReport:
    """Load what fits by name into `VRTWithSpike` or `RGBOnly`, and log what does not.

    Keys of a plain VRT get the prefix `vrt.`; prefixes of DDP and torch.compile are removed.

    The file is a checkpoint of ours, an official VRT file, or a plain state dict; `parts` are names
    under which it may hold the weights, the first that exists counts. A ValueError says that it
    cannot be read, nothing matches, a shape differs, a value is not finite, or, with
    `require_all`, that it lacks a key or holds one too many.
    """
    path, own = resolve(path), model.state_dict()
    stored = read_state_dict(path, parts)
    if not any(key.startswith(VRT_PREFIX) for key in stored):
        stored = {VRT_PREFIX + key: value for key, value in stored.items()}
    report = WeightsReport(
        loaded=tuple(key for key in own if key in stored),
        missing=tuple(key for key in own if key not in stored),
        unexpected=tuple(key for key in stored if key not in own),
    )
    loaded, missing, unexpected = report
    if not loaded:
        raise ValueError(
            f"{path}: none of its {len(stored)} weights belongs to this model; it has keys like "
            f"{listed(list(stored)[:2])}, needed are keys like {listed(list(own)[:2])}"
        )
    wrong = [
        f"{key} {list(stored[key].shape)} (the model has {list(own[key].shape)})"
        for key in loaded
        if stored[key].shape != own[key].shape
    ]
    if wrong:
        raise ValueError(
            f"{path}: shapes differ in {listed(wrong)}; MODEL.VRT_CFG, CHANNELS_PER_SCALE and "
            "DATA.K must be those that the weights were trained with"
        )
    if require_all and (missing or unexpected):
        raise ValueError(
            f"{path}: its keys are not the model's; missing: {listed(missing) or 'none'}; "
            f"not used: {listed(unexpected) or 'none'}; check MODEL.USE_SPIKE and VRT_CFG"
        )
    model.load_state_dict(own | {key: stored[key] for key in loaded})
    logger.info("%s: %d of %d weights loaded: %s", path, len(loaded), len(own), _parts(loaded))
    if missing:
        logger.warning("%s: missing, these keep their initial values: %s", path, _parts(missing))
    if unexpected:
        logger.warning("%s: not used, the model has no such weights: %s", path, _parts(unexpected))
    return report


def read_state_dict(path: Path, parts: tuple[str, ...] = NESTED_UNDER) -> dict[str, torch.Tensor]:
    """Return the state dict in a file, keys without the prefixes of DDP and torch.compile.

    Raises:
        ValueError: Not a file of weights that can be read without running code, or not finite.
    """
    stored = read_torch_file(path, "weights")
    if isinstance(stored, dict):
        stored = next((stored[k] for k in parts if isinstance(stored.get(k), dict)), stored)
    if not isinstance(stored, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in stored.items()
    ):
        raise ValueError(
            f"{path}: holds no state dict; expected tensors by name, or those under 'model' (our "
            "checkpoints) or 'params' (official VRT files)"
        )
    broken = [key for key, value in stored.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ValueError(f"{path}: values that are not finite (NaN or inf) in {listed(broken)}")
    return convert_keys(stored)


def convert_keys(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict under the current names, whatever version of this project wrote it.

    Prefixes of DDP and torch.compile are removed, the names in `FORMER_NAMES` replaced. The order
    stays, so the state of an optimizer, which goes by order, still fits.
    """
    return {_current_name(key): value for key, value in stored.items()}


def _current_name(key: str) -> str:
    key = ".".join(part for part in key.split(".") if part != "_orig_mod")
    while key.startswith("module."):
        key = key.removeprefix("module.")
    for former, (current, layers) in FORMER_NAMES.items():
        if key.startswith(former + "."):
            scale, _, rest = key.removeprefix(former + ".").partition(".")
            layer, _, parameter = rest.rpartition(".")
            return f"{current}.{scale}.{layers.get(layer, layer)}.{parameter}"
    return key


def _parts(keys: tuple[str, ...]) -> str:
    """Return the keys themselves if they are few, else how many there are of each part."""
    if len(keys) <= MAX_NAMED:
        return ", ".join(keys)
    counts = Counter(key.partition(".")[0] for key in keys)
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def read_torch_file(path: Path, what: str) -> Any:
    """Return the content of a file of `torch.save` or `.safetensors`, tensors on the CPU.

    torch does not compare the checksums in its files; they are compared here, so a flipped bit
    is an error and not a weight. That takes about a second per gigabyte. `what` names the expected
    content in the message, such as "a checkpoint".

    Raises:
        ValueError: It cannot be read without running code, is damaged, or is no such file.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if _starts_with(path, ZIP_START):  # the format before torch 1.6 has no checksums
            _compare_checksums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path}: cannot be read as {what}: {_reason(path, error)}") from error


def write_exported(path: Path, state: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the weights of a checkpoint with what a test needs, as `read_torch_file` returns it.

    `path` ends in .safetensors; `facts` are stored as JSON, such as licence and scores.
    """
    texts = {name: state[name] for name in EXPORTED_TEXTS if name in state}
    texts |= {"progress": json.dumps({"step": state["progress"]["step"]})}
    texts |= {name: json.dumps(fact) for name, fact in facts.items()}
    averaged = {EMA_PREFIX + name: value for name, value in state.get("ema", {}).items()}
    tensors = {name: value.contiguous() for name, value in (state["model"] | averaged).items()}
    path.write_bytes(save(tensors, texts))


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return what `write_exported` was given; of another file its tensors."""
    with safe_open(path, "pt") as file:
        texts = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    if "config" not in texts:
        return tensors
    state = {
        name: text if name in EXPORTED_TEXTS else json.loads(text) for name, text in texts.items()
    }
    averaged = {name for name in tensors if name.startswith(EMA_PREFIX)}
    state["model"] = {name: value for name, value in tensors.items() if name not in averaged}
    if averaged:
        state["ema"] = {name.removeprefix(EMA_PREFIX): tensors[name] for name in averaged}
    return state


def _compare_checksums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():  # torch.save compresses nothing
            is_stored = entry.compress_type == zipfile.ZIP_STORED
            # torch takes an entry that is marked as a folder for a tensor without reading values.
            is_folder = bool(entry.external_attr & DOS_FOLDER)
            if is_folder or not is_stored or entry.file_size != entry.compress_size:
                raise ValueError(f"damaged, sizes or marks of {entry.filename} do not fit")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"damaged, the checksum of {damaged} does not fit")


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as handle:
        return handle.read(len(start)) == start


def _reason(path: Path, error: Exception) -> str:
    """Return one line; torch's own advice, to load the file without `weights_only`, is left out."""
    forbidden = FORBIDDEN.search(str(error))
    if forbidden:
        name = forbidden[1] or forbidden[2]
        return f"it asks for {name}, which could run code; only tensors, numbers and texts are read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not path.is_file():
        return "no such file"
    if path.stat().st_size == 0:
        return "it is empty"
    is_zip = _starts_with(path, ZIP_START)
    if not is_zip and (found := other_kind(path)):
        return f"it is {found}"
    if is_zip and path.suffix == ".safetensors":
        return "it is a ZIP archive, as torch.save writes them; name it .pth"
    if isinstance(error, zipfile.BadZipFile | SafetensorError):
        return f"damaged or cut short ({error})"
    if not is_zip:
        return "no file of torch.save, and its name does not end in .safetensors"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
