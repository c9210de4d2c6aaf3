"""The model that a configuration asks for."""

import difflib
import inspect
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from yacs.config import CfgNode

from src.data.yaml_text import MAX_ALIASES, load_checked
from src.models.downloads import fetch_weights
from src.models.integrate_vrt import RGBOnly, VRTWithSpike
from src.models.weights import load_weights, read_torch_file
from src.paths import resolve
from src.utils.attention import ChunkSettings, set_recomputation
from third_party.VRT.models.network_vrt import VRT

NO_FLOW = "none"
logger = logging.getLogger(__name__)


class ZeroFlow(nn.Module):
    """A flow estimator that sees no motion, for a VRT that cannot do without one."""

    def forward(self, ref: torch.Tensor, supp: torch.Tensor) -> list[torch.Tensor]:
        """Return zeros [N, 2, H / 2^k, W / 2^k], k = 0..3, for frames [N, 3, H, W]."""
        del supp
        num, _, height, width = ref.shape
        return [ref.new_zeros(num, 2, height >> k, width >> k) for k in range(4)]


def build_model(
    cfg: CfgNode, *, read_weights: bool = True, vrt_arguments: dict[str, Any] | None = None
) -> nn.Module:
    """Return `VRTWithSpike`, or `RGBOnly` where MODEL.USE_SPIKE is false, on the CPU.

    Random weights depend on `cfg.SEED` alone, and VRT is built first: both kinds start from the
    same VRT. MODEL.SPYNET and MODEL.PRETRAINED are loaded over them.

    With `read_weights` false SPYNET, PRETRAINED and a `spynet_path` among VRT's arguments are not
    read, for a model that gets the weights of a checkpoint anyway. `vrt_arguments` replace the file
    MODEL.VRT_CFG; a checkpoint brings its own, so that it does not change with the file.
    """
    if vrt_arguments is None:
        vrt_arguments = read_vrt_arguments(cfg.MODEL.VRT_CFG)
    model_cfg = cfg.MODEL
    before_vrt = {
        "pixel_unshuffle": model_cfg.PIXEL_UNSHUFFLE,
        "first_estimate": model_cfg.FIRST_ESTIMATE,
        "first_estimate_growth": model_cfg.FIRST_ESTIMATE_GROWTH,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.SEED)
        vrt = build_vrt(cfg, vrt_arguments, read_weights=read_weights)
        if model_cfg.USE_SPIKE:
            model: nn.Module = VRTWithSpike(
                vrt,
                spike_bins=cfg.DATA.K,
                channels_per_scale=model_cfg.CHANNELS_PER_SCALE,
                temporal_strides=model_cfg.SPIKE_ENCODER.TEMPORAL_STRIDES,
                spatial_strides=model_cfg.SPIKE_ENCODER.SPATIAL_STRIDES,
                **_attention_arguments("tsa", model_cfg.SPIKE_TSA),
                **_attention_arguments("fuse", model_cfg.FUSE),
                fuse_time_slope=model_cfg.FUSE.TIME_SLOPE,
                **before_vrt,
            )
        else:
            model = RGBOnly(vrt, **before_vrt)
    set_recomputation(model, attn=model_cfg.USE_CHECKPOINT_ATTN, ffn=model_cfg.USE_CHECKPOINT_FFN)
    if read_weights and model_cfg.PRETRAINED:
        load_weights(model, model_cfg.PRETRAINED)
    return model


def build_vrt(
    cfg: CfgNode, vrt_arguments: dict[str, Any], *, read_weights: bool = True
) -> nn.Module:
    """Return a VRT with the recomputation and the start that the configuration asks for."""
    arguments = vrt_arguments | {
        "use_checkpoint_attn": cfg.MODEL.USE_CHECKPOINT_ATTN,
        "use_checkpoint_ffn": cfg.MODEL.USE_CHECKPOINT_FFN,
    }
    if cfg.MODEL.PIXEL_UNSHUFFLE > 1:
        if cfg.MODEL.SPYNET != NO_FLOW:
            raise ValueError(
                f"MODEL.PIXEL_UNSHUFFLE is {cfg.MODEL.PIXEL_UNSHUFFLE}: the flow estimator needs "
                "frames of three channels; set MODEL.SPYNET none, or PIXEL_UNSHUFFLE 1"
            )
        arguments["in_chans"] = arguments["out_chans"] = 3 * cfg.MODEL.PIXEL_UNSHUFFLE**2
    if not read_weights or cfg.MODEL.SPYNET == NO_FLOW:
        arguments.pop("spynet_path", None)
    if read_weights and not cfg.MODEL.PRETRAINED:  # which holds the flow estimator too
        if cfg.MODEL.SPYNET == NO_FLOW:
            logger.info("no flow estimator: frames are aligned from zero displacement")
        elif cfg.MODEL.SPYNET:
            arguments["spynet_path"] = _spynet_path(cfg.MODEL.SPYNET)
        elif not arguments.get("spynet_path"):
            logger.warning("MODEL.SPYNET is empty: a flow estimator starts from random weights")
    vrt = VRT(**arguments)
    if cfg.MODEL.SPYNET == NO_FLOW:
        vrt.spynet = None if hasattr(vrt, "spynet_is_optional") else ZeroFlow()
    with torch.no_grad():
        for parameter in vrt.conv_last.parameters():
            parameter.mul_(cfg.MODEL.OUTPUT_GAIN)
    return vrt


def _spynet_path(setting: str) -> str:
    if setting == "download":
        return str(fetch_weights("spynet", "or give its path as MODEL.SPYNET"))
    path = resolve(setting)
    try:
        read_torch_file(path, "weights")  # before VRT does, whose errors know no keys
    except ValueError as error:
        raise ValueError(
            f"MODEL.SPYNET: {error}; give a file of the flow estimator, 'download' or 'none'"
        ) from error
    return str(path)


def read_vrt_arguments(path: str | Path) -> dict[str, Any]:
    """Return VRT's constructor arguments from a YAML file."""
    path = resolve(path)
    try:
        arguments = load_checked(path.read_text(encoding="utf-8"), max_aliases=MAX_ALIASES)
    except OSError as error:
        raise ValueError(f"MODEL.VRT_CFG: {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"MODEL.VRT_CFG: {path} is not valid YAML: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"MODEL.VRT_CFG: {path} holds no mapping of VRT's arguments")
    known = list(inspect.signature(VRT).parameters)
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"MODEL.VRT_CFG: {path}: VRT has no argument {name!r}{hint}")
    return arguments


def _attention_arguments(prefix: str, section: CfgNode) -> dict[str, Any]:
    """Return the arguments of `VRTWithSpike` that begin with `prefix`."""
    return {
        f"{prefix}_heads": section.HEADS,
        f"{prefix}_dropout": section.DROPOUT,
        f"{prefix}_mlp_ratio": section.MLP_RATIO,
        f"{prefix}_chunk_cfg": {
            field.name: section[field.name.upper()] for field in fields(ChunkSettings)
        },
    }
