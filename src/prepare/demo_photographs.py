"""Photographs for the demo scenes: those that lie inside the scikit-image package.

Nothing is downloaded; only files that the wheel itself carries are used.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from src.data.frames import read_image
from src.data.simulation.simulator import BT601


@dataclass(frozen=True)
class CutOut:
    """A piece of a photograph that becomes an object of its own.

    Args:
        photograph: file name inside the package.
        centre: (x, y) of the piece in pixels of the photograph.
        radii: half its width and height in pixels of the photograph.
        edge_px: width of the soft edge in pixels of the photograph; 1 is a hard edge.
        num_lobes: bulges of the outline; 0 is an ellipse.
        photo_px: pixels of the photograph per RGB pixel of the scene.
    """

    photograph: str
    centre: tuple[float, float]
    radii: tuple[float, float]
    edge_px: float = 1.0
    num_lobes: int = 0
    photo_px: float = 1.5


def load_photograph(name: str) -> np.ndarray:
    """Read a photograph of the scikit-image package: uint8 RGB [H, W, 3].

    Raises:
        FileNotFoundError: the package is missing or does not carry this file.
    """
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "scikit-image is not installed; run: pip install -r requirements.txt"
        )
    path = Path(package.origin).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: this scikit-image does not carry the photograph; "
            "run: pip install 'scikit-image>=0.24'"
        )
    return read_image(path)


def to_grey(rgb: np.ndarray) -> np.ndarray:
    """Return the BT.601 grey of encoded values: uint8 [..., H, W]."""
    return np.rint(rgb @ np.array(BT601)).clip(0, 255).astype(np.uint8)


def cut_out(photograph: np.ndarray, piece: CutOut) -> tuple[np.ndarray, np.ndarray]:
    """Cut a piece out of a photograph.

    Args:
        photograph: uint8 [H, W, 3].
        piece: what to cut.

    Returns:
        colours uint8 [h, w, 3] and opacity uint8 [h, w]; the piece's centre is the middle of both.

    Raises:
        ValueError: the piece leaves the photograph.
    """
    reach = np.ceil(np.array(piece.radii) * (1 + _lobe_height(piece)) + piece.edge_px).astype(int)
    left, top = np.round(piece.centre).astype(int) - reach
    width, height = 2 * reach
    photo_height, photo_width = photograph.shape[:2]
    if left < 0 or top < 0 or left + width > photo_width or top + height > photo_height:
        raise ValueError(
            f"{piece.photograph}: a piece of {height}x{width} at (x={left}, y={top}) leaves the "
            f"photograph of {photo_height}x{photo_width}"
        )
    y = (np.arange(height) + 0.5 - height / 2)[:, None]
    x = (np.arange(width) + 0.5 - width / 2)[None]
    angle = np.arctan2(y / piece.radii[1], x / piece.radii[0])
    outline = 1 + _lobe_height(piece) * np.sin(piece.num_lobes * angle)
    inside = outline - np.hypot(x / piece.radii[0], y / piece.radii[1])
    distance_px = inside * min(piece.radii)
    opacity = np.clip(distance_px / piece.edge_px + 0.5, 0, 1)
    colours = photograph[top : top + height, left : left + width]
    return colours, np.rint(255 * opacity).astype(np.uint8)


def premultiply(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Return colours times opacity with the opacity as last channel: uint8 [h, w, C + 1]."""
    if colours.ndim == 2:
        colours = colours[..., None]
    weighted = np.rint(colours * (opacity[..., None] / 255.0)).astype(np.uint8)
    return np.concatenate([weighted, opacity[..., None]], axis=-1)


def blend_over(image: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Lay a premultiplied layer [h, w, C + 1] over an image [h, w, C] or, for C = 1, [h, w]."""
    colours, opacity = layer[..., :-1], layer[..., -1]
    if image.ndim == 2:
        colours = colours[..., 0]
    else:
        opacity = cv2.merge([opacity] * image.shape[2])
    return cv2.add(colours, cv2.multiply(image, cv2.bitwise_not(opacity), scale=1 / 255))


def _lobe_height(piece: CutOut) -> float:
    return 0.12 if piece.num_lobes else 0.0
