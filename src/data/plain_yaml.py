"""Read small YAML files of unknown origin: plain lines, nothing that builds or multiplies."""

import yaml

MAX_CHARACTERS = 1 << 20


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
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError(f"{where}: aliases ('*name') are not accepted; write values out")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{where}: not a plain YAML file: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{where}: expected lines 'key: value', got {type(values).__name__}")
    return values
