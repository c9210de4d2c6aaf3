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
    height, width = first.shape[:2]
    region_height, region_width = max(1, height // ZOOM), max(1, width // ZOOM)
    difference = np.abs(first.astype(np.int16) - last).mean(axis=2)
    integral = cv2.integral(difference)
    sums = (
        integral[region_height:, region_width:]
        - integral[:-region_height, region_width:]
        - integral[region_height:, :-region_width]
        + integral[:-region_height, :-region_width]
    )
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return slice(int(top), int(top) + region_height), slice(int(left), int(left) + region_width)
