"""When each blurry frame was exposed, and which ticks of the spike stream that is.

`exposures.csv` of a sequence is what the user states; the alignment log is what preparation made of
it, with the number of spikes counted in every window. Training reads the log only.

Worked row (source at 240 frames/s, 8 ticks per frame, 11 frames averaged, blurry frame 2): exposure
[22/240 s, 33/240 s) = [0.091667 s, 0.137500 s), at 1920 ticks/s the ticks [176, 264).
"""

import csv
import io
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from src.data.bad_samples import BadFileError
from src.paths import atomic_write

logger = logging.getLogger(__name__)

SECONDS_PER_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
UNITS = (*SECONDS_PER_UNIT, "ticks")
EXPOSURES_NAME = "exposures.csv"
EXPOSURES_HEADER = "frame_idx,t0[s],t1[s]"
LOG_COLUMNS = ("sequence", "frame_idx", "t0", "t1", "event_count")
# Times written with six decimals are off by up to 0.02 ticks at 40,000 ticks/s.
SNAP_TICKS = 0.05


@dataclass(frozen=True)
class Exposure:
    """The exposure window [t0, t1) of a frame in seconds; `event_count` where it was counted."""

    t0: float
    t1: float
    event_count: int | None = None


def window_ticks(t0: float, t1: float, ticks_per_second: float) -> tuple[int, int]:
    """Return the ticks [start, stop) of an exposure [t0, t1) in seconds.

    Tick q happens at q / ticks_per_second and belongs to the window where t0 <= that < t1. A time
    within 0.05 ticks of a whole tick is that tick, so rounded decimals do not move it.

    Raises:
        ValueError: the exposure ends before it starts or holds no tick.
    """
    if not t1 > t0:
        raise ValueError(f"exposure ends before it starts: t0={t0}, t1={t1}")
    start, stop = (_first_tick(t * ticks_per_second) for t in (t0, t1))
    if stop <= start:
        raise ValueError(
            f"exposure [{t0} s, {t1} s) holds no tick at {ticks_per_second} ticks/s; "
            "is the unit in the header of the exposures right?"
        )
    return start, stop


def frame_index(stem: str) -> int:
    """Return the number at the end of a frame's name: `000012` and `img_000012` are 12.

    Raises:
        ValueError: the name does not end in a number.
    """
    match = re.search(r"(\d+)$", stem)
    if match is None:
        raise ValueError(f"frame name {stem!r} does not end in a number; rename it like 000000")
    return int(match.group(1))


def read_exposures(path: str | Path, ticks_per_second: float | None) -> dict[int, Exposure]:
    """Read a table `frame_idx,t0[UNIT],t1[UNIT]` with UNIT s, ms, us or ticks.

    Args:
        path: the csv file.
        ticks_per_second: needed for the unit ticks.

    Returns:
        frame number -> exposure in seconds.

    Raises:
        BadFileError: no file, no unit, a row that is not three numbers, a frame given twice, or an
            exposure that ends before it starts.
    """
    path = Path(path)
    rows = _read_rows(path, f"write lines '{EXPOSURES_HEADER}' and '0,0.0,0.0458333'")
    seconds = _seconds_per_unit(path, rows[0], ticks_per_second)
    exposures: dict[int, Exposure] = {}
    for number, row in enumerate(rows[1:], start=2):
        index, t0, t1 = _numbers(path, number, row, (int, float, float))
        if index in exposures:
            raise BadFileError(path, f"line {number}: frame {index} is given twice")
        if not t1 > t0:
            reason = f"exposure ends before it starts: t0={t0}, t1={t1}"
            raise BadFileError(path, f"line {number}: frame {index}: {reason}")
        exposures[index] = Exposure(t0 * seconds, t1 * seconds)
    return exposures


class AlignmentLog:
    """Exposures of all sequences, by the name `SPLIT/SEQUENCE` or, in logs of others, `SEQUENCE`.

    Args:
        records: sequence name -> frame number -> exposure.
        paths: where they were read, for messages.
    """

    def __init__(
        self, records: Mapping[str, Mapping[int, Exposure]], paths: Iterable[Path] = ()
    ) -> None:
        self.records = records
        self.paths = tuple(paths)

    def of_sequence(self, split: str, sequence: str) -> Mapping[int, Exposure]:
        """Return the exposures of a sequence; an empty mapping where there are none."""
        for name in (f"{split}/{sequence}", sequence):
            if name in self.records:
                return self.records[name]
        return {}


