"""Small YAML texts: read plain lines of unknown origin, change single values and keep comments."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

INDENT = 2
MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 20
MAX_ALIASES = 20  # in configurations; so few cannot multiply a text to what fills the memory
MAX_DIGITS = 3500  # 0x and so many digits are a number that Python can still write


def load_plain_mapping(text: str, where: str, max_aliases: int = 0) -> dict[str, object]:
    """Return the mapping that a text of lines `key: value` holds; `where` names it in messages.

    Tags, aliases and what takes long to parse are refused: the text may be of unknown origin.
    """
    try:
        values = load_checked(text, max_aliases=max_aliases)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not a plain YAML file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{where}: expected lines 'key: value', got {type(values).__name__}")
    return values


def load_checked(text: str, loader: type = yaml.SafeLoader, max_aliases: int = 0) -> Any:
    """Return what a YAML text holds; a YAMLError or ValueError where it is not accepted."""
    reason = _refusal(text, max_aliases)
    if reason:
        raise ValueError(reason)
    try:
        return yaml.load(text, loader)  # noqa: S506 (a SafeLoader)
    except ValueError as error:  # such as a date that does not exist
        raise yaml.YAMLError(f"a value cannot be: {error}") from error


def read_small_text(path: Path) -> str:
    """Return the text of a file that a person writes; a ValueError where it is none."""
    size = path.stat().st_size
    if size > MAX_CHARACTERS:
        raise ValueError(f"{path}: {size} bytes; a few thousand are expected")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a plain YAML file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def states_key(path: Path, *keys: str) -> bool:
    """Whether a text file, of another program perhaps, has a line for one of the keys."""
    try:
        with path.open(encoding="utf-8", errors="replace") as handle:
            text = handle.read(MAX_CHARACTERS)
    except OSError:
        return False
    return re.search(rf"^[\"']?({'|'.join(keys)})[\"']?\s*:", text, re.MULTILINE) is not None


def set_value(text: str, keys: Sequence[str], value: str) -> str:
    """Return the YAML text with one value of nested mappings set, its other characters unchanged.

    A value that is there is replaced; a missing key is put before the first one of its mapping.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error
    if node is None:
        return text + ("" if text.endswith("\n") or not text else "\n") + _block(keys, value, 0)
    where = "top level"
    for depth, key in enumerate(keys):
        is_mapping = isinstance(node, yaml.MappingNode)
        if not is_mapping and node.tag != "tag:yaml.org,2002:null":
            raise ValueError(f"{where}: expected a mapping, found {node.value!r}")
        if not node.value:  # an empty mapping, or nothing
            start, stop = node.start_mark.index, node.end_mark.index
            flow = _flow(keys[depth:], value)
            return text[:start] + (flow if is_mapping else f" {flow}") + text[stop:]
        child = next((child for name, child in node.value if name.value == key), None)
        if child is None:
            first = node.value[0][0].start_mark
            entry = _flow(keys[depth:], value)[1:-1] + ", "
            if not node.flow_style:
                indent = " " * first.column
                entry = _block(keys[depth:], value, first.column).lstrip() + indent
            return text[: first.index] + entry + text[first.index :]
        node, where = child, key
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{where}: expected a single value, found a list or a mapping")
    start, stop = node.start_mark.index, node.end_mark.index
    return text[:start] + (value if stop > start else f" {value}") + text[stop:]


def replace_entry(text: str, key: str, value: Any) -> str:
    """Return a YAML text in block form with the top-level entry `key` written anew at its end."""
    root = yaml.compose(text, yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise ValueError("expected lines 'key: value' at the top level")
    keys = [name for name, _ in root.value]
    for name, following in zip(keys, [*keys[1:], None], strict=True):
        if name.value == key:
            stop = len(text) if following is None else following.start_mark.index
            text = text[: name.start_mark.index] + text[stop:]
            break
    if text and not text.endswith("\n"):
        text += "\n"
    return text + yaml.safe_dump({key: value}, sort_keys=False)


def number_text(value: float) -> str:
    """Return a number with six significant digits that YAML reads as a float."""
    text = f"{value:.6g}"
    mantissa, exponent, power = text.partition("e")
    return mantissa + ("" if "." in mantissa else ".0") + exponent + power


def _refusal(text: str, max_aliases: int) -> str | None:
    """Parse a text without building anything; return what is not accepted in it."""
    depth = num_aliases = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            num_aliases += 1
            if num_aliases > max_aliases:
                allowed = f"more than {max_aliases} " if max_aliases else ""
                return f"{allowed}aliases ('*name') are not accepted; write values out"
        elif getattr(event, "tag", None) is not None:
            return f"not a plain YAML file: tags ({event.tag}) are not accepted"
        elif _is_plain(event) and len(event.value) > MAX_DIGITS:
            return f"not a plain YAML file: a value of {len(event.value)} characters; quote a text"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:  # the parser takes quadratic time for it
            return f"nested more than {MAX_DEPTH} levels deep; lines 'key: value' are needed"
    return None


def _is_plain(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.implicit[0]


def _block(keys: Sequence[str], value: str, column: int) -> str:
    lines = [" " * (column + INDENT * depth) + f"{key}:" for depth, key in enumerate(keys)]
    return "\n".join(lines) + f" {value}\n"


def _flow(keys: Sequence[str], value: str) -> str:
    for key in reversed(keys):
        value = f"{{{key}: {value}}}"
    return value
