"""Check the frames of a data set: that each decodes, that no two are one, that blur fits sharp."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from src.data.errors import BadFileError, listed
from src.data.frames import read_grey, read_image
from src.data.parallel import run_parallel, worthwhile_workers
from src.data.recordings import FrameRecord
from src.data.scanning import Dropped, SequenceScan
from src.data.voxel_counts import VoxelEntry

FILES_PER_TASK = 32
SAMPLED_FRAMES = 5
# A shaking camera can bring a single blurry frame a little closer to the next sharp one.
CLEAR_MARGIN_DB = 0.5
CERTAIN_MARGIN_DB = 2.0
MAX_SHIFT = 3  # frames to both sides that are tried to name a shift
SWAPPED_RATIO = 1.05
STILL_MSE = 0.25  # mean square of 8 bit values: less is rounding, not motion

Picture = tuple[tuple[int, int], bytes]  # size of a decoded image, and a hash of its pixels


@dataclass
class PreparedSplit:
    """A split while it is prepared: its sequences, and their counted frames by name."""

    split: str
    scans: list[SequenceScan]
    entries: dict[str, dict[str, VoxelEntry]] = field(default_factory=dict)
    failed: list[Dropped] = field(default_factory=list)


@dataclass
class Findings:
    """Lines for the user."""

    seen: list[str] = field(default_factory=list)  # what is there
    notes: list[str] = field(default_factory=list)  # what a person should know
    problems: list[str] = field(default_factory=list)  # what makes a training wrong

    def include(self, other: "Findings") -> None:
        """Add the lines of another check."""
        self.seen += other.seen
        self.notes += other.notes
        self.problems += other.problems


def merged(lines: list[str]) -> list[str]:
    """Return lines `WHERE: text` with those of equal text in one, which names all places."""
    places: dict[str, list[str]] = {}
    for line in lines:
        where, _, text = line.partition(": ")
        places.setdefault(text, []).append(where)
    return [f"{listed(found, 3)}: {text}" for text, found in places.items()]


def sample_evenly(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` of `count` places, evenly spread, the same ones every time."""
    if count <= wanted:
        return list(range(count))
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]


def check_files(splits: list[PreparedSplit], workers: int) -> Findings:
    """Decode every frame; sizes must be equal within a sequence, and pictures must differ.

    No sharp frame may be in two splits, and no blurry frame equal its sharp frame.
    """
    scans = {f"{split.split}/{scan.name}": scan for split in splits for scan in split.scans}
    files = [path for scan in scans.values() for path in scan.files]
    tasks = [files[i : i + FILES_PER_TASK] for i in range(0, len(files), FILES_PER_TASK)]
    found: dict[Path, Picture | str] = {}
    workers = worthwhile_workers(workers, sum(p.stat().st_size for p in files if p.is_file()))
    for number, results in run_parallel(decode_files, tasks, workers, "reading frames"):
        found.update(zip(tasks[number], results, strict=True))
    problems = [found[path] for path in files if isinstance(found[path], str)]
    pictures = {path: it for path, it in found.items() if not isinstance(it, str)}
    for where, scan in scans.items():
        problems += _check_sizes(scan, pictures)
        problems += _check_equal_pairs(where, scan, pictures)
    problems += _check_twice(scans, pictures)
    sizes = Counter(pictures[path][0] for path in files if path in pictures)
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
            results.append((image.shape[:2], hashlib.blake2b(image, digest_size=16).digest()))
    return results


def _check_sizes(scan: SequenceScan, pictures: Mapping[Path, Picture]) -> Iterable[str]:
    sizes = {path: pictures[path][0] for path in scan.files if path in pictures}
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
    """Find blurry frames that are their sharp frame, unless nothing moves."""
    sharp = [pictures.get(frame.sharp) for frame in scan.frames]
    equal = []
    for i, frame in enumerate(scan.frames):
        blurry = pictures.get(frame.blurry)
        beside = sharp[max(i - 1, 0) : i] + sharp[i + 1 : i + 2]
        moves = any(other != sharp[i] for other in beside)
        if blurry is not None and blurry == sharp[i] and (moves or not beside):
            equal.append(frame.name)
    if equal:
        yield (
            f"{where}: {len(equal)} of {len(scan.frames)} blurry frames are pixel for pixel their "
            f"sharp frames ({listed(equal)}); copy the blurry ones into blur/ again"
        )


def _check_twice(
    scans: Mapping[str, SequenceScan], pictures: Mapping[Path, Picture]
) -> Iterable[str]:
    """Find sharp frames that are in two sequences."""
    owners: dict[Picture, set[str]] = {}
    for name, scan in scans.items():
        for frame in (frame for frame in scan.frames if frame.sharp in pictures):
            owners.setdefault(pictures[frame.sharp], set()).add(name)
    shared = Counter(pair for names in owners.values() for pair in combinations(sorted(names), 2))
    for (first, second), number in sorted(shared.items()):
        what = (
            "the same scene counts twice; delete one of the two sequences"
            if first.split("/")[0] == second.split("/")[0]
            else "validation would see what was trained on; take the sequence out of one of the "
            "two splits"
        )
        yield f"{first} and {second} share {number} sharp frames: {what}"


