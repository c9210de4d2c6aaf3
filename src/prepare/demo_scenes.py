"""Scenes of moving photographs that can be looked at at any time.

World coordinates are RGB pixels around the middle of the picture. A camera pose maps the world to
the screen, an object's pose maps the object to the world; the background is the world's back wall.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from src.prepare.demo_motion import SmoothMotion
from src.prepare.demo_photographs import (
    CutOut,
    blend_over,
    cut_out,
    load_photograph,
    premultiply,
    to_grey,
)

SUPERSAMPLING = 2  # samples per RGB pixel and direction in colour renders, averaged by area
LARGEST_PHOTO_PX = 2.0  # more photograph pixels per RGB pixel would be skipped, not averaged


@dataclass(frozen=True)
class SceneObject:
    """A cut-out and how it moves.

    Args:
        piece: what it is.
        motion: its pose in the world.
    """

    piece: CutOut
    motion: SmoothMotion


class Scene:
    """A background photograph, objects before it, and a moving camera.

    The background is shown as large as possible without the view ever leaving the photograph.

    Args:
        background: file name of a photograph.
        objects: from back to front.
        camera: its motion.
        size: (height, width) of the RGB picture, both even.
        duration: seconds in which the view must stay on the photograph.
    """

    def __init__(
        self,
        background: str,
        objects: tuple[SceneObject, ...],
        camera: SmoothMotion,
        size: tuple[int, int],
        duration: float,
    ) -> None:
        self.camera, self.objects, self.size = camera, objects, size
        self._rgb = load_photograph(background)
        self._grey = to_grey(self._rgb)
        self._rgb_pieces, self._grey_pieces = [], []
        for item in objects:
            colours, opacity = cut_out(load_photograph(item.piece.photograph), item.piece)
            self._rgb_pieces.append(premultiply(colours, opacity))
            self._grey_pieces.append(premultiply(to_grey(colours), opacity))
        self.photo_px = self._fit(duration)

    def rgb(self, seconds: float) -> np.ndarray:
        """Return the instantaneous picture, averaged over pixel areas: uint8 [H, W, 3]."""
        image = self._render(self._rgb, self._rgb_pieces, seconds, SUPERSAMPLING)
        height, width = self.size
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def half_grey(self, seconds: float) -> np.ndarray:
        """Return the encoded grey at half the size: float32 [H/2, W/2] in [0, 1].

        Each value is the mean of the 2 x 2 RGB pixels that it covers.
        """
        image = self._render(self._grey, self._grey_pieces, seconds, 1)
        height, width = self.size
        blocks = image.reshape(height // 2, 2, width // 2, 2)
        return blocks.sum(axis=(1, 3), dtype=np.uint16).astype(np.float32) / np.float32(4 * 255)

    def _render(
        self, background: np.ndarray, pieces: list[np.ndarray], seconds: float, samples: int
    ) -> np.ndarray:
        """Render at `samples` per RGB pixel: uint8 [samples*H, samples*W(, C)]."""
        height, width = self.size
        screen_from_world = self._screen_from_world(seconds)
        world_from_pixel = np.linalg.inv(screen_from_world) @ _scale(1 / samples)
        photo_from_world = _photo_from_layer(background, self.photo_px)
        image = _sample(
            background,
            photo_from_world @ world_from_pixel,
            (0, 0, samples * width, samples * height),
            cv2.BORDER_REFLECT_101,
        )
        for item, piece in zip(self.objects, pieces, strict=True):
            world_from_object = item.motion.at(seconds).matrix()
            photo_from_object = _photo_from_layer(piece, item.piece.photo_px)
            photo_from_pixel = photo_from_object @ np.linalg.inv(world_from_object)
            photo_from_pixel = photo_from_pixel @ world_from_pixel
            box = _covered_box(np.linalg.inv(photo_from_pixel), piece.shape, image.shape)
            if box is None:
                continue
            x0, y0, x1, y1 = box
            layer = _sample(piece, photo_from_pixel, box, cv2.BORDER_CONSTANT)
            image[y0:y1, x0:x1] = blend_over(image[y0:y1, x0:x1], layer)
        return image

    def _screen_from_world(self, seconds: float) -> np.ndarray:
        """Return the camera's matrix with the origin of the screen at its top left corner."""
        height, width = self.size
        to_corner = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]], dtype=float)
        return to_corner @ self.camera.at(seconds).matrix()

    def _fit(self, duration: float) -> float:
        """Return the photograph pixels per RGB pixel that keep the view inside."""
        height, width = self.size
        corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
        reach = np.zeros(2)
        for seconds in np.linspace(0, duration, 512):
            world = np.linalg.inv(self._screen_from_world(seconds)) @ corners
            reach = np.maximum(reach, np.abs(world[:2]).max(axis=1))
        photo_height, photo_width = self._grey.shape
        fit = min((photo_width - 2) / 2 / reach[0], (photo_height - 2) / 2 / reach[1])
        return float(min(fit, LARGEST_PHOTO_PX))


def _scale(factor: float) -> np.ndarray:
    return np.diag([factor, factor, 1.0])


def _photo_from_layer(photograph: np.ndarray, photo_px: float) -> np.ndarray:
    """Return the matrix from a layer's own coordinates, around its middle, to its photograph's."""
    height, width = photograph.shape[:2]
    to_middle = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]], dtype=float)
    return to_middle @ _scale(photo_px)


def _covered_box(
    pixel_from_photo: np.ndarray, photo_shape: tuple[int, ...], image_shape: tuple[int, ...]
) -> tuple[int, int, int, int] | None:
    """Return the pixels (x0, y0, x1, y1) that a piece may cover, or None if it is out of sight."""
    height, width = photo_shape[:2]
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    x, y, _ = pixel_from_photo @ corners
    x0, x1 = max(int(x.min()) - 1, 0), min(int(x.max()) + 2, image_shape[1])
    y0, y1 = max(int(y.min()) - 1, 0), min(int(y.max()) + 2, image_shape[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _sample(
    photograph: np.ndarray,
    photo_from_pixel: np.ndarray,
    box: tuple[int, int, int, int],
    border: int,
) -> np.ndarray:
    """Sample a photograph bilinearly at the pixels of a box (x0, y0, x1, y1) of the picture."""
    x0, y0, x1, y1 = box
    # OpenCV counts from pixel centres, the matrices from pixel corners.
    to_box = np.array([[1, 0, x0 + 0.5], [0, 1, y0 + 0.5], [0, 0, 1]], dtype=float)
    to_centres = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]], dtype=float)
    matrix = (to_centres @ photo_from_pixel @ to_box)[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(photograph, matrix, (x1 - x0, y1 - y0), flags=flags, borderMode=border)
