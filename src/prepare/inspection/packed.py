"""What a file of packed spikes (`.dat`) is, from its bits alone or with a reference image."""

from dataclasses import dataclass, field

import numpy as np

from src.data.errors import BadFileError
from src.prepare.inspection.findings import (
    Block,
    Findings,
    Question,
    describe_rate,
    fitting_sizes,
    middle_ticks,
    published_sizes,
    size_name,
)
from src.prepare.inspection.recognition import GeometryTest, PackedBits
from src.prepare.inspection.reference import MIN_CORRELATION, match_reference, read_reference

GOPRO_FILES = {
    1_612_800: "56 ticks of 360x640, Spk-GoPro spikes of one frame of a clip GOPRxxxx_07_zz; it is "
    "often misread as 10x360x448 by taking bytes for pixels",
    2_534_400: "88 ticks of 360x640, Spk-GoPro spikes of one frame of a clip GOPRxxxx_11_zz; it is "
    "often misread as 10x396x640 by taking bytes for pixels",
    2_995_200: "104 ticks of 360x640, Spk-GoPro spikes of one frame of a clip GOPRxxxx_13_zz",
}
FLIP_UNKNOWN = (
    "whether rows are stored bottom-up cannot be seen in the bits; the picture is drawn as if they "
    "were (flip_rows: true, like the published sets). If it stands on its head, give --flip false, "
    "or --reference IMAGE of the same scene"
)
TOO_SHORT_TICKS = 3


def inspect_packed(question: Question) -> Findings:
    """Inspect a file of packed spikes, of which only samples are read.

    Raises:
        BadFileError: an empty or unreadable file or reference.
        ValueError: a given size whose pixels are no multiple of 8.
    """
    path = question.path
    try:
        num_bytes = path.stat().st_size
        data = np.memmap(path, np.uint8, "r") if num_bytes else None
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    if data is None:
        raise BadFileError(path, "is empty; copy it again")
    return inspect_bytes(data, question)


def inspect_bytes(data: np.ndarray, question: Question) -> Findings:
    """Inspect packed spikes in memory or in a memory map, uint8 [N]; see `inspect_packed`."""
    return _Inspection(data, question, PackedBits(data)).run()


