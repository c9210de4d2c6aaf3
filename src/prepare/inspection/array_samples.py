"""Arrays in `.npy`, `.npz` and `.h5` files, of which only the leading part is read."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from src.data.errors import BadFileError
from src.data.spikes.arrays import map_npy, open_h5, read_npy_header

MAX_VALUES = 1 << 25


@dataclass(frozen=True)
class ArraySample:
    """The leading part of an array.

    Attributes:
        key: its name in the file; None in `.npy`.
        shape: of the whole array.
        values: leading slices along the first axis, all of them where `is_whole`.
    """

    key: str | None
    shape: tuple[int, ...]
    values: np.ndarray

    @property
    def is_whole(self) -> bool:
        """Whether the whole array was read."""
        return self.values.shape == self.shape


def sample_array(path: str | Path, key: str | None = None) -> ArraySample:
    """Read the leading part of an array.

    Args:
        path: `.npy`, `.npz`, `.h5` or `.hdf5`.
        key: name of the array; None takes the only one with two or three axes.

    Raises:
        BadFileError: unreadable, pickled, or not clear which array is meant.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            array = map_npy(path)
            return ArraySample(None, array.shape, _leading(array))
        if path.suffix.lower() == ".npz":
            return _sample_npz(path, key)
        return _sample_h5(path, key)
    except BadFileError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadFileError(path, f"cannot be read: {error}") from error


def _sample_npz(path: Path, key: str | None) -> ArraySample:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        shapes = {}
        for name in names:
            with archive.open(f"{name}.npy") as member:
                shapes[name], _, dtype = read_npy_header(member)
            if dtype.hasobject:
                raise ValueError("it holds pickled objects, which are not read")
        key = _choose(path, key, shapes)
        with archive.open(f"{key}.npy") as member:
            shape, is_fortran, dtype = read_npy_header(member)
            if is_fortran or not shape:
                return ArraySample(key, shape, np.load(path, allow_pickle=False)[key])
            per_slice = int(np.prod(shape[1:]))
            slices = min(shape[0], max(1, MAX_VALUES // max(1, per_slice)))
            data = member.read(slices * per_slice * dtype.itemsize)
        return ArraySample(key, shape, np.frombuffer(data, dtype).reshape(slices, *shape[1:]))


def _sample_h5(path: Path, key: str | None) -> ArraySample:
    with h5py.File(path, "r") as file:
        shapes: dict[str, tuple[int, ...]] = {}
        file.visititems(
            lambda name, item: (
                shapes.__setitem__(name, item.shape) if isinstance(item, h5py.Dataset) else None
            )
        )
    with open_h5(path, _choose(path, key, shapes)) as dataset:  # follows no link
        return ArraySample(dataset.name.strip("/"), dataset.shape, _leading(dataset))


def _choose(path: Path, key: str | None, shapes: dict[str, tuple[int, ...]]) -> str:
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    if key is not None:
        key = key.strip("/")
        if key not in shapes:
            raise BadFileError(path, f"has no array {key!r}; it holds {listed}")
        return key
    large = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
    if len(large) != 1:
        raise BadFileError(path, f"holds {listed or 'no arrays'}; name one of them with --key")
    return large[0]


def _leading(array: np.ndarray | h5py.Dataset) -> np.ndarray:
    if array.ndim == 0:
        return np.asarray(array[()])
    per_slice = int(np.prod(array.shape[1:]))
    return np.asarray(array[: max(1, MAX_VALUES // max(1, per_slice))])