def read_alignment(paths: Iterable[str | Path]) -> AlignmentLog:
    """Read alignment logs with the columns sequence, frame_idx, t0, t1, event_count (seconds).

    Raises:
        BadFileError: a missing log, other columns, a bad row, or a frame given twice.
    """
    records: dict[str, dict[int, Exposure]] = {}
    paths = [Path(path) for path in paths]
    for path in paths:
        rows = _read_rows(path, "run scripts/prepare_data.py with this configuration first")
        if tuple(rows[0]) != LOG_COLUMNS:
            raise BadFileError(path, f"columns are {rows[0]}; needed are {list(LOG_COLUMNS)}")
        for number, row in enumerate(rows[1:], start=2):
            kinds = (str, int, float, float, int)
            name, index, t0, t1, count = _numbers(path, number, row, kinds)
            frames = records.setdefault(name, {})
            if index in frames:
                raise BadFileError(path, f"line {number}: {name} frame {index} is given twice")
            frames[index] = Exposure(t0, t1, count)
    return AlignmentLog(records, paths)


def write_alignment(path: str | Path, records: Mapping[str, Mapping[int, Exposure]]) -> bool:
    """Write an alignment log in order of names and frames; True where the file changed.

    Times are written with all their digits, so that reading gives the same numbers.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LOG_COLUMNS)
    for name in sorted(records):
        for index, exposure in sorted(records[name].items()):
            count = exposure.event_count
            if count is None:
                raise ValueError(f"{name} frame {index}: the spikes were not counted")
            writer.writerow([name, index, repr(exposure.t0), repr(exposure.t1), count])
    path = Path(path)
    if path.is_file() and path.read_text(encoding="utf-8") == text.getvalue():
        return False
    with atomic_write(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")
    return True


def _first_tick(position: float) -> int:
    """Return the first whole tick at or after a position in ticks."""
    nearest = round(position)
    return nearest if abs(position - nearest) <= SNAP_TICKS else math.ceil(position)


def _read_rows(path: Path, advice: str) -> list[list[str]]:
    """Return the rows of a csv file as stripped cells, empty lines left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadFileError(path, f"cannot be read ({reason}); {advice}") from error
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    rows = [row for row in rows if any(row)]
    if not rows:
        raise BadFileError(path, f"is empty; {advice}")
    return rows


def _seconds_per_unit(path: Path, header: list[str], ticks_per_second: float | None) -> float:
    advice = f"write the header '{EXPOSURES_HEADER}' with the unit one of {', '.join(UNITS)}"
    matches = [re.fullmatch(r"t[01]\[(\w+)\]", cell) for cell in header[1:]]
    if len(header) != 3 or header[0] != "frame_idx" or None in matches:
        raise BadFileError(path, f"header is {','.join(header)!r}; {advice}")
    units = [match.group(1) for match in matches if match is not None]
    if header[1][:2] != "t0" or header[2][:2] != "t1" or units[0] != units[1]:
        raise BadFileError(path, f"header is {','.join(header)!r}; {advice}, the same for both")
    if units[0] == "ticks":
        if ticks_per_second is None:
            raise BadFileError(
                path,
                "times are in ticks, but ticks_per_second is not known; write it into "
                "dataset.yaml or into spike.yaml beside the .dat files",
            )
        return 1.0 / ticks_per_second
    if units[0] not in SECONDS_PER_UNIT:
        raise BadFileError(path, f"unit {units[0]!r} is not known; {advice}")
    return SECONDS_PER_UNIT[units[0]]


def _numbers(path: Path, number: int, row: list[str], kinds: tuple[type, ...]) -> list:
    try:
        values = [kind(cell) for kind, cell in zip(kinds, row, strict=True)]
    except ValueError as error:
        raise BadFileError(
            path, f"line {number}: {','.join(row)!r} is not {len(kinds)} values of the header"
        ) from error
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise BadFileError(path, f"line {number}: {','.join(row)!r} has a time that is not finite")
    return values