@dataclass
class _Inspection:
    """One inspection: what is known grows from step to step."""

    data: np.ndarray
    question: Question
    bits: PackedBits
    size: tuple[int, int] | None = None
    bit_order: str | None = None
    flip_rows: bool | None = None
    why_unknown: str = ""
    likely: list[tuple[int, int]] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def run(self) -> Findings:
        """Take all steps."""
        num_bytes, rate = len(self.data), self.bits.rate
        self.measured.append(
            f"{num_bytes:,} bytes, {rate:.1%} of the sampled bits are set; published sizes with "
            f"whole ticks: {fitting_sizes(num_bytes)}"
        )
        if num_bytes in GOPRO_FILES:
            self.warnings.append(f"{num_bytes:,} bytes is the size of {GOPRO_FILES[num_bytes]}")
        if rate in (0.0, 1.0):
            verdict = (
                f"all sampled bits are {int(rate)}: nothing shows the size, and such spikes teach "
                "nothing"
            )
            return Findings(verdict, False, tuple(self.measured), tuple(self.warnings))
        self._find_size()
        if self.question.reference is not None:
            self._use_reference()
        elif self.question.flip_rows is None and self.size is not None:
            self.warnings.append(FLIP_UNKNOWN)
        verdict, is_right = self._judge()
        block = self._block()
        if block is not None:
            lines, warnings = describe_rate(block.spikes)
            self.measured += lines
            self.warnings += warnings
        return Findings(verdict, is_right, tuple(self.measured), tuple(self.warnings), block)

    def _find_size(self) -> None:
        """Find size and order of bits from the bits alone."""
        tick = self.bits.find_tick()
        if tick.value is None:
            self.why_unknown = self._why_no_tick()
            return
        self.measured.append(
            f"a tick has {tick.value:,} pixels: bits that far apart agree less than the bits around"
            f", by {tick.strength:.3f} ({tick.sureness:.0f} deviations)"
        )
        num_ticks, rest = divmod(len(self.data) * 8, tick.value)
        if rest:
            self.warnings.append(
                f"{rest // 8} bytes are left over after {num_ticks} ticks of {tick.value} pixels: "
                "the file was cut off, or has a header or footer"
            )
        self.bit_order, numbers = self.bits.find_bit_order(tick.value)
        row, row_order = self.bits.find_width(tick.value, self.bit_order)
        if row.value is None:
            self.likely = [(tick.value // width, width) for width in row.likely]
            likely = ", ".join(f"{height}x{width}" for height, width in self.likely)
            published = ", ".join(published_sizes(tick.value)) or "none"
            self.why_unknown = (
                f"a tick has {tick.value} pixels, but the scene has too little structure to show "
                f"the width (likeliest: {likely}; published sizes with as many pixels: {published})"
            )
            return
        if row.as_good:
            self.warnings.append(
                f"the width may be {' or '.join(map(str, row.as_good))} as well, the scene is "
                f"periodic or faint: see in the picture whether {row.value} is right"
            )
        self.size = tick.value // row.value, row.value
        published = published_sizes(tick.value)
        if published and size_name(*self.size) not in published:
            self.warnings.append(
                f"{', '.join(published)} has as many pixels; strictly periodic scenes look alike "
                "in several widths: see in the picture which is right"
            )
        self.measured.append(self.bits.test(*self.size, row_order).sentence)
        self.measured.append(numbers)

    def _why_no_tick(self) -> str:
        """Say why no tick was found."""
        if self.question.size is not None:
            height, width = self.question.size
            if len(self.data) * 8 < TOO_SHORT_TICKS * height * width:
                return f"fewer than {TOO_SHORT_TICKS} ticks of {height}x{width} are too short"
        number_bits = self.bits.number_bits()
        if number_bits is not None:
            return (
                f"the bits look like numbers of {number_bits} bits, not like single spikes: an "
                "image, a raw video or text"
            )
        return (
            "no pixel tires after firing at any distance, so the size of a tick does not show: "
            f"noise, ticks that all are the same, or fewer than {TOO_SHORT_TICKS} ticks"
        )

    def _use_reference(self) -> None:
        """Let the reference image decide order of bits and flip, and the size with them."""
        image = read_reference(self.question.reference)
        sizes = {self.size, self.question.size} - {None}
        for divisor in (1, 2, 4):
            height, width = image.shape[0] // divisor, image.shape[1] // divisor
            if height * width and len(self.data) * 8 % (height * width) == 0:
                sizes.add((height, width))
        matches = match_reference(self.data, image, sorted(sizes))
        for match in matches[:4]:
            self.measured.append(match.sentence)
        if not matches or matches[0].correlation < MIN_CORRELATION:
            self.warnings.append(
                f"no size, order of bits and flip looks like {self.question.reference}: another "
                "scene, or another size"
            )
            return
        best = matches[0].geometry
        self.size, self.bit_order = (best.height, best.width), best.bit_order
        self.flip_rows = best.flip_rows

    def _judge(self) -> tuple[str, bool]:
        """Compare what was found with what was given."""
        given, notes = self.question, []
        is_right = True
        if self.size is None:
            notes.append(f"the size cannot be known from this file: {self.why_unknown}")
            is_right = given.size is not None
            if is_right:
                is_whole = self._test_given().is_whole
                notes.append(
                    f"{given.height}x{given.width} as given "
                    + ("may be right" if is_whole else "cannot be right: no whole number of ticks")
                )
                is_right = is_whole
            return "; ".join(notes), is_right
        if given.size not in (None, self.size):
            failed = _failed_tests(self._test_given())
            verdict = f"cannot be right: {failed}" if failed else "is unlikely, though it passes"
            notes.append(
                f"{given.height}x{given.width} {verdict}; {size_name(*self.size)} would be right"
            )
            is_right = False
        else:
            notes.append(size_name(*self.size))
        for name, found, stated in (
            ("bit_order", self.bit_order, given.bit_order),
            ("flip_rows", self.flip_rows, given.flip_rows),
        ):
            if found is None:
                said = "" if stated is None else f" ({stated} as given may be right)"
                notes.append(f"{name} cannot be known{said}")
            elif stated not in (None, found):
                notes.append(f"{name} {stated} cannot be right, {found} would be")
                is_right = False
            else:
                notes.append(f"{name} {found}")
        return "; ".join(notes), is_right

    def _test_given(self) -> GeometryTest:
        order = self.question.bit_order or self.bit_order or "little"
        test = self.bits.test(*self.question.size, order)
        self.measured.append(f"given size {test.sentence}")
        return test

    def _block(self) -> Block | None:
        """Read ticks from the middle, as found, else as given."""
        size = self.size or self.question.size or next(iter(self.likely), None)
        if size is None or len(self.data) * 8 < size[0] * size[1]:
            return None
        order = self.bit_order or self.question.bit_order or "little"
        flip = next((f for f in (self.flip_rows, self.question.flip_rows) if f is not None), True)
        return read_block(self.data, size, order, flip)


def read_block(data: np.ndarray, size: tuple[int, int], bit_order: str, flip_rows: bool) -> Block:
    """Unpack ticks from the middle of packed spikes.

    Args:
        data: uint8 [N].
        size: height and width.
        bit_order: "little" or "big".
        flip_rows: whether the bottom row comes first.
    """
    tick_bytes = size[0] * size[1] // 8
    num_ticks = len(data) // tick_bytes
    start, stop = middle_ticks(num_ticks, size[0] * size[1])
    stored = data[start * tick_bytes : stop * tick_bytes]
    spikes = np.unpackbits(stored, bitorder=bit_order).reshape(stop - start, *size)
    return Block(spikes[:, ::-1] if flip_rows else spikes, start, num_ticks)


def _failed_tests(test: GeometryTest) -> str:
    """Say which of the tests a size fails; empty where it passes them."""
    failed = []
    if not test.is_whole:
        failed.append(f"the file would hold {test.num_ticks:.2f} ticks")
    if not test.is_row:
        failed.append(f"pixels {test.width} apart are not alike")
    if not test.is_tick:
        failed.append(f"there is no dip at {test.height * test.width} pixels")
    return ", ".join(failed)
