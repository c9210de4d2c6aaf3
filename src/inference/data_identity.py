"""On what kind of data a model was trained and is tested: scores compare only where these agree."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from src.data.description import (
    DataDescription,
    description_differences,
    description_from_text,
    description_to_text,
    read_description,
)
from src.paths import resolve

logger = logging.getLogger(__name__)

LEVELS_ABOVE = 3  # SEQ/blur, SEQ, SPLIT, ROOT


def describe_root(root: str | Path) -> str:
    """Return the description of a data root as text, empty where it has none."""
    description = read_description(resolve(root))
    return "" if description is None else description_to_text(description)


def describe_folder(folder: Path) -> str:
    """Return the description of the data root that a folder of frames lies in, else an empty text.

    Raises:
        DescriptionError: there is a dataset.yaml that cannot be read.
    """
    folder = folder.resolve()
    for place in (folder, *list(folder.parents)[:LEVELS_ABOVE]):
        description = read_description(place)
        if description is not None:
            return description_to_text(description)
    return ""


def compare_data(trained_on: str, tested_on: str) -> dict[str, Any]:
    """Say on what a model was trained and tested, and warn where the kind of data differs.

    Which sequences they are does not matter: a test set is another one. What matters is how blur
    and spikes were made.

    Args:
        trained_on: description in the checkpoint, empty where it has none.
        tested_on: description of the tested data, empty where it has none.

    Returns:
        Both and their differences, for the report.

    Raises:
        DescriptionError: a text is no description.
    """
    differences = []
    if trained_on and tested_on:
        differences = description_differences(
            _kind(trained_on, "the checkpoint"), _kind(tested_on, "the tested data")
        )
    if differences:
        logger.warning(
            "trained on another kind of data than this: %s; the scores say nothing about data of "
            "the kind it was trained on",
            "; ".join(differences),
        )
    return {"trained_on": trained_on, "tested_on": tested_on, "differences": differences}


def _kind(text: str, where: str) -> DataDescription:
    description = description_from_text(text, f"data description of {where}")
    return dataclasses.replace(description, source="any", offsets=(), fingerprint=())
