"""Which size and bit order packed spikes have, found in the bits themselves.

Three things give the geometry away. A file holds a whole number of ticks. A pixel that has just
fired rarely fires in the next tick, so the bits of a pixel and of the same pixel one tick later,
H*W bits on, agree less than those of its neighbours: a dip in the autocorrelation at the lag H*W,
found first and without knowing W. And rows look like the rows above them: the rate image has a
peak at the lag W. The order of bits shows where two bytes meet: in the right order neighbours
across that border are as alike as neighbours within a byte. Nothing tells a picture from its
upside-down twin.
"""

from dataclasses import dataclass

import numpy as np

from src.data.inspection.autocorrelation import deviation, mean_autocorrelation, row_peaks

CHUNK_BYTES = 1 << 19
NUM_CHUNKS = 2
RATE_BITS = 1 << 25
RATE_TICKS = 128
SMALLEST_TICK = 64  # pixels
MIN_SURENESS = 12.0  # in deviations; the largest of a million chance values reaches 5 to 7
MIN_ROW_SURENESS = 7.0  # only a few dozen widths divide a tick
MIN_ORDER_SURENESS = 6.0
BETTER_ORDER = 1.05  # both orders show a width that is a multiple of 8 alike
SHARE_OF_BEST = 0.4  # a peak or dip this large, relative to the largest, is no echo of another one
LONGEST_SIDE_RATIO = 6
MOST_UNEQUAL_RATES = 0.05
NUMBER_BITS = (8, 10, 12, 16, 24)
ORDERS = ("little", "big")


@dataclass(frozen=True)
class Found:
    """A number read off the bits, and how sure it is.

    Attributes:
        value: the number; None where nothing stands out.
        strength: height of the peak or depth of the dip, as a difference of correlations.
        sureness: the same in deviations of what chance gives.
    """

    value: int | None
    strength: float
    sureness: float


@dataclass(frozen=True)
class GeometryTest:
    """The three tests for one size.

    Attributes:
        height, width: the size.
        num_ticks: size of the file in ticks; a fraction speaks against the size.
        row: correlation of bits at the lag W.
        beside_row: the same a few pixels to either side, mean; a true W is a peak.
        row_sureness: of the peak in the rate image, in deviations.
        next_tick: correlation at the lag H*W.
        next_tick_rows: the same at (H-1)*W and (H+1)*W, mean; above `next_tick` in a true geometry.
        tick_sureness: of that difference, in deviations.
    """

    height: int
    width: int
    num_ticks: float
    row: float
    beside_row: float
    row_sureness: float
    next_tick: float
    next_tick_rows: float
    tick_sureness: float

    @property
    def is_whole(self) -> bool:
        """Whether the file holds a whole number of ticks."""
        return self.num_ticks == int(self.num_ticks) >= 1

    @property
    def is_row(self) -> bool:
        """Whether W is a peak."""
        return self.row_sureness >= MIN_ROW_SURENESS

    @property
    def is_tick(self) -> bool:
        """Whether there is a dip at H*W."""
        return self.tick_sureness >= MIN_SURENESS

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        whole = "whole" if self.is_whole else "NOT whole"
        peak, dip = "a" if self.is_row else "NO", "a" if self.is_tick else "NO"
        return (
            f"{self.height}x{self.width}: {self.num_ticks:.10g} ticks ({whole}); correlation "
            f"{self.row:+.3f} one row on against {self.beside_row:+.3f} beside it ({peak} peak, "
            f"{self.row_sureness:.0f} deviations); {self.next_tick:+.3f} one tick on against "
            f"{self.next_tick_rows:+.3f} in the rows around ({dip} dip, {self.tick_sureness:.0f} "
            "deviations)"
        )


