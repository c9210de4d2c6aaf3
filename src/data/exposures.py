"""When each blurry frame was exposed, and which ticks of the spike stream that is.

`exposures.csv` of a sequence is what the user states; the alignment log is what preparation made of
it, with the number of spikes counted in every window. Training reads the log only.

Worked row (source at 240 frames/s, 8 ticks per frame, 11 frames averaged, blurry frame 2): exposure
[22/240 s, 33/240 s) = [0.091667 s, 0.137500 s), at 1920 ticks/s the ticks [176, 264).
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.data.errors import BadFileError
from src.paths import atomic_write

SECONDS_PER_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
EXPOSURES_NAME = "exposures.csv"
EXPOSURES_HEADER = "frame_idx,t0[s],t1[s]"
LOG_COLUMNS = ("sequence", "frame_idx", "t0", "t1", "event_count")
# Times written with six decimals are off by up to 0.02 ticks at 40,000 ticks/s.
SNAP_TICKS = 0.05


@dataclass(frozen=True)
class Exposure:
    """When a frame was exposed: the window [t0, t1) in seconds."""

    t0: float
    t1: float
    num_spikes: int | None = None  # in the window; None before they were counted
    t_sharp: float | None = None  # instant of the sharp frame in seconds; None: unknown


def window_ticks(t0: float, t1: float, ticks_per_second: float) -> tuple[int, int]:
    """Return the ticks [start, stop) of an exposure [t0, t1) in seconds.

    Tick q happens at q / ticks_per_second and belongs to the window where t0 <= that < t1. A time
    within 0.05 ticks of a whole tick is that tick, so rounded decimals do not move it. An exposure
    that ends before it starts, or holds no tick, is a ValueError.
    """
    if not t1 > t0:
        raise ValueError(f"exposure ends before it starts: t0={t0}, t1={t1}")
    if not (math.isfinite(t0 * ticks_per_second) and math.isfinite(t1 * ticks_per_second)):
        raise ValueError(f"exposure [{t0} s, {t1} s) at {ticks_per_second} ticks/s has no end")
    start, stop = (_first_tick(t * ticks_per_second) for t in (t0, t1))
    if stop <= start:
        raise ValueError(
            f"exposure [{t0} s, {t1} s) holds no tick at {ticks_per_second} ticks/s; "
            "is the unit in the header of the exposures right?"
        )
    return start, stop


def frame_index(stem: str) -> int:
    """Return the number at the end of a frame name, 12 of `img_000012`; decimals are refused."""
    match = re.search(r"(\d+\.)?(\d+)$", stem)
    if match is None or match[1]:
        what = "ends in a decimal number" if match else "does not end in a number"
        raise ValueError(f"frame name {stem!r} {what}; rename it like 000000")
    return int(match[2])


def read_exposures(path: str | Path, ticks_per_second: float | None) -> dict[int, Exposure]:
    """Read a table `frame_idx,t0[UNIT],t1[UNIT]` with UNIT s, ms, us or ticks: by frame number.

    A fourth column `t_sharp[UNIT]` is the instant of the sharp frame; ticks need
    `ticks_per_second`.
    """
    path = Path(path)
    rows = _read_rows(path, f"write lines '{EXPOSURES_HEADER}' and '0,0.0,0.0458333'")
    seconds = _seconds_per_unit(path, rows[0], ticks_per_second)
    exposures: dict[int, Exposure] = {}
    for number, row in enumerate(rows[1:], start=2):
        index, *times = _numbers(path, number, row, (_whole, *(float for _ in rows[0][1:])))
        t0, t1, *sharp = times
        reason = None
        if index in exposures:
            reason = "is given twice"
        elif not t1 > t0:
            reason = f"exposure ends before it starts: t0={t0}, t1={t1}"
        elif sharp and not t0 <= sharp[0] <= t1:
            reason = (
                f"the sharp frame lies outside its exposure: t0={t0}, t1={t1}, t_sharp={sharp[0]}"
            )
        if reason is not None:
            raise BadFileError(path, f"line {number}: frame {index}: {reason}")
        t0, t1, *sharp = (time * seconds for time in times)
        exposures[index] = Exposure(t0, t1, t_sharp=sharp[0] if sharp else None)
    return exposures


def write_exposures(path: str | Path, exposures: Mapping[int, Exposure]) -> None:
    """Write a table of exposures in seconds with all digits, whole or not at all.

    The column of the sharp frames is there when every exposure has it; it cannot be there for some.
    """
    has_sharp = {exposure.t_sharp is not None for exposure in exposures.values()}
    if len(has_sharp) > 1:
        raise ValueError(f"{path}: t_sharp is known of some frames and not of others")
    lines = [f"{EXPOSURES_HEADER},t_sharp[s]" if has_sharp == {True} else EXPOSURES_HEADER]
    for index, exposure in sorted(exposures.items()):
        times = [exposure.t0, exposure.t1, exposure.t_sharp]
        lines.append(",".join([str(index), *(repr(time) for time in times if time is not None)]))
    with atomic_write(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


class AlignmentLog:
    """Exposures of all sequences, by the name `SPLIT/SEQUENCE` or, in older logs, `SEQUENCE`."""

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
    """Read alignment logs with the columns sequence, frame_idx, t0, t1, event_count (seconds)."""
    records: dict[str, dict[int, Exposure]] = {}
    paths = [Path(path) for path in paths]
    for path in paths:
        rows = _read_rows(path, "run scripts/prepare_data.py with this configuration first")
        if tuple(rows[0]) != LOG_COLUMNS:
            raise BadFileError(path, f"columns are {rows[0]}; needed are {list(LOG_COLUMNS)}")
        for number, row in enumerate(rows[1:], start=2):
            kinds = (str, _whole, float, float, _whole)
            name, index, t0, t1, count = _numbers(path, number, row, kinds)
            frames = records.setdefault(name, {})
            if index in frames:
                raise BadFileError(path, f"line {number}: {name} frame {index} is given twice")
            frames[index] = Exposure(t0, t1, count)
    return AlignmentLog(records, paths)


def write_alignment(path: str | Path, records: Mapping[str, Mapping[int, Exposure]]) -> bool:
    """Write an alignment log in order, times with all digits; True where the file changed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LOG_COLUMNS)
    for name in sorted(records):
        for index, exposure in sorted(records[name].items()):
            count = exposure.num_spikes
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
    """Return the rows of a csv file, the header without spaces around names, no empty lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BadFileError(path, f"cannot be read ({reason}); {advice}") from error
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if any(map(str.strip, row))]
    except csv.Error as error:
        raise BadFileError(path, f"is no table ({error}); {advice}") from error
    if not rows:
        raise BadFileError(path, f"is empty; {advice}")
    return [[cell.strip() for cell in rows[0]], *rows[1:]]


def _seconds_per_unit(path: Path, header: list[str], ticks_per_second: float | None) -> float:
    match = re.fullmatch(r"frame_idx,t0\[(\w+)\],t1\[\1\](,t_sharp\[\1\])?", ",".join(header))
    unit = None if match is None else match[1]
    if unit == "ticks" and ticks_per_second is None:
        raise BadFileError(
            path,
            "times are in ticks, but ticks_per_second is not known; write it into dataset.yaml or "
            "into spike.yaml beside the .dat files",
        )
    if unit == "ticks":
        return 1.0 / ticks_per_second
    if unit not in SECONDS_PER_UNIT:
        units = ", ".join((*SECONDS_PER_UNIT, "ticks"))
        raise BadFileError(
            path,
            f"header is {','.join(header)!r}; write the header '{EXPOSURES_HEADER}' or "
            f"'{EXPOSURES_HEADER},t_sharp[s]' with the unit one of {units}, the same for all",
        )
    return SECONDS_PER_UNIT[unit]


def _whole(cell: str) -> int:
    """Return a whole number, which pandas writes as `3.0` beside a missing one."""
    number = float(cell) if "." in cell else int(cell)
    if number != int(number):
        raise ValueError(f"{cell} is no whole number")
    return int(number)


def _numbers(path: Path, number: int, row: list[str], kinds: Sequence[Callable]) -> list:
    try:
        values = [kind(cell) for kind, cell in zip(kinds, row, strict=True)]
    except (ValueError, OverflowError) as error:
        raise BadFileError(
            path, f"line {number}: {','.join(row)!r} is not {len(kinds)} values of the header"
        ) from error
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise BadFileError(path, f"line {number}: {','.join(row)!r} has a time that is not finite")
    return values
