"""Which part of a frame is worth enlarging."""

import cv2
import numpy as np

ZOOM = 3


def busiest_region(first: np.ndarray, last: np.ndarray) -> tuple[slice, slice]:
    """Return rows and columns of the region, a `ZOOM`-th of the frame, that differs most.

    Args:
        first: uint8 RGB [H, W, 3].
        last: the same frame in another version, or another frame of the scene.
    """
    return densest_region(np.abs(first.astype(np.int16) - last).mean(axis=2), ZOOM)


def densest_region(weights: np.ndarray, zoom: int) -> tuple[slice, slice]:
    """Return rows and columns of the region, a `zoom`-th of the frame, with the largest sum.

    Args:
        weights: [H, W], not negative.
        zoom: how many regions fit into a side.
    """
    height, width = (max(1, side // zoom) for side in weights.shape)
    table = cv2.integral(weights.astype(np.float64))
    sums = (
        table[height:, width:]
        - table[:-height, width:]
        - table[height:, :-width]
        + table[:-height, :-width]
    )
    top, left = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + height), slice(left, left + width)
