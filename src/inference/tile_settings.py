"""How a video is cut into clips and tiles, and how to cut finer when memory runs out."""

import math
from dataclasses import dataclass, replace

BLENDS = ("smooth", "reference")
SMALLEST_TILE_PX = 64  # VRT's coarsest windows cover 64 pixels


@dataclass(frozen=True)
class TileSettings:
    """How a video is cut.

    Attributes:
        frames: Frames per clip; 0: all at once.
        size_px: Side of a square tile in RGB pixels; 0: whole frames.
        overlap_frames: Frames that neighbouring clips share.
        overlap_px: Pixels that neighbouring tiles share.
        blend: `smooth` or `reference`, see `src/inference/tiling.py`.
        window: Frames, rows and columns of VRT's attention window, to whose multiples whole axes
            are mirrored in `reference`.
    """

    frames: int = 12
    size_px: int = 256
    overlap_frames: int = 2
    overlap_px: int = 24
    blend: str = "smooth"
    window: tuple[int, int, int] = (6, 8, 8)

    def __post_init__(self) -> None:
        if self.blend not in BLENDS:
            raise ValueError(f"blend: expected one of {', '.join(BLENDS)}, got {self.blend!r}")
        for what, size, overlap in (
            ("frames", self.frames, self.overlap_frames),
            ("size_px", self.size_px, self.overlap_px),
        ):
            if size < 0 or overlap < 0:
                raise ValueError(f"tile {what} {size} and overlap {overlap} must not be negative")
            if size and overlap >= size:
                raise ValueError(f"tile {what} {size} must be larger than the overlap {overlap}")
        if self.blend == "reference" and self.size_px % self.window[2]:
            raise ValueError(
                f"tile size_px {self.size_px}: blend 'reference' needs a multiple of the window "
                f"{self.window[2]}"
            )

    def halved(self, height: int, width: int) -> "TileSettings | None":
        """Return settings with tiles of half the side, for frames of that size; None at the end.

        Whole frames first become tiles of half the longer side. The overlap stays where it is
        between an eighth and half of the tile. The result is a multiple of 8 pixels.
        """
        longest = max(height, width)
        size = min(self.size_px, longest) if self.size_px else longest
        half = max(SMALLEST_TILE_PX, math.ceil(size / 16) * 8)
        if half >= size:
            return None
        overlap = min(max(self.overlap_px, half // 8), half // 2)
        return replace(self, size_px=half, overlap_px=overlap)

    def describe(self) -> str:
        """Return the settings as words for a report."""
        frames = f"{self.frames} frames overlap {self.overlap_frames}" if self.frames else "all"
        space = f"{self.size_px} px overlap {self.overlap_px}" if self.size_px else "whole frames"
        return f"tiles: {frames} x {space}, blend {self.blend}"
