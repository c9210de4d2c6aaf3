"""Read small YAML files of unknown origin: plain lines, nothing that builds or multiplies."""

import yaml

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 20


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


def _refusal(text: str) -> str | None:
    """Look through a text without building anything; say what is not accepted in it."""
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
