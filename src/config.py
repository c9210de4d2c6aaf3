"""The configuration: one YAML file over the defaults, checked as a whole before anything is built.

The tree is a yacs node that is frozen after loading. All problems of a file and of the
overrides are reported at once, each with the nearest valid key or the values that are allowed.
"""

import difflib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from src.config_schema import FORMER_KEYS, SCHEMA, Key
from src.paths import resolve

logger = logging.getLogger(__name__)

VRT_OPTIONS = "configs/vrt"
# Where they were before configs/vrt; configurations and checkpoints still name it.
OLD_VRT_OPTIONS = "third_party/VRT/options/deblur"


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every problem."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{source}: {len(problems)} problem(s) in the configuration\n{lines}")


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


def walk_schema(tree: dict[str, Any] | None = None, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield every dotted key with its description, in the order of the schema."""
    for name, entry in (SCHEMA if tree is None else tree).items():
        if isinstance(entry, Key):
            yield prefix + name, entry
        else:
            yield from walk_schema(entry, f"{prefix}{name}.")


def get_defaults() -> CfgNode:
    """Return a new tree with every key at its default."""
    root = CfgNode()
    for dotted, key in walk_schema():
        _assign(root, dotted, _default(key))
    return root


def load_config(
    path: str | Path, overrides: list[str] | None = None, *, check_paths: bool = True
) -> CfgNode:
    """Return the frozen configuration of a YAML file with `KEY VALUE` overrides.

    Args:
        path: The YAML file; relative paths are taken from the current directory, then from the
            repository root.
        overrides: A flat list `[KEY, VALUE, KEY, VALUE, ...]`; keys are dotted.
        check_paths: Also require that the folders and files named in it exist.

    Raises:
        ConfigError: Everything that is wrong, in one message.
    """
    path = Path(path) if Path(path).exists() else resolve(path)
    given = _read_yaml(path)
    problems: list[str] = []
    values = dict(_flatten(given, problems))
    values.update(_parse_overrides(overrides or [], problems))
    return _build(values, problems, str(path), check_paths)


def twin_overrides(cfg: CfgNode) -> list[str]:
    """Return the overrides that turn a configuration into its RGB-only twin.

    Same data, seed, steps, schedule and initial VRT weights; only the spikes are missing.
    """
    return ["EXP_NAME", f"{cfg.EXP_NAME}_rgb_twin", "MODEL.USE_SPIKE", "false"]


def config_from_text(text: str, source: str, overrides: list[str] | None = None) -> CfgNode:
    """Return the frozen configuration stored as text in a checkpoint; paths are not checked."""
    problems: list[str] = []
    values = dict(_flatten(yaml.load(text, _Loader), problems))  # noqa: S506 (a SafeLoader)
    values.update(_parse_overrides(overrides or [], problems))
    return _build(values, problems, source, check_paths=False)


def config_to_text(cfg: CfgNode) -> str:
    """Return the full configuration as YAML text, readable by `config_from_text`."""
    return cfg.dump(sort_keys=False)


def _build(values: dict[str, Any], problems: list[str], source: str, check_paths: bool) -> CfgNode:
    cfg = get_defaults()
    keys = dict(walk_schema())
    for dotted, value in values.items():
        if dotted not in keys:
            problems.append(_unknown(dotted, keys))
            continue
        converted, problem = _convert(dotted, value, keys[dotted])
        if problem:
            problems.append(problem)
        else:
            _assign(cfg, dotted, converted)
    if not cfg.EXP_NAME:
        cfg.EXP_NAME = Path(source).stem
    cfg.MODEL.VRT_CFG = _moved_options(cfg.MODEL.VRT_CFG)
    problems.extend(_cross_checks(cfg))
    if check_paths:
        problems.extend(_missing_paths(cfg))
    if problems:
        raise ConfigError(source, problems)
    cfg.freeze()
    return cfg


def _moved_options(path: str) -> str:
    """Return the path of VRT's options; an old path of a file that has moved is replaced."""
    old, new = resolve(path), f"{VRT_OPTIONS}/{Path(path).name}"
    if old.parent != resolve(OLD_VRT_OPTIONS) or old.is_file() or not resolve(new).is_file():
        return path
    logger.warning("MODEL.VRT_CFG: %s does not exist, %s is read", path, new)
    return new


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not valid YAML: {error}"]) from error
    if not isinstance(given, dict):
        raise ConfigError(str(path), ["holds no mapping of keys to values"])
    return given


def _flatten(
    given: dict[str, Any], problems: list[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    sections = {name.rpartition(".")[0] for name, _ in walk_schema()}
    parents = {".".join(s.split(".")[:i]) for s in sections for i in range(1, s.count(".") + 2)}
    for name, value in given.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flatten(value, problems, dotted + ".")
        elif dotted in parents:
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
        overrides = overrides[:-1]
    keys, parsed = dict(walk_schema()), {}
    for dotted, text in zip(overrides[::2], overrides[1::2], strict=True):
        if dotted in keys and isinstance(keys[dotted].default, str):
            parsed[dotted] = text  # a name like 007 or on stays as it was typed
            continue
        try:
            parsed[dotted] = yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
        except yaml.YAMLError:
            parsed[dotted] = text
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


def _convert(dotted: str, value: Any, key: Key) -> tuple[Any, str | None]:
    """Return the value in the type of the default, or a sentence that says what is wrong."""
    wanted = key.rule[0] if key.rule else f"a value like {key.default!r}"
    if isinstance(key.default, int) and not isinstance(key.default, bool):
        wanted = wanted.replace("a number", "a whole number")
    problem = f"{dotted}: expected {wanted}, got {value!r}"
    value = key.spellings.get(str(value).lower(), value)
    if isinstance(key.default, list):
        if not isinstance(value, list | tuple):
            return None, problem
        value = [_as(key.default[0], element) for element in value]
        failed = any(element is None for element in value)
    else:
        value = _as(key.default, value)
        failed = value is None
    if failed or key.rule and not key.rule[1](value):
        return None, problem
    return value, None


def _as(example: Any, value: Any) -> Any:
    """Return `value` in the type of `example`, or None where it does not fit."""
    if isinstance(example, bool) or isinstance(value, bool):
        return value if isinstance(example, bool) and isinstance(value, bool) else None
    if isinstance(example, float) and isinstance(value, int | float | str):
        try:
            number = float(value)  # YAML 1.1 reads 2e-4 as a string
        except ValueError:
            return None
        return number if number - number == 0 else None  # neither inf nor nan
    if isinstance(example, str) and isinstance(value, int | float):
        return str(value)  # a name like 007
    return value if isinstance(value, type(example)) else None


def _cross_checks(cfg: CfgNode) -> Iterator[str]:
    channels = cfg.MODEL.CHANNELS_PER_SCALE
    if len(channels) != cfg.MODEL.LAYERS:
        yield f"MODEL.CHANNELS_PER_SCALE: {channels} has {len(channels)} entries; needed are 4"
    for part in ("SPIKE_TSA", "FUSE"):
        heads = cfg.MODEL[part].HEADS
        if any(c % heads for c in channels):
            yield f"MODEL.{part}.HEADS: {heads} does not divide all CHANNELS_PER_SCALE {channels}"
    for name in ("TEMPORAL_STRIDES", "SPATIAL_STRIDES"):
        strides = cfg.MODEL.SPIKE_ENCODER[name]
        if len(strides) != cfg.MODEL.LAYERS - 1:
            yield f"MODEL.SPIKE_ENCODER.{name}: {strides} needs one entry for each of scales 2-4"
    if 0 < cfg.VAL.TILE_SIZE <= cfg.VAL.OVERLAP_SIZE:
        yield f"VAL.OVERLAP_SIZE: {cfg.VAL.OVERLAP_SIZE} is not below TILE_SIZE {cfg.VAL.TILE_SIZE}"
    if 0 < cfg.VAL.TILE_FRAMES <= cfg.VAL.OVERLAP_FRAMES:
        yield (
            f"VAL.OVERLAP_FRAMES: {cfg.VAL.OVERLAP_FRAMES} must be below TILE_FRAMES "
            f"{cfg.VAL.TILE_FRAMES}"
        )
    if cfg.LOSS.CHARBONNIER.WEIGHT == 0 and cfg.LOSS.VGG_PERCEPTUAL.WEIGHT == 0:
        yield "LOSS: both weights are 0, there is nothing to minimise"
    yield from _frozen_twice(cfg)
    if cfg.TRAIN.SCHED.ETA_MIN > cfg.TRAIN.OPTIM.LR:
        yield (
            f"TRAIN.SCHED.ETA_MIN: {cfg.TRAIN.SCHED.ETA_MIN} is above TRAIN.OPTIM.LR "
            f"{cfg.TRAIN.OPTIM.LR}"
        )


def _frozen_twice(cfg: CfgNode) -> Iterator[str]:
    for part in cfg.TRAIN.FREEZE:
        group = cfg.TRAIN.GROUPS[part.upper()]
        if group.FREEZE_STEPS or group.LR_MULTIPLIER != 1.0:
            yield (
                f"TRAIN.GROUPS.{part.upper()}: {part} is in TRAIN.FREEZE and never trained; take "
                "it out there, or leave FREEZE_STEPS 0 and LR_MULTIPLIER 1"
            )


def _missing_paths(cfg: CfgNode) -> Iterator[str]:
    if not resolve(cfg.DATA.ROOT).is_dir() and not cfg.DATA.DEMO:
        yield (
            f"DATA.ROOT: folder {cfg.DATA.ROOT} does not exist; give the folder that holds "
            f"{cfg.DATA.TRAIN_SPLIT}/ and {cfg.DATA.VAL_SPLIT}/"
        )
    if not resolve(cfg.MODEL.VRT_CFG).is_file():
        yield f"MODEL.VRT_CFG: file {cfg.MODEL.VRT_CFG} does not exist"
    for dotted, key in walk_schema():
        value = _lookup(cfg, dotted)
        if key.optional_path and value and not resolve(value).is_file():
            yield f"{dotted}: file {value} does not exist"


def _default(key: Key) -> Any:
    return [v for v in key.default if v != ""] if isinstance(key.default, list) else key.default


def _assign(root: CfgNode, dotted: str, value: Any) -> None:
    *sections, name = dotted.split(".")
    for section in sections:
        root = root.setdefault(section, CfgNode())
    root[name] = value


def _lookup(root: CfgNode, dotted: str) -> Any:
    for name in dotted.split("."):
        root = root[name]
    return root