def check_pairs(where: str, frames: tuple[FrameRecord, ...]) -> Findings:
    """Check that sampled blurry frames resemble their own sharp frame most, and are less sharp."""
    findings, moving, unequal = Findings(), {}, []
    for i in sample_evenly(len(frames), SAMPLED_FRAMES):
        blurry, sharp = read_grey(frames[i].blurry), read_grey(frames[i].sharp)
        if blurry.shape != sharp.shape:
            sizes = " and ".join(f"{h}x{w}" for h, w in (blurry.shape, sharp.shape))
            unequal.append(f"{frames[i].name} {sizes}")
        elif (found := compare_pair(frames, i, blurry, sharp)) is not None:
            moving[i] = found
    if unequal:
        findings.problems.append(
            f"{where}: sharp frames have another size than their blurry frames "
            f"({listed(unequal)}); give both the same"
        )
        return findings
    if not moving:
        findings.notes.append(f"{where}: nothing moves, so blur against sharp cannot be checked")
        return findings
    wrong = [i for i, (margin_db, _) in moving.items() if margin_db <= -CLEAR_MARGIN_DB]
    if wrong:
        worst = min(moving[i][0] for i in wrong)
        line = (
            f"{where}: {len(wrong)} of {len(moving)} sampled blurry frames resemble the sharp "
            f"frame before or after more than their own, by up to {-worst:.1f} dB "
            f"({listed([frames[i].name for i in wrong])})"
        )
        if 2 * len(wrong) > len(moving) or worst <= -CERTAIN_MARGIN_DB:
            findings.problems.append(f"{line}; {_advice(frames, wrong)}")
        else:
            findings.notes.append(f"{line}; a shaking camera can do that, look at them")
    swapped = {i: ratio for i, (_, ratio) in moving.items() if ratio > SWAPPED_RATIO}
    if 2 * len(swapped) > len(moving):
        findings.problems.append(
            f"{where}: blurry frames are sharper than sharp ones, with "
            f"{median(swapped.values()):.2f} times the gradient energy "
            f"({listed([frames[i].name for i in swapped])}); are the folders blur and sharp "
            "swapped? Rename them"
        )
    return findings


def compare_pair(
    frames: tuple[FrameRecord, ...], i: int, blurry: np.ndarray, sharp: np.ndarray
) -> tuple[float, float] | None:
    """Compare the grey values of frame i with the sharp frames around it; None: nothing moves.

    Returns:
        PSNR against its own sharp frame minus that against the better of the two beside it, in dB,
        and the gradient energy of the blurry frame through that of its sharp frame.
    """
    others, error = _errors(frames, i, (-1, 1), blurry).values(), _mse(blurry, sharp)
    if max(error, *others, 0) <= STILL_MSE:
        return None
    floor = 1e-2  # of rounding; keeps equal pictures finite
    margin = np.log10((min(others) + floor) / (error + floor)) if others else 0.0
    return 10 * float(margin), _edge_energy(blurry) / max(_edge_energy(sharp), 1e-6)


def _errors(
    frames: tuple[FrameRecord, ...], i: int, shifts: tuple[int, ...], blurry: np.ndarray
) -> dict[int, float]:
    """Return the mean square error against the sharp frames at the given distances, by distance."""
    errors = {}
    for shift in shifts:
        if 0 <= i + shift < len(frames):
            sharp = read_grey(frames[i + shift].sharp)
            if sharp.shape == blurry.shape:
                errors[shift] = _mse(blurry, sharp)
    return errors


def _advice(frames: tuple[FrameRecord, ...], wrong: list[int]) -> str:
    """Say what to do: name the shift that most of the frames share, where there is one."""
    shifts = tuple(range(-MAX_SHIFT, MAX_SHIFT + 1))
    best = Counter()
    for i in wrong:
        errors = _errors(frames, i, shifts, read_grey(frames[i].blurry))
        best[min(errors, key=errors.__getitem__)] += 1
    usual, number = best.most_common(1)[0]
    if usual and 2 * number > len(wrong):
        return (
            f"most fit the sharp frame {abs(usual)} {'later' if usual > 0 else 'earlier'}: rename "
            "the sharp frames so that equal names belong together"
        )
    return "give sharp frames the names of the blurry frames they belong to"


def _mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a - b) ** 2))


def _edge_energy(image: np.ndarray) -> float:
    """Return the mean square of first differences of an image at half size, where noise is less."""
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return _mse(half[1:], half[:-1]) + _mse(half[:, 1:], half[:, :-1])
