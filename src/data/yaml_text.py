"""Small YAML texts: read plain lines of unknown origin, change single values and keep comments."""

from collections.abc import Mapping
from typing import Any

import yaml

INDENT = 2
MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 20

Edit = tuple[int, int, str]  # replace text[start:stop]


def load_plain_mapping(text: str, where: str) -> dict[str, object]:
    """Return the mapping that a text holds.

    Args:
        text: lines `key: value`.
        where: what the messages name.

    Raises:
        ValueError: too long, no YAML, with tags or aliases, or no mapping of texts.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: {len(text)} characters; a few thousand are expected")
    try:
        reason = _refusal(text)
        values = None if reason else yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{where}: not a plain YAML file: {error}") from error
    if reason:
        raise ValueError(f"{where}: {reason}")
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{where}: expected lines 'key: value', got {type(values).__name__}")
    return values


def set_values(text: str, values: Mapping[str, Any]) -> str:
    """Return the text with some values of nested mappings set.

    Args:
        text: YAML whose top level is a mapping, or nothing.
        values: nested mappings with texts or numbers at the ends. Keys that are there get their
            value replaced where it stands; missing ones are put before the first key of their
            mapping.

    Raises:
        ValueError: the text is no such YAML, or a mapping is needed where a value stands.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error
    if root is None:
        return text + ("" if text.endswith("\n") or not text else "\n") + _block(values, 0)
    edits = list(_edits(root, values, "top level"))
    for start, stop, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[stop:]
    return text


def replace_entry(text: str, key: str, value: Any) -> str:
    """Return the text without the top-level entry `key`, and with it written anew at the end.

    Raises:
        ValueError: the text is not a YAML mapping in block form.
    """
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


def _refusal(text: str) -> str | None:
    """Parse a text without building anything; return what is not accepted in it."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            return "aliases ('*name') are not accepted; write values out"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:  # the parser takes quadratic time for it
            return f"nested more than {MAX_DEPTH} levels deep; lines 'key: value' are needed"
    return None


def _edits(node: yaml.Node, values: Mapping[str, Any], where: str) -> list[Edit]:
    if not isinstance(node, yaml.MappingNode):
        if node.tag != "tag:yaml.org,2002:null":
            raise ValueError(f"{where}: expected a mapping, found {node.value!r}")
        return [(node.start_mark.index, node.end_mark.index, " " + _flow(values))]
    if not node.value:
        return [(node.start_mark.index, node.end_mark.index, _flow(values))]
    present = {key.value: value for key, value in node.value}
    edits: list[Edit] = []
    for key in values.keys() & present.keys():
        edits += _replacement(present[key], values[key], key)
    missing = {key: value for key, value in values.items() if key not in present}
    if missing:
        first = node.value[0][0].start_mark
        if node.flow_style:
            inserted = _flow(missing)[1:-1] + ", "
        else:
            inserted = _block(missing, first.column).lstrip() + " " * first.column
        edits.append((first.index, first.index, inserted))
    return edits


def _replacement(node: yaml.Node, value: Any, key: str) -> list[Edit]:
    if isinstance(value, Mapping):
        return _edits(node, value, key)
    if not isinstance(node, yaml.ScalarNode):
        raise ValueError(f"{key}: expected a single value, found a list or a mapping")
    start, stop = node.start_mark.index, node.end_mark.index
    return [(start, stop, str(value) if stop > start else f" {value}")]


def _block(values: Mapping[str, Any], column: int) -> str:
    text = ""
    for key, value in values.items():
        if isinstance(value, Mapping):
            text += f"{' ' * column}{key}:\n" + _block(value, column + INDENT)
        else:
            text += f"{' ' * column}{key}: {value}\n"
    return text


def _flow(values: Mapping[str, Any]) -> str:
    parts = [
        f"{key}: {_flow(value) if isinstance(value, Mapping) else value}"
        for key, value in values.items()
    ]
    return "{" + ", ".join(parts) + "}"
