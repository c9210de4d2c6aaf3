"""Weights of VRT and of its flow estimator, read from files."""

import hashlib
import logging
import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

SPYNET_URL = (
    "https://github.com/JingyunLiang/VRT/releases/download/v0.0/spynet_sintel_final-3d2a1287.pth"
)
# The convention of torch.hub, name-<first digits of SHA-256>.pth; digits alone are a date.
HASH_IN_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.[^.]+$")
# What torch.load raises on bytes that it did not write, such as a page of a web server.
UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict, bare or nested under `params`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file's name carries a hash that its bytes do not have, it is damaged, or
            it holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    check_hash(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged or no weight file: fetch it again") from error
    if isinstance(content, dict) and "params" in content:
        content = content["params"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict, neither bare nor under 'params'")
    return content


def check_hash(path: Path) -> None:
    """Compare the SHA-256 of a file with the prefix in its name, `name-<hash>.pth`, if any.

    Raises:
        ValueError: they differ.
    """
    named = HASH_IN_NAME.search(path.name)
    if named is None:
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(named[1]):
        raise ValueError(
            f"{path}: SHA-256 begins with {found[: len(named[1])]}, its name says {named[1]}; "
            "the file is damaged: delete it and fetch it again"
        )


def load_official(vrt: nn.Module, path: str | Path) -> None:
    """Load an official restoration file into a VRT, strictly.

    Args:
        vrt: a VRT built with the arguments of that task.
        path: the file; weights nested under `params` or bare.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a damaged file.
        RuntimeError: keys or shapes are not those of this network.
    """
    vrt.load_state_dict(read_weights(path), strict=True)
    logger.info("VRT weights: %s", path)


def load_spynet(spynet: nn.Module, path: str | Path) -> None:
    """Load the flow estimator's convolutions; `mean` and `std` may be missing in the file.

    Args:
        spynet: the estimator.
        path: the file; a key prefix `spynet.` is accepted.

    Raises:
        FileNotFoundError: there is no such file; says where to get it.
        ValueError: a damaged file.
        RuntimeError: keys or shapes are not those of the estimator.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no flow estimator weights at {path}; they are at {SPYNET_URL}")
    state = {key.removeprefix("spynet."): value for key, value in read_weights(path).items()}
    spynet.load_state_dict({"mean": spynet.mean, "std": spynet.std, **state}, strict=True)
    logger.info("flow estimator weights: %s", path)
