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

from src.prepare.inspection.autocorrelation import deviation, mean_autocorrelation, row_advantage
from src.prepare.inspection.peaks import (
    BESIDE,
    MIN_ROW_SURENESS,
    MIN_SURENESS,
    Found,
    FoundWidth,
    best_width,
    deepest_dip,
)

CHUNK_BYTES = 1 << 19
NUM_CHUNKS = 2
RATE_BITS = 1 << 25
RATE_TICKS = 128
WINDOWS = (128, 16)  # ticks: a long one has less noise, in short ones moving scenes stand still
SMALLEST_TICK = 64  # pixels
MIN_ORDER_SURENESS = 6.0
BETTER_ORDER = 1.05  # both orders show a width that is a multiple of 8 alike
MOST_UNEQUAL_RATES = 0.05
NUMBER_BITS = (8, 10, 12, 16, 24)
ORDERS = ("little", "big")


@dataclass(frozen=True)
class GeometryTest:
    """The three tests for one size.

    Attributes:
        height, width: the size.
        num_ticks: size of the file in ticks; a fraction speaks against the size.
        row: correlation of bits at the lag W.
        beside_row: the same a few pixels to either side, mean; a true W is a peak.
        row_sureness: of the same comparison in the rate image, in deviations.
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
        return deepest_dip(lags, dips)

    def rate_images(self, tick_pixels: int, bit_order: str, window: int) -> np.ndarray:
        """Return rates of the pixels in file order, in windows of ticks: float32 [N, H*W].

        The windows lie side by side in the middle of the file; all ticks of them together are at
        most `RATE_TICKS`.
        """
        tick_bytes = tick_pixels // 8
        total = len(self.data) // tick_bytes
        ticks = min(total, RATE_TICKS, max(2, RATE_BITS // tick_pixels))
        window = min(window, ticks)
        number = ticks // window
        start = (total - number * window) // 2
        images = np.zeros((number, tick_pixels), np.float32)
        for tick in range(number * window):
            first = (start + tick) * tick_bytes
            stored = self.data[first : first + tick_bytes]
            images[tick // window] += np.unpackbits(stored, bitorder=bit_order)
        return images / window

    def find_width(self, tick_pixels: int, bit_order: str | None) -> tuple[FoundWidth, str]:
        """Return the width of a picture of so many pixels, and the order of bits that shows it.

        Where the width is a multiple of 8 both orders show it alike.

        Args:
            tick_pixels: pixels of a tick.
            bit_order: what `find_bit_order` found; None tries both.
        """
        best = (FoundWidth(None, 0.0, 0.0), "little")
        for order in ORDERS if bit_order is None else [bit_order]:
            for window in WINDOWS:
                found = best_width(self.rate_images(tick_pixels, order, window))
                if not best[0].likely or found.sureness > BETTER_ORDER * best[0].sureness:
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
            beside = float(np.mean([r[width + d] for d in BESIDE if width + d > 0]))
        if tick + width < len(r):
            tick_value = float(r[tick])
            around = float(r[tick - width] + r[tick + width]) / 2
            lags = np.arange(width + SMALLEST_TICK, len(r) - width, 8)
            dips = (r[lags - width] + r[lags + width]) / 2 - r[lags]
            tick_sureness = (around - tick_value) / deviation(dips)
        if num_ticks >= 1 and height > 1:
            others = [width + d for d in BESIDE if width + d > 0]
            row_sureness = max(
                row_advantage(self.rate_images(tick, bit_order, window), width, others)[1]
                for window in WINDOWS
            )
        return GeometryTest(
            *(height, width, num_ticks, row, beside, row_sureness),
            *(tick_value, around, tick_sureness),
        )

    def find_bit_order(self, tick_pixels: int) -> tuple[str | None, str]:
        """Return the order of bits, None where the picture does not tell, and the numbers."""
        image = self.rate_images(tick_pixels, "little", RATE_TICKS)
        image = image.reshape(-1, 8)  # bytes, first pixel first
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
