"""Check every frame of a data set as a file: that it decodes, its size, and that no two are one."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from src.data.errors import BadFileError
from src.data.frames import read_image
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.scanning import SequenceScan
from src.prepare.counting import PreparedSplit
from src.prepare.findings import Findings, listed

FILES_PER_TASK = 32


@dataclass(frozen=True)
class Picture:
    """What a decoded image is: its size in pixels and a hash of its pixels."""

    size: tuple[int, int]
    digest: bytes


def check_files(splits: list[PreparedSplit], workers: int) -> Findings:
    """Decode every frame; sizes must be equal within a sequence, and pictures must differ.

    The same sharp frame in two splits means that validation is no validation; a blurry frame that
    equals its sharp frame means that there is nothing to restore.
    """
    files = [
        path
        for split in splits
        for scan in split.scans
        for frame in scan.frames
        for path in (frame.blurry, frame.sharp)
    ]
    pictures, problems = _decode_all(files, workers)
    for split in splits:
        for scan in split.scans:
            problems += _check_sizes(scan, pictures)
            problems += _check_equal_pairs(f"{split.split}/{scan.name}", scan, pictures)
    problems += _check_twice(splits, pictures)
    sizes = Counter(pictures[path].size for path in files if path in pictures)
    seen = [f"{number} images of {h}x{w}" for (h, w), number in sizes.most_common()]
    return Findings(seen=seen, problems=problems)


def decode_files(paths: list[Path]) -> list[Picture | str]:
    """Decode images; return what each is, or what is wrong with it."""
    results: list[Picture | str] = []
    for path in paths:
        try:
            image = read_image(path)
        except BadFileError as error:
            results.append(str(error))
        else:
            digest = hashlib.blake2b(image, digest_size=16).digest()
            results.append(Picture(image.shape[:2], digest))
    return results


def _decode_all(files: list[Path], workers: int) -> tuple[dict[Path, Picture], list[str]]:
    tasks = [
        files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)
    ]
    pictures: dict[Path, Picture] = {}
    broken: dict[Path, str] = {}
    workers = worthwhile_workers(workers, sum(p.stat().st_size for p in files if p.is_file()))
    for number, results in run_parallel(decode_files, tasks, workers, "reading frames"):
        for path, result in zip(tasks[number], results, strict=True):
            if isinstance(result, str):
                broken[path] = result
            else:
                pictures[path] = result
    return pictures, [broken[path] for path in files if path in broken]


def _check_sizes(scan: SequenceScan, pictures: Mapping[Path, Picture]) -> Iterable[str]:
    paths = [path for frame in scan.frames for path in (frame.blurry, frame.sharp)]
    sizes = {path: pictures[path].size for path in paths if path in pictures}
    counts = Counter(sizes.values())
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = [f"{path.parent.name}/{path.name} {s}" for path, s in sizes.items() if s != usual]
        yield (
            f"{scan.folder}: frames are {usual} but {listed(odd)}; make all frames of a sequence "
            "the same size, or give the others a sequence of their own"
        )


def _check_equal_pairs(
    where: str, scan: SequenceScan, pictures: Mapping[Path, Picture]
) -> Iterable[str]:
    """Find blurry frames that are their sharp frame, unless the sharp neighbours are so as well."""
    sharp = [pictures.get(frame.sharp) for frame in scan.frames]
    equal = []
    for i, frame in enumerate(scan.frames):
        blurry = pictures.get(frame.blurry)
        neighbours = sharp[max(i - 1, 0) : i] + sharp[i + 1 : i + 2]
        moves = any(other != sharp[i] for other in neighbours)
        if blurry is not None and blurry == sharp[i] and (moves or not neighbours):
            equal.append(frame.name)
    if equal:
        yield (
            f"{where}: {len(equal)} of {len(scan.frames)} blurry frames are pixel for pixel their "
            f"sharp frames ({listed(equal)}); copy the blurry ones into blur/ again"
        )


def _check_twice(splits: list[PreparedSplit], pictures: Mapping[Path, Picture]) -> Iterable[str]:
    """Find sharp frames that stand in two sequences."""
    owners: dict[bytes, set[str]] = {}
    for split in splits:
        for scan in split.scans:
            for frame in scan.frames:
                if frame.sharp in pictures:
                    name = f"{split.split}/{scan.name}"
                    owners.setdefault(pictures[frame.sharp].digest, set()).add(name)
    shared = Counter(
        (a, b)
        for names in owners.values()
        for a in names
        for b in names
        if a < b  # each pair once
    )
    for (first, second), number in sorted(shared.items()):
        if first.split("/")[0] != second.split("/")[0]:
            yield (
                f"{first} and {second} share {number} sharp frames: validation would see what was "
                "trained on; take the sequence out of one of the two splits"
            )
        else:
            yield (
                f"{first} and {second} share {number} sharp frames: the same scene counts twice; "
                "delete one of the two sequences"
            )
