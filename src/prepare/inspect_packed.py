"""Which size, order of bits and order of rows packed spikes (`.dat`) have, tested on the bits.

The usual sizes are tested, and the one that is given. A file holds a whole number of ticks. A pixel
that has just fired rarely fires in the next tick, so bits that are H*W apart agree less than those
one row before and after that. Rows look like the rows above them. The order of bits shows where two
bytes meet: in the right order pixels across that border are as alike as pixels within a byte.
Nothing but a reference image tells a picture from its upside-down twin.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from src.data.frames import read_grey
from src.data.spikes.spike_dat import BIT_ORDERS, USUAL_SIZES, SpikeGeometry
from src.prepare.exposure_shift import SHOWN
from src.prepare.spikes_match_frames import bit_correlations

FLIP_UNKNOWN = (
    "whether rows are stored bottom-up cannot be seen in the bits; the picture is drawn as if they "
    "were (flip_rows: true, like the published sets). If it is upside down, give --flip false, or "
    "--reference IMAGE of the same scene"
)
BLOCK_TICKS, BLOCK_VALUES = 400, 1 << 25
SAMPLE_BITS = 1 << 24
SAMPLE_TICKS = 128
WINDOWS = (128, 16)  # ticks: a long one has less noise, in short ones moving scenes stand still
BESIDE = (-8, -4, 4, 8)  # pixels from a row's end that rows must not be alike at
MIN_ROW_DEVIATIONS, MIN_DIP_DEVIATIONS = 5.0, 12.0
MIN_ORDER_DEVIATIONS = 6.0
SHARE_OF_BEST = 0.4  # a dip this deep, relative to the deepest, is no echo of another one
MIN_ROWS = 6
NUMBER_BITS, MOST_UNEQUAL_RATES = (8, 10, 12, 16, 24), 0.05
REFERENCE_TICKS, NUM_REFERENCE_WINDOWS = 32, 9

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Question:
    """A file, and what the user says about it; None where nothing was said."""

    path: Path
    size: Size | None = None  # of the sensor
    bit_order: str | None = None  # of packed spikes
    flip_rows: bool | None = None  # whether the file stores the bottom row first
    axes: str | None = None  # of an array ("THW", "HWT"), or the columns of a list ("tyx")
    key: str | None = None  # name of the array in an archive
    reference: Path | None = None  # an image of the same scene


@dataclass(frozen=True)
class Block:
    """Consecutive ticks from the middle of a file, for pictures and rates."""

    spikes: np.ndarray  # upright as far as known, uint8 [S, H, W] of 0 and 1
    first_tick: int  # number of the first of them
    num_ticks: int  # of the file


@dataclass
class Inspection:
    """What was found: an answer in a sentence or two, and the numbers behind it."""

    answer: str = ""
    is_right: bool = False  # False where what the user said cannot be right, or the file is unfit
    measured: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # what the user should look into
    block: Block | None = None  # what to draw; None where nothing can be drawn

    def answered(
        self, answer: str, is_right: bool = False, block: Block | None = None
    ) -> "Inspection":
        """Add the answer, and facts and warnings about the rate of the spikes in a block."""
        self.answer, self.is_right, self.block = answer, is_right, block
        if block is None:
            return self
        pixels, ticks = (block.spikes.mean(axis=axis, dtype=np.float64) for axis in (0, (1, 2)))
        silent, always = float((pixels == 0).mean()), float((pixels == 1).mean())
        self.measured.append(
            f"rate {pixels.mean():.4f} spikes per pixel and tick over {len(ticks)} ticks; per tick "
            f"{min(ticks):.4f} to {max(ticks):.4f}; {silent:.1%} of the pixels silent, "
            f"{always:.1%} firing in every tick"
        )
        if always > 0.05:
            what = f"{always:.0%} of the pixels fire in every tick"
            self.warnings.append(f"{what}: overexposed, or not spikes")
        if silent > 0.5:
            self.warnings.append(f"{silent:.0%} of the pixels never fire in these ticks: very dark")
        return self


def inspect_bytes(data: np.ndarray, question: Question) -> Inspection:
    """Inspect packed spikes in memory or in a memory map, uint8 [N]; only samples are read."""
    found = Inspection()
    sample = np.concatenate([data[: SAMPLE_BITS // 16], data[-SAMPLE_BITS // 16 :]])
    rate = float(np.unpackbits(sample).mean(dtype=np.float64))
    whole = [size for size in USUAL_SIZES if _is_whole(len(data), size)]
    fitting = [f"{size_name(*s)} {_ticks_of(data, s)} ticks" for s in whole]
    found.measured.append(
        f"{len(data):,} bytes, {rate:.1%} of the sampled bits are set; usual sizes with whole "
        f"ticks: {'; '.join(fitting) or 'none'}"
    )
    if rate in (0.0, 1.0):
        nothing = "nothing shows the size, nor anything to learn"
        return found.answered(f"all sampled bits are {int(rate)}: {nothing}")
    given = () if question.size is None else (question.size, question.size[::-1])
    tests = {size: measure_size(data, size) for size in dict.fromkeys((*whole, *given))}
    size = _smallest(test for test in tests.values() if test.is_whole)
    order = flip = cut = None
    if size is None:  # the file may be cut off
        others = [s for s in USUAL_SIZES if s not in tests and s[0] * s[1] % 8 == 0]
        cut = _smallest([*tests.values(), *(measure_size(data, other) for other in others)])
    else:
        order, numbers = find_bit_order(data, size)
        found.measured += [tests[size].sentence, numbers]
    if question.reference is not None:
        shown, lines = _use_reference(data, question, size)
        found.measured += lines
        if shown is None:
            unlike = f"nothing looks like {question.reference}: another scene, or another size"
            found.warnings.append(unlike)
        else:
            size, order, flip = (shown.height, shown.width), shown.bit_order, shown.flip_rows
    elif question.flip_rows is None and size is not None:
        found.warnings.append(FLIP_UNKNOWN)
    if question.size not in (None, size):
        found.measured.append(f"given size {tests[question.size].sentence}")
    drawn = size or cut or question.size
    block = drawn and _block(data, drawn, order or question.bit_order, flip, question.flip_rows)
    if size is None:
        return found.answered(*_no_size(data, question, tests, cut), block)
    return found.answered(*_compare(question, tests, size, order, flip), block)


def _block(
    data: np.ndarray, size: Size, bit_order: str | None, *flips: bool | None
) -> Block | None:
    """Return the middle ticks, with the rows as the first of `flips` says that is known."""
    num_ticks = _ticks_of(data, size)
    if num_ticks < 1:
        return None
    start, stop = middle_ticks(num_ticks, size[0] * size[1])
    spikes = _unpack(data, size, bit_order or "little", start, stop - start).reshape(-1, *size)
    is_flipped = next((flip for flip in flips if flip is not None), True)
    return Block(spikes[:, ::-1] if is_flipped else spikes, start, num_ticks)


@dataclass(frozen=True)
class SizeTest:
    """The tests of one size on the bits."""

    size: Size
    num_ticks: float  # size of the file in ticks; a fraction speaks against the size
    row_deviations: float = 0.0  # by which rows W apart are more alike than at other distances
    dip: float = 0.0  # by how much bits H*W apart agree less than those one row further or nearer
    dip_deviations: float = 0.0  # the same in deviations of its error

    @property
    def is_whole(self) -> bool:
        """Whether the file holds a whole number of ticks."""
        return self.num_ticks == int(self.num_ticks) >= 1

    @property
    def bit_failures(self) -> list[str]:
        """What in the bits speaks against the size, in words."""
        rows = [f"pixels {self.size[1]} apart are not alike"]
        dip = [f"there is no dip at {self.size[0] * self.size[1]} pixels"]
        has_no_dip = self.dip_deviations < MIN_DIP_DEVIATIONS
        return rows * (self.row_deviations < MIN_ROW_DEVIATIONS) + dip * has_no_dip

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        whole = "whole" if self.is_whole else "NOT whole"
        return (
            f"{self.size[0]}x{self.size[1]}: {self.num_ticks:.10g} ticks ({whole}); rows are alike "
            f"by {self.row_deviations:.0f} deviations; bits one tick apart agree less than in the "
            f"rows around by {self.dip:+.3f} ({self.dip_deviations:.0f} deviations)"
        )


def measure_size(data: np.ndarray, size: Size) -> SizeTest:
    """Test a size on packed spikes uint8 [N]; a ValueError if its pixels are no multiple of 8."""
    height, width = size
    if height * width % 8 or min(size) < 1:
        raise ValueError(f"{height}x{width}: the number of pixels must be a multiple of 8")
    num_ticks = len(data) * 8 / (height * width)
    if num_ticks < 2 or height < 2:
        return SizeTest(size, num_ticks)
    row = max(
        _row_deviations(_rate_images(data, size, order, window), width)
        for order in BIT_ORDERS[: 1 if width % 8 == 0 else 2]
        for window in WINDOWS
    )
    return SizeTest(size, num_ticks, row, *_tick_dip(data, size))


def _smallest(tests: Iterable[SizeTest]) -> Size | None:
    """Return the smallest size that passes on the bits and is no echo of another.

    A tick shows at all its multiples, and rows at all multiples of their width.
    """
    passed = [test for test in tests if not test.bit_failures]
    deepest = max((test.dip for test in passed), default=0.0)
    passed = [test for test in passed if test.dip >= SHARE_OF_BEST * deepest]
    widths = {test.size[1] for test in passed}
    origins = [t for t in passed if not any(t.size[1] % w == 0 for w in widths - {t.size[1]})]
    best = min(origins, key=lambda t: (t.size[0] * t.size[1], -t.row_deviations), default=None)
    return None if best is None else best.size


def _no_size(
    data: np.ndarray, question: Question, tests: dict[Size, SizeTest], cut: Size | None
) -> tuple[str, bool]:
    """Return why no size is found, and whether the given one may be right nevertheless."""
    if cut is not None:
        num_ticks, rest = divmod(len(data), cut[0] * cut[1] // 8)
        return (
            f"{size_name(*cut)} shows in the bits, but {rest} bytes are left over after "
            f"{num_ticks} ticks: the file was cut off, or has a header or footer"
        ), False
    why = "no usual size passes the tests: another size, noise, or a scene without structure"
    number_bits = _number_bits(data)
    if number_bits is not None:
        why = (
            f"the bits look like numbers of {number_bits} bits, not like single spikes: an image, "
            "a raw video or text"
        )
    why = f"the size cannot be known from this file: {why}"
    if question.size is None:
        return f"{why}; give --height and --width", False
    is_whole = tests[question.size].is_whole
    fits = "may be right" if is_whole else "cannot be right: no whole number of ticks"
    return f"{why}; {question.size[0]}x{question.size[1]} as given {fits}", is_whole


def _compare(
    question: Question,
    tests: dict[Size, SizeTest],
    size: Size,
    order: str | None,
    flip: bool | None,
) -> tuple[str, bool]:
    """Compare what was found with what was given; return the answer and whether that is right."""
    is_right, notes = True, [size_name(*size)]
    if question.size not in (None, size):
        test = tests[question.size]
        parts = [] if test.is_whole else [f"the file would hold {test.num_ticks:.2f} ticks"]
        wrong = ", ".join([*parts, *test.bit_failures])
        why = f"cannot be right: {wrong}" if wrong else "is unlikely, though it passes"
        notes = [f"{question.size[0]}x{question.size[1]} {why}; {notes[0]} would be right"]
        is_right = False
    for key, found, stated in (
        ("bit_order", order, question.bit_order),
        ("flip_rows", flip, question.flip_rows),
    ):
        if found is None:
            said = "" if stated is None else f" ({stated} as given may be right)"
            notes.append(f"{key} cannot be known{said}")
        elif stated not in (None, found):
            notes.append(f"{key} {stated} cannot be right, {found} would be")
            is_right = False
        else:
            notes.append(f"{key} {found}")
    return "; ".join(notes), is_right


def _use_reference(
    data: np.ndarray, question: Question, size: Size | None
) -> tuple[SpikeGeometry | None, list[str]]:
    """Return size and orders that look like the reference image, None if none does, and numbers."""
    image = read_grey(question.reference)
    sizes = {size, question.size} - {None}
    sizes |= {(image.shape[0] // divisor, image.shape[1] // divisor) for divisor in (1, 2, 4)}
    best: dict[SpikeGeometry, tuple[float, int]] = {}
    for tried in sorted(size for size in sizes if _is_whole(len(data), size)):
        target = cv2.resize(image, tried[::-1], interpolation=cv2.INTER_AREA)
        window = min(REFERENCE_TICKS, _ticks_of(data, tried))
        last, stored = _ticks_of(data, tried) - window, SpikeGeometry(*tried, flip_rows=False)
        for start in np.linspace(0, last, NUM_REFERENCE_WINDOWS).astype(int).tolist():
            counts = _unpack(data, tried, "little", start, window).sum(axis=0, dtype=np.float32)
            for order, alike in bit_correlations(counts.reshape(tried), stored, target).items():
                best[order] = max(best.get(order, (-2.0, 0)), (alike, start))
    ranked = sorted(best.items(), key=lambda item: -item[1][0])
    lines = [
        f"correlation {alike:+.3f} with the reference for {g.height}x{g.width}, bit_order "
        f"{g.bit_order}, flip_rows {g.flip_rows} (ticks from {start})"
        for g, (alike, start) in ranked[:4]
    ]
    return ranked[0][0] if ranked and ranked[0][1][0] >= SHOWN else None, lines


# ---------------------------------------------------------------- the tests on bits


def find_bit_order(data: np.ndarray, size: Size) -> tuple[str | None, str]:
    """Return the order of bits, None where the picture does not tell, and the numbers."""
    image = _rate_images(data, size, "little", SAMPLE_TICKS).reshape(-1, 8)  # bytes
    little, big = (image[:-1, 7] - image[1:, 0]) ** 2, (image[:-1, 0] - image[1:, 7]) ** 2
    sureness = _deviations(big - little) if np.any(big != little) else 0.0
    across = [float(square.mean()) ** 0.5 for square in (little, big)]
    inside = float(np.mean(np.diff(image, axis=1) ** 2)) ** 0.5
    numbers = (
        f"rates of pixels across byte borders differ by {across[0]:.4f} with little, "
        f"{across[1]:.4f} with big, inside bytes by {inside:.4f} ({abs(sureness):.0f} deviations)"
    )
    if abs(sureness) < MIN_ORDER_DEVIATIONS:
        return None, numbers
    return ("little" if sureness > 0 else "big"), numbers


def _ticks_of(data: np.ndarray, size: Size) -> int:
    return len(data) * 8 // (size[0] * size[1])


def _is_whole(num_bytes: int, size: Size) -> bool:
    pixels = size[0] * size[1]
    return pixels > 0 and pixels % 8 == 0 and num_bytes > 0 and num_bytes * 8 % pixels == 0


def _unpack(data: np.ndarray, size: Size, bit_order: str, start: int, number: int) -> np.ndarray:
    """Return the bits of so many ticks in file order: uint8 [S, H*W]."""
    tick_bytes = size[0] * size[1] // 8
    stored = data[start * tick_bytes : (start + number) * tick_bytes].reshape(number, tick_bytes)
    return np.unpackbits(stored, axis=1, bitorder=bit_order)


def _rate_images(data: np.ndarray, size: Size, bit_order: str, window: int) -> np.ndarray:
    """Return rates in windows of ticks side by side in the middle of the file: float32 [N, H*W]."""
    pixels = size[0] * size[1]
    total = _ticks_of(data, size)
    ticks = min(total, SAMPLE_TICKS, max(2, SAMPLE_BITS // pixels))
    window = min(window, ticks)
    number = ticks // window
    bits = _unpack(data, size, bit_order, (total - number * window) // 2, number * window)
    return bits.reshape(number, window, pixels).mean(axis=1, dtype=np.float32)


def _row_deviations(image: np.ndarray, width: int) -> float:
    """Return by how many deviations pixels one width apart are more alike than at other distances.

    Values of the flat pictures [N, H*W] are compared at all the distances, so that noise cancels;
    the error is taken from how the difference varies from row to row.
    """
    others = [width + d for d in BESIDE if width + d > 0]
    number = image.shape[1] - max(others)
    rows = number // width
    if rows < MIN_ROWS:
        return 0.0
    image = np.asarray(image, np.float64)
    first = image[:, :number]
    near = (first - image[:, width : width + number]) ** 2
    far = sum((first - image[:, other : other + number]) ** 2 for other in others) / len(others)
    return _deviations((far - near)[:, : rows * width].reshape(-1, width).mean(axis=1))


def _tick_dip(data: np.ndarray, size: Size) -> tuple[float, float]:
    """Return by how much bits one tick apart agree less than in the rows around, and how surely."""
    pixels, width = size[0] * size[1], size[1]
    total = _ticks_of(data, size)
    ticks = min(total, max(3, SAMPLE_BITS // pixels))
    bits = _unpack(data, size, "little", (total - ticks) // 2, ticks).reshape(-1)
    bits = bits.astype(np.float32) - np.float32(bits.mean(dtype=np.float64))
    number = (len(bits) - pixels - width) // width * width
    if number < MIN_ROWS * width:
        return 0.0, 0.0
    around = (bits[pixels - width :][:number] + bits[pixels + width :][:number]) / 2
    gain = bits[:number] * (around - bits[pixels:][:number])
    variance = max(float(np.mean(bits**2)), 1e-12)
    return float(gain.mean()) / variance, _deviations(gain.reshape(-1, width).mean(axis=1))


def _deviations(values: np.ndarray) -> float:
    """Return the mean of values in standard errors."""
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) / max(error, 1e-12)


def _number_bits(data: np.ndarray) -> int | None:
    """Return the bits per number if the file holds numbers instead of single bits.

    High bits of a number are set at another rate than low ones; a pixel's place in a byte says
    nothing about its brightness.
    """
    bits = np.unpackbits(data[: SAMPLE_BITS // 32])
    unequal = {}
    for m in NUMBER_BITS:
        rates = bits[: len(bits) // m * m].reshape(-1, m).mean(axis=0)
        error = (0.25 * m / max(1, len(bits))) ** 0.5
        unequal[m] = float(np.ptp(rates)) - 8 * error if len(bits) >= m else 0.0
    largest = max(unequal.values())
    if largest < MOST_UNEQUAL_RATES:
        return None
    return min(m for m, value in unequal.items() if value > 0.9 * largest)


# ---------------------------------------------------------------- words and blocks


def size_name(height: int, width: int) -> str:
    """Return a size as text, with who uses it."""
    known = USUAL_SIZES.get((height, width))
    return f"{height}x{width}" + (f" ({known})" if known else "")


def middle_ticks(num_ticks: int, pixels: int) -> tuple[int, int]:
    """Return the ticks [start, stop) of the middle that a block holds."""
    count = min(num_ticks, BLOCK_TICKS, max(2, BLOCK_VALUES // max(1, pixels)))
    start = (num_ticks - count) // 2
    return start, start + count