class PackedBits:
    """Bytes of packed spikes, for instance a memory map; only samples of them are read.

    Args:
        data: uint8 [N].

    Attributes:
        rate: mean of the sampled bits.
        correlation: autocorrelation of the bits, in the order "little", float64 [lags]; 1 at lag 0,
            and all 0 where the bits do not vary.
    """

    def __init__(self, data: np.ndarray) -> None:
        self.data = data
        chunks = [
            np.unpackbits(chunk, bitorder="little").astype(np.float32) for chunk in self._chunks()
        ]
        self.rate = float(np.mean([chunk.mean() for chunk in chunks])) if chunks else 0.0
        self._order_correlations = {"little": mean_autocorrelation(chunks, self.rate)}

    @property
    def correlation(self) -> np.ndarray:
        """See the class."""
        return self._order_correlations["little"]

    def correlation_in(self, bit_order: str) -> np.ndarray:
        """Return the autocorrelation of the bits in an order of bits."""
        if bit_order not in self._order_correlations:
            chunks = [
                np.unpackbits(chunk, bitorder=bit_order).astype(np.float32)
                for chunk in self._chunks()
            ]
            self._order_correlations[bit_order] = mean_autocorrelation(chunks, self.rate)
        return self._order_correlations[bit_order]

    def _chunks(self) -> list[np.ndarray]:
        length = min(len(self.data), CHUNK_BYTES)
        starts = np.linspace(0, len(self.data) - length, NUM_CHUNKS).astype(int)
        return [self.data[s : s + length] for s in np.unique(starts)] if length else []

    def number_bits(self) -> int | None:
        """Return the bits per number if the file holds numbers instead of single bits.

        High bits of a number are set at another rate than low ones; a pixel's place in a byte says
        nothing about its brightness.
        """
        bits = np.concatenate([np.unpackbits(chunk) for chunk in self._chunks()[:1]])
        unequal = {}
        for m in NUMBER_BITS:
            rates = bits[: len(bits) // m * m].reshape(-1, m).mean(axis=0)
            error = (0.25 * m / max(1, len(bits))) ** 0.5
            unequal[m] = float(np.ptp(rates)) - 8 * error if len(bits) >= m else 0.0
        largest = max(unequal.values())
        if largest < MOST_UNEQUAL_RATES:
            return None
        return min(m for m, value in unequal.items() if value > 0.9 * largest)

    def find_tick(self) -> Found:
        """Return the pixels of a tick, H*W: the smallest lag with a dip."""
        r = self.correlation
        lags = np.arange(SMALLEST_TICK, len(r) - 2, 8)
        if len(lags) < 8:
            return Found(None, 0.0, 0.0)
        dips = (r[lags - 2] + r[lags - 1] + r[lags + 1] + r[lags + 2]) / 4 - r[lags]
        return _find_outlier(lags, dips, dips, MIN_SURENESS)

    def rate_image(self, tick_pixels: int, bit_order: str) -> np.ndarray:
        """Return the rates of the pixels in file order over ticks in the middle: float32 [H*W]."""
        tick_bytes = tick_pixels // 8
        total = len(self.data) // tick_bytes
        ticks = min(total, RATE_TICKS, max(2, RATE_BITS // tick_pixels))
        start = (total - ticks) // 2
        counts = np.zeros(tick_pixels, np.float32)
        for tick in range(start, start + ticks):
            stored = self.data[tick * tick_bytes : (tick + 1) * tick_bytes]
            counts += np.unpackbits(stored, bitorder=bit_order)
        return counts / ticks

    def find_width(self, tick_pixels: int, bit_order: str | None) -> tuple[Found, str]:
        """Return the width of a picture of so many pixels, and the order of bits that shows it.

        Where the width is a multiple of 8 both orders show it alike.

        Args:
            tick_pixels: pixels of a tick.
            bit_order: what `find_bit_order` found; None tries both.
        """
        best = (Found(None, 0.0, 0.0), "little")
        for order in ORDERS if bit_order is None else [bit_order]:
            peaks = row_peaks(self.rate_image(tick_pixels, order))
            shortest = max(8, int(np.sqrt(tick_pixels / LONGEST_SIDE_RATIO)))
            longest = min(len(peaks) - 1, int(np.sqrt(tick_pixels * LONGEST_SIDE_RATIO)))
            widths = np.array([w for w in range(shortest, longest + 1) if tick_pixels % w == 0])
            if not len(widths):
                continue
            found = _find_outlier(widths, peaks[widths], peaks[shortest:], MIN_ROW_SURENESS)
            if found.strength > BETTER_ORDER * best[0].strength:
                best = (found, order)
        return best

    def test(self, height: int, width: int, bit_order: str = "little") -> GeometryTest:
        """Run the three tests for a size.

        Raises:
            ValueError: a size whose pixels are no multiple of 8.
        """
        tick = height * width
        if tick % 8 or min(height, width) < 1:
            raise ValueError(f"{height}x{width}: the number of pixels must be a multiple of 8")
        # Lags of whole bytes do not depend on the order within the bytes.
        r = self.correlation_in("little" if width % 8 == 0 else bit_order)
        num_ticks = len(self.data) * 8 / tick
        row = tick_value = beside = around = row_sureness = tick_sureness = 0.0
        if width + 8 < len(r):
            row = float(r[width])
            beside = float(np.mean([r[width + d] for d in (-8, -4, 4, 8) if width + d > 0]))
        if tick + width < len(r):
            tick_value = float(r[tick])
            around = float(r[tick - width] + r[tick + width]) / 2
            lags = np.arange(width + SMALLEST_TICK, len(r) - width, 8)
            dips = (r[lags - width] + r[lags + width]) / 2 - r[lags]
            tick_sureness = (around - tick_value) / deviation(dips)
        if num_ticks >= 1 and height > 1:
            peaks = row_peaks(self.rate_image(tick, bit_order))
            if width < len(peaks):
                row_sureness = float(peaks[width]) / deviation(peaks[8:])
        return GeometryTest(
            *(height, width, num_ticks, row, beside, row_sureness),
            *(tick_value, around, tick_sureness),
        )

    def find_bit_order(self, tick_pixels: int) -> tuple[str | None, str]:
        """Return the order of bits, None where the picture does not tell, and the numbers."""
        image = self.rate_image(tick_pixels, "little").reshape(-1, 8)  # bytes, first pixel first
        across = {"little": image[:-1, 7] - image[1:, 0], "big": image[:-1, 0] - image[1:, 7]}
        squares = {order: difference**2 for order, difference in across.items()}
        gap = squares["big"] - squares["little"]
        inside = float(np.mean(np.diff(image, axis=1) ** 2)) ** 0.5
        rms = {order: float(square.mean()) ** 0.5 for order, square in squares.items()}
        error = float(gap.std()) / max(1, len(gap)) ** 0.5
        sureness = abs(float(gap.mean())) / error if error else 0.0
        numbers = (
            f"rates of neighbours across byte borders differ by {rms['little']:.4f} with little, "
            f"{rms['big']:.4f} with big, inside bytes by {inside:.4f} ({sureness:.0f} deviations)"
        )
        if sureness < MIN_ORDER_SURENESS:
            return None, numbers
        return ("little" if gap.mean() > 0 else "big"), numbers


def _find_outlier(
    places: np.ndarray, values: np.ndarray, chance: np.ndarray, enough: float
) -> Found:
    """Return the place of the largest value if it stands out, or the place it is an echo of.

    A width shows at all its multiples, and so does a tick: a smaller place whose multiple the best
    one is, with a value not much below, is the true one.
    """
    spread = deviation(chance)
    best = int(np.argmax(values))
    largest = float(values[best])
    if largest / spread < enough:
        return Found(None, largest, largest / spread)
    is_origin = (places[best] % places == 0) & (values >= SHARE_OF_BEST * largest)
    first = int(np.argmax(is_origin))
    return Found(int(places[first]), float(values[first]), float(values[first]) / spread)
