"""Files that a source hands on as they are: copied whole, known by their size and ends."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from src.data.errors import BadFileError, DataSetError
from src.data.frames import is_cut_short
from src.paths import atomic_write

STREAM_NAME = "spike.dat"
HASHED_PIECE_BYTES = 16 << 10


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file, whole or not at all.

    Raises:
        BadFileError: the source cannot be read.
    """
    with atomic_write(target) as partial:
        try:
            shutil.copyfile(source, partial)
        except OSError as error:
            raise BadFileError(source, f"cannot be copied: {error.strerror}") from error


def file_size(path: Path) -> int:
    """Return the bytes of a file.

    Raises:
        BadFileError: it is not there, or a link that leads nowhere.
    """
    try:
        return path.stat().st_size
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error


def refuse_cut_short(where: str, images: Sequence[Path]) -> None:
    """Refuse images that are copied without being decoded and whose end is missing.

    Raises:
        DataSetError: all of them, by name.
    """
    problems = [
        f"{path}: empty, or its end is missing; copy or download it again"
        for path in images
        if is_cut_short(path)
    ]
    if problems:
        raise DataSetError(where, problems)


def sample_sha256(paths: Sequence[Path]) -> str:
    """Hash pieces of the first, the middle and the last of files; see `pieces_sha256`.

    Raises:
        BadFileError: a file cannot be read.
    """
    return pieces_sha256([paths[i] for i in sorted({0, len(paths) // 2, len(paths) - 1})])


def pieces_sha256(paths: Sequence[Path]) -> str:
    """Hash the first, middle and last bytes of files, in order.

    Tells other recordings of the same size apart; a change of a few bytes elsewhere is not seen.

    Raises:
        BadFileError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = file_size(path)
        last = max(size - HASHED_PIECE_BYTES, 0)
        try:
            with path.open("rb") as handle:
                for start in (0, last // 2, last):
                    handle.seek(start)
                    digest.update(handle.read(HASHED_PIECE_BYTES))
        except OSError as error:
            raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()
