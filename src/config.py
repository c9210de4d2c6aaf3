"""The configuration: one YAML file over the defaults, checked as a whole before anything is built.

The tree is a yacs node that is frozen after loading. All problems of a file and of the
overrides are reported at once, each with the nearest valid key or the values that are allowed.
"""

import difflib
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from src.config_schema import FORMER_KEYS, SCHEMA, Key
from src.data.yaml_text import MAX_ALIASES, load_checked
from src.paths import resolve

logger = logging.getLogger(__name__)

VRT_OPTIONS = "configs/vrt"
# Where they were before; configurations and checkpoints still name it.
OLD_VRT_OPTIONS = "third_party/VRT/options/deblur"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every problem."""

    def __init__(self, origin: str, problems: list[str]) -> None:
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{origin}: {len(problems)} problem(s) in the configuration\n{lines}")


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key given twice in one mapping."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    names = [loader.construct_object(key) for key, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {name!r} is given twice", node.start_mark
            )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def walk_schema(tree: dict[str, Any] = SCHEMA, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield every dotted key with its description, in the order of the schema."""
    for name, entry in tree.items():
        if isinstance(entry, Key):
            yield prefix + name, entry
        else:
            yield from walk_schema(entry, f"{prefix}{name}.")


def lookup(cfg: CfgNode, dotted: str) -> Any:
    """Return the value of a dotted key."""
    for name in dotted.split("."):
        cfg = cfg[name]
    return cfg


def _assign(cfg: CfgNode, dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        cfg = cfg.setdefault(section, CfgNode())
    cfg[name] = value


def get_defaults() -> CfgNode:
    """Return a new tree with every key at its default."""
    root = CfgNode()
    for dotted, key in walk_schema():
        is_list = isinstance(key.default, list)
        _assign(root, dotted, [v for v in key.default if v != ""] if is_list else key.default)
    return root


def load_config(
    path: str | Path, overrides: list[str] | None = None, *, check_paths: bool = True
) -> CfgNode:
    """Return the frozen configuration of a YAML file with overrides `[KEY, VALUE, KEY, ...]`.

    A relative path is taken from the current directory, then from the repository root. With
    `check_paths` the folders and files named in the file must exist.

    Raises:
        ConfigError: Everything that is wrong, in one message.
    """
    path = Path(path) if Path(path).exists() else resolve(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"not valid YAML: {error}"]) from error
    return config_from_text(text, str(path), overrides, check_paths=check_paths)


def rgb_only_overrides(cfg: CfgNode) -> list[str]:
    """Return the overrides that turn a configuration into its RGB-only baseline."""
    return ["EXP_NAME", f"{cfg.EXP_NAME}_rgb_twin", "MODEL.USE_SPIKE", "false"]


def config_from_text(
    text: str, origin: str, overrides: list[str] | None = None, *, check_paths: bool = False
) -> CfgNode:
    """Return the frozen configuration of a YAML text, such as the one in a checkpoint."""
    try:
        given = load_checked(text, _Loader, MAX_ALIASES)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(origin, [f"not valid YAML: {error}"]) from error
    if not isinstance(given, dict):
        raise ConfigError(origin, ["holds no mapping of keys to values"])
    cfg, keys, problems = get_defaults(), dict(walk_schema()), []
    values = dict(_flatten(given, problems))
    for dotted, value in (values | _parse_overrides(overrides or [], problems)).items():
        if dotted not in keys:
            problems.append(_unknown(dotted, keys))
            continue
        converted = _convert(value, keys[dotted])
        if converted is None:
            problems.append(f"{dotted}: expected {allowed(keys[dotted])}, got {value!r}")
        else:
            _assign(cfg, dotted, converted)
    cfg.EXP_NAME = cfg.EXP_NAME or Path(origin).stem
    cfg.MODEL.VRT_CFG = _moved_options(cfg.MODEL.VRT_CFG)
    problems.extend(_cross_checks(cfg))
    if check_paths:
        problems.extend(_missing_paths(cfg))
    if problems:
        raise ConfigError(origin, problems)
    cfg.freeze()
    return cfg


