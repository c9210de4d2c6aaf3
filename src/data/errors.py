"""What cannot be read: the error inside the data code, and the value a loader hands on instead."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class BadFileError(ValueError):
    """One file cannot be used; its sample is dropped, the others go on."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DataSetError(ValueError):
    """The data set as a whole cannot be used; the message lists every problem."""

    def __init__(self, where: str, problems: Iterable[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{where}: {len(self.problems)} problem(s) in the data\n{lines}")

    def __reduce__(self) -> tuple:
        return (type(self), (self.where, self.problems))  # travels between processes


def refuse_undecodable(paths: Iterable[Path]) -> None:
    r"""Refuse names whose bytes are no UTF-8: they cannot be printed, nor written into a text.

    Raises:
        DataSetError: one of them, with the bytes that are not understood as `\xfc`.
    """
    for path in paths:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(path.name).decode(errors="backslashreplace")
            reason = f"the name {shown} is not UTF-8, from another system perhaps; rename it"
            raise DataSetError(str(path.parent), [reason]) from error


def problems_of(error: BadFileError | DataSetError) -> list[str]:
    """Return the problems of an error as lines, each with the place it was found at."""
    if isinstance(error, DataSetError):
        return [f"{error.where}: {problem}" for problem in error.problems]
    return [str(error)]


@dataclass(frozen=True)
class BadSample:
    """Stands in a batch for a sample that could not be made.

    Attributes:
        name: sequence and frames, for the log.
        reason: the file and what is wrong with it.
    """

    name: str
    reason: str
