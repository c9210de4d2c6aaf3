"""How sharp the edges are that move, which is what motion blur takes away.

All on BT.601 luma Y, in grey levels of the studio range 16..235:

- the gradient g(I) of an image is its 3 x 3 Sobel gradient over 8: grey levels per pixel;
- a pixel *moves* where `|Y(sharp t) - Y(sharp t')| >= MOTION_LEVELS` for the sharp frame before or
  after it;
- a *motion edge* is a pixel that moves and where `|g(sharp)| >= EDGE_LEVELS`.

Over the motion edges of a frame, with n = g(sharp) / |g(sharp)| the true direction,

    sharpness = sum g(restored) . n / sum |g(sharp)|          1: as steep as the truth, 0: gone
    error     = sum |g(restored) - g(sharp)| / sum |g(sharp)|   0: equal to the truth

The sharpness counts only the part of the gradient that lies in the true direction, so that noise,
ringing across an edge and edges in a wrong place do not raise it. More than 1 is over-sharpened;
the error then grows.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from src.metrics.psnr_ssim import rgb_to_y

MOTION_LEVELS = 10.0
EDGE_LEVELS = 6.0
FEWEST_PIXELS = 50


@dataclass(frozen=True)
class MotionEdges:
    """The motion edges of one frame: where they are, bool [H, W], and g(sharp), [2, H, W]."""

    mask: np.ndarray
    gradient: np.ndarray


def find_motion_edges(
    sharp: np.ndarray, before: np.ndarray | None, after: np.ndarray | None
) -> MotionEdges:
    """Return the motion edges of a sharp frame, uint8 RGB [H, W, 3].

    `before` and `after` are the sharp frames around it, None at an end of the recording. Without
    both nothing moves.
    """
    grey = rgb_to_y(sharp)
    moves = np.zeros(grey.shape, bool)
    for other in (before, after):
        if other is not None:
            moves |= np.abs(rgb_to_y(other) - grey) >= MOTION_LEVELS
    gradient = gradient_of(grey)
    return MotionEdges(moves & (np.hypot(*gradient) >= EDGE_LEVELS), gradient)


def score_motion_edges(restored: np.ndarray, edges: MotionEdges) -> dict[str, float | None]:
    """Return `edge_sharpness` and `edge_error` of a uint8 RGB frame; None where few pixels move."""
    if edges.mask.sum() < FEWEST_PIXELS:
        return {"edge_sharpness": None, "edge_error": None}
    true = edges.gradient[:, edges.mask]
    found = gradient_of(rgb_to_y(restored))[:, edges.mask]
    length = np.hypot(*true)
    along, error = (found * true).sum(axis=0) / length, np.hypot(*(found - true))
    return {
        "edge_sharpness": float(along.sum() / length.sum()),
        "edge_error": float(error.sum() / length.sum()),
    }


def gradient_of(grey: np.ndarray) -> np.ndarray:
    """Return the Sobel gradient of float64 [H, W] as [2 (x, y), H, W], per pixel."""
    settings = {"ksize": 3, "scale": 1 / 8, "borderType": cv2.BORDER_REPLICATE}
    return np.stack([cv2.Sobel(grey, cv2.CV_64F, *axes, **settings) for axes in ((1, 0), (0, 1))])