def config_to_text(cfg: CfgNode) -> str:
    """Return the full configuration as YAML text, readable by `config_from_text`."""
    return cfg.dump(sort_keys=False)


def allowed(key: Key) -> str:
    """Return in words which values a key may take."""
    if key.rule is not None:
        is_whole = isinstance(key.default, int) and not isinstance(key.default, bool)
        return key.rule[0].replace("a number", "a whole number") if is_whole else key.rule[0]
    if key.optional_path:
        return "a file that exists, or empty"
    kinds = {bool: "true or false", str: "text", float: "a number", list: "a list of texts"}
    return kinds[type(key.default)]


def _moved_options(path: str) -> str:
    """Return the path of VRT's options; an old path of a file that has moved is replaced."""
    old, new = resolve(path), f"{VRT_OPTIONS}/{Path(path).name}"
    if old.parent != resolve(OLD_VRT_OPTIONS) or old.is_file() or not resolve(new).is_file():
        return path
    logger.warning("MODEL.VRT_CFG: %s does not exist, %s is read", path, new)
    return new


@cache
def _sections() -> set[str]:
    keys = [key for key, _ in walk_schema()]
    return {key[:i] for key in keys for i, character in enumerate(key) if character == "."}


def _flatten(
    given: dict[str, Any], problems: list[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flatten(value, problems, dotted + ".")
        elif dotted in _sections():
            problems.append(f"{dotted}: expected a section of keys, got {value!r}")
        else:
            yield dotted, value


def _parse_overrides(overrides: list[str], problems: list[str]) -> dict[str, Any]:
    if len(overrides) % 2:
        files = [text for text in overrides if text.endswith((".yaml", ".yml"))]
        advice = f"; for a configuration write --config {files[0]}" if files else ""
        problems.append(
            f"overrides come in pairs KEY VALUE; the last one is {overrides[-1]!r}{advice}"
        )
    keys, parsed = dict(walk_schema()), dict(zip(overrides[::2], overrides[1::2], strict=False))
    for dotted, text in parsed.items():
        if dotted in keys and isinstance(keys[dotted].default, str):
            continue  # a name like 007 or on stays as it was typed
        try:
            parsed[dotted] = load_checked(text, _Loader)
        except (yaml.YAMLError, ValueError):
            continue
    return parsed


def _unknown(dotted: str, keys: dict[str, Key]) -> str:
    upper, name = dotted.upper(), dotted.upper().rpartition(".")[2]  # every known key is upper case
    near = difflib.get_close_matches(upper, keys, n=1, cutoff=0.6)
    if name in FORMER_KEYS:
        near = [FORMER_KEYS[name]]
    elif not near:
        last = {key.rpartition(".")[2]: key for key in keys}
        near = [last[n] for n in difflib.get_close_matches(name, last, n=1)]
    return f"{dotted}: unknown key" + (f"; did you mean '{near[0]}'?" if near else "")


def _convert(value: Any, key: Key) -> Any:
    """Return the value in the type of the default, or None if it does not fit."""
    value = key.spellings.get(str(value).lower(), value)
    if isinstance(key.default, list):
        if not isinstance(value, list | tuple):
            return None
        value = [_as(key.default[0], element) for element in value]
        if None in value:
            return None
    else:
        value = _as(key.default, value)
    return None if value is None or key.rule and not key.rule[1](value) else value


def _as(example: Any, value: Any) -> Any:
    """Return `value` in the type of `example`, or None if it does not fit."""
    if isinstance(example, bool) or isinstance(value, bool):
        return value if isinstance(example, bool) and isinstance(value, bool) else None
    if isinstance(example, float) and isinstance(value, int | float | str):
        try:
            number = float(value)  # YAML 1.1 reads 2e-4 as a string
        except (OverflowError, ValueError):
            return None
        return number if number - number == 0 else None  # neither inf nor nan
    if isinstance(example, str) and isinstance(value, int | float):
        return str(value)  # a name like 007
    return value if isinstance(value, type(example)) else None


def _cross_checks(cfg: CfgNode) -> Iterator[str]:
    val, train = cfg.VAL, cfg.TRAIN
    yield from _model_checks(cfg.MODEL)
    for what in ("SIZE", "FRAMES"):
        tile, overlap = val[f"TILE_{what}"], val[f"OVERLAP_{what}"]
        if 0 < tile <= overlap:
            yield f"VAL.OVERLAP_{what}: {overlap} is not below TILE_{what} {tile}"
    if cfg.LOSS.CHARBONNIER.WEIGHT == 0 and cfg.LOSS.VGG_PERCEPTUAL.WEIGHT == 0:
        yield "LOSS: both weights are 0, there is nothing to minimise"
    for part in train.FREEZE:
        if _has_rule(train.GROUPS[part.upper()]):
            yield (
                f"TRAIN.GROUPS.{part.upper()}: {part} is in TRAIN.FREEZE and never trained; remove "
                "it there, or leave FREEZE_STEPS 0 and LR_MULTIPLIER 1"
            )
    yield from _refinement_checks(cfg)
    if train.SCHED.ETA_MIN > train.OPTIM.LR:
        yield f"TRAIN.SCHED.ETA_MIN: {train.SCHED.ETA_MIN} is above OPTIM.LR {train.OPTIM.LR}"


def _model_checks(model: CfgNode) -> Iterator[str]:
    channels = model.CHANNELS_PER_SCALE
    if len(channels) != model.LAYERS:
        yield f"MODEL.CHANNELS_PER_SCALE: {channels} has {len(channels)} entries; needed are 4"
    for part in ("SPIKE_TSA", "FUSE"):
        heads = model[part].HEADS
        if any(c % heads for c in channels):
            yield f"MODEL.{part}.HEADS: {heads} does not divide all CHANNELS_PER_SCALE {channels}"
    for name, strides in model.SPIKE_ENCODER.items():
        if len(strides) != model.LAYERS - 1:
            yield f"MODEL.SPIKE_ENCODER.{name}: {strides} needs one entry for each of scales 2-4"


def _refinement_checks(cfg: CfgNode) -> Iterator[str]:
    groups, model = cfg.TRAIN.GROUPS, cfg.MODEL
    if not _has_rule(groups.REFINEMENT):
        return
    if not model.FIRST_ESTIMATE:
        yield "TRAIN.GROUPS.REFINEMENT: MODEL.FIRST_ESTIMATE is 0, there is nothing to refine"
    if groups.REFINEMENT.FREEZE_STEPS and model.OUTPUT_GAIN:
        yield (
            "TRAIN.GROUPS.REFINEMENT.FREEZE_STEPS: needs MODEL.OUTPUT_GAIN 0, so that an "
            "untrained VRT leaves the first estimate as it is"
        )
    if cfg.TRAIN.FREEZE or sum(map(_has_rule, groups.values())) > 1:
        yield "TRAIN.GROUPS.REFINEMENT: cannot be combined with SPYNET, DEFORM, TRAIN.FREEZE"


def _has_rule(group: CfgNode) -> bool:
    return group.FREEZE_STEPS > 0 or group.LR_MULTIPLIER != 1.0


def _missing_paths(cfg: CfgNode) -> Iterator[str]:
    if not resolve(cfg.DATA.ROOT).is_dir() and not cfg.DATA.DEMO:
        yield (
            f"DATA.ROOT: folder {cfg.DATA.ROOT} does not exist; give the folder that holds "
            f"{cfg.DATA.TRAIN_SPLIT}/ and {cfg.DATA.VAL_SPLIT}/"
        )
    if not resolve(cfg.MODEL.VRT_CFG).is_file():
        yield f"MODEL.VRT_CFG: file {cfg.MODEL.VRT_CFG} does not exist"
    for dotted, key in walk_schema():
        value = lookup(cfg, dotted)
        if key.optional_path and value and not resolve(value).is_file():
            yield f"{dotted}: file {value} does not exist"
