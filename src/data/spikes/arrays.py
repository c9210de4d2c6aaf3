"""One array out of a `.npy`, `.npz` or `.h5` file; nothing in the file is executed or followed."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

H5_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (".npy", ".npz", *H5_SUFFIXES)


def read_array(path: str | Path, key: str | None = None) -> np.ndarray:
    """Read one array whole from `.npy`, `.npz` or `.h5`.

    Args:
        path: the file.
        key: name of the array in an `.npz`, path of the data set in an `.h5`; None if it holds one
            only.

    Raises:
        ValueError: another file type, a damaged file, a key that is missing or needed, or what
            could run code or read other files: pickles, references, links, external storage.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return _without_pickle(path)
    if path.suffix.lower() == ".npz":
        return _from_npz(path, key)
    with open_h5(path, key) as dataset:
        return dataset[()]


def array_shape(path: str | Path, key: str | None = None) -> tuple[int, ...]:
    """Return the shape of the array that `read_array` would read; only its header is read.

    Raises:
        ValueError: see `read_array`.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return map_npy(path).shape
    if path.suffix.lower() != ".npz":
        with open_h5(path, key) as dataset:
            return dataset.shape
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            with archive.open(f"{_choose(names, key)}.npy") as member:
                return read_npy_header(member)[0]
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error


def read_npy_header(member: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array; return its shape, whether it is column-major, and its type.

    Raises:
        ValueError: this is no `.npy` data.
    """
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def map_npy(path: str | Path) -> np.ndarray:
    """Return a `.npy` file as a read-only memory map: only what is looked at is read.

    Raises:
        ValueError: a pickle, or a damaged file.
    """
    return _without_pickle(Path(path), mmap_mode="r")


@contextmanager
def open_h5(path: str | Path, key: str | None = None) -> Iterator[h5py.Dataset]:
    """Yield one data set of an `.h5` file, opened for reading; slicing it reads that part only.

    Raises:
        ValueError: see `read_array`.
    """
    path = Path(path)
    if path.suffix.lower() not in H5_SUFFIXES:
        raise ValueError(f"{path}: one of {', '.join(ARRAY_SUFFIXES)} is needed")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as .h5: {error}") from error
    with file:
        yield _dataset(path, file, key)


def _without_pickle(path: Path, mmap_mode: str | None = None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: is an .npz archive; rename it")
    return array


def _from_npz(path: Path, key: str | None) -> np.ndarray:
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError("is a single array; rename it to .npy")
        with archive:
            array = archive[_choose(archive.files, key)]
    except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: {key!r} is not an array")
    return array


def _choose(names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        raise ValueError(f"holds {len(names)} arrays, {names}; say with --key which one is meant")
    if key not in names:
        raise ValueError(f"key {key!r} is not one of {names}; say which array is meant")
    return key


def _dataset(path: Path, file: h5py.File, key: str | None) -> h5py.Dataset:
    """Return the data set `key` of an open file, or the only one."""
    names: list[str] = []
    # Follows hard links only, so nothing outside the file is opened.
    file.visititems(lambda name, item: names.append(name) if _is_dataset(item) else None)
    wanted = None if key is None else key.strip("/")
    if wanted is not None and wanted not in names:
        link = _link_on_the_way(file, wanted)
        if link is not None:
            raise ValueError(
                f"{path}: {key!r} is {link}, and links are not followed; name the data set itself, "
                f"one of {names}"
            )
    try:
        dataset = file[_choose(names, wanted)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _refuse_strange(path, dataset)
    return dataset


def _is_dataset(item: object) -> bool:
    return isinstance(item, h5py.Dataset)


def _link_on_the_way(file: h5py.File, key: str) -> str | None:
    """Return what kind of link a part of the path is, None where all are plain names."""
    group: h5py.Group = file
    for part in key.split("/"):
        names = list(group.keys())  # `in` would look for the target of a link
        link = group.get(part, getlink=True) if part in names else None
        if isinstance(link, h5py.ExternalLink):
            return f"an external link to {link.path!r} in {link.filename!r}"
        if isinstance(link, h5py.SoftLink):
            return f"a soft link to {link.path!r}"
        if link is None or not isinstance(group[part], h5py.Group):
            return None
        group = group[part]
    return None


def _refuse_strange(path: Path, dataset: h5py.Dataset) -> None:
    """Refuse types that are no plain numbers, and data that lies in other files."""
    if dataset.dtype.hasobject or dataset.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: {dataset.name} has type {dataset.dtype}; plain numbers are needed (no "
            "objects, references, texts or lists of varying length)"
        )
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{path}: {dataset.name} keeps its data in other files; copy it into one")
