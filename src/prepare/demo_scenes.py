"""Scenes of moving photographs that can be looked at at any time.

The photographs are those that lie inside the scikit-image package; nothing is downloaded. World
coordinates are RGB pixels around the middle of the picture. A camera pose maps the world to the
screen, an object's pose maps the object to the world; the background is the world's back wall.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from src.data.frames import read_image
from src.data.simulation.simulator import BT601

SUPERSAMPLING = 2  # samples per RGB pixel and direction in colour renders, averaged by area
LARGEST_PHOTO_PX = 2.0  # more photograph pixels per RGB pixel would be skipped, not averaged


@dataclass(frozen=True)
class CutOut:
    """A part of a photograph that becomes an object of its own; pixels are the photograph's."""

    photograph: str  # file name inside the package
    centre: tuple[float, float]  # (x, y)
    radii: tuple[float, float]  # half the width and height
    edge_px: float = 1.0  # width of the soft edge; 1 is a hard edge
    num_lobes: int = 0  # bulges of the outline; 0 is an ellipse
    photo_px: float = 1.5  # pixels of the photograph per RGB pixel of the scene


def load_photograph(name: str, package: str = "skimage", folder: str = "data") -> np.ndarray:
    """Read a photograph that lies inside an installed package: uint8 RGB [H, W, 3]."""
    found = find_spec(package)
    path = Path(found.origin if found else package).parent / folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: {package} is missing or does not carry the photograph; run: pip install "
            "-r requirements.txt"
        )
    return read_image(path)


def to_grey(rgb: np.ndarray) -> np.ndarray:
    """Return the BT.601 grey of encoded values: uint8 [..., H, W]."""
    return np.rint(rgb @ np.array(BT601)).clip(0, 255).astype(np.uint8)


def cut_out(photograph: np.ndarray, part: CutOut) -> tuple[np.ndarray, np.ndarray]:
    """Return colours uint8 [h, w, 3] and opacity uint8 [h, w] of a part of a photograph."""
    lobe_height = 0.12 if part.num_lobes else 0.0
    reach = np.ceil(np.array(part.radii) * (1 + lobe_height) + part.edge_px).astype(int)
    left, top = np.round(part.centre).astype(int) - reach
    width, height = 2 * reach
    photo_height, photo_width = photograph.shape[:2]
    if left < 0 or top < 0 or left + width > photo_width or top + height > photo_height:
        raise ValueError(
            f"{part.photograph}: a part of {height}x{width} at (x={left}, y={top}) leaves the "
            f"photograph of {photo_height}x{photo_width}"
        )
    y = (np.arange(height) + 0.5 - height / 2)[:, None]
    x = (np.arange(width) + 0.5 - width / 2)[None]
    angle = np.arctan2(y / part.radii[1], x / part.radii[0])
    outline = 1 + lobe_height * np.sin(part.num_lobes * angle)
    inside = outline - np.hypot(x / part.radii[0], y / part.radii[1])
    distance_px = inside * min(part.radii)
    opacity = np.clip(distance_px / part.edge_px + 0.5, 0, 1)
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


# ---------------------------------------------------------------- motion


def pose_matrix(pose: np.ndarray) -> np.ndarray:
    """Return p -> zoom * R(angle) * p + (x, y) of [x, y, log zoom, angle]: float64 [3, 3]."""
    x, y, log_zoom, angle = pose
    cosine, sine = np.exp(log_zoom) * np.cos(angle), np.exp(log_zoom) * np.sin(angle)
    return np.array([[cosine, -sine, x], [sine, cosine, y], [0, 0, 1]])


@dataclass(frozen=True)
class SmoothMotion:
    """A sum of M sinusoids for each of x, y, log zoom and angle.

    x and y are shifts to the right and downwards in RGB pixels, the angle is in radians.
    """

    frequencies_hz: np.ndarray  # [M]
    amplitudes: np.ndarray  # [M, 4]
    phases: np.ndarray  # [M, 4] in radians
    rest: np.ndarray  # [4], where the motion is around

    def at(self, seconds: float) -> np.ndarray:
        """Return the pose at a time: float64 [4]."""
        turn = 2 * np.pi * self.frequencies_hz[:, None] * seconds + self.phases
        return self.rest + (self.amplitudes * np.sin(turn)).sum(axis=0)

    def with_speed(self, speed_px: float, duration: float) -> "SmoothMotion":
        """Return this motion with its shifts scaled to a root-mean-square speed in pixels/s."""
        times = np.linspace(0, duration, 512)
        shifts = np.array([self.at(seconds)[:2] for seconds in times])
        speeds = np.diff(shifts, axis=0) / (times[1] - times[0])
        factor = speed_px / np.sqrt((speeds**2).sum(axis=1).mean())
        return replace(self, amplitudes=self.amplitudes * [factor, factor, 1, 1])


def camera_motion(rng: np.random.Generator, speed_px: float, duration: float) -> SmoothMotion:
    """Draw a shaking camera: shifts at 3 to 8 Hz of an RMS speed, slow rotation and zoom."""
    frequencies = np.concatenate([rng.uniform(3.0, 5.0, 2), [rng.uniform(6.0, 8.0)]])
    amplitudes = np.zeros((3, 4))
    amplitudes[:, 0] = rng.uniform(0.6, 1.0, 3) * [1, 1, 0.3]
    amplitudes[:, 1] = rng.uniform(0.6, 1.0, 3) * [1, 1, 0.3]
    amplitudes[0, 2] = rng.uniform(0.02, 0.04)
    amplitudes[1, 3] = np.deg2rad(rng.uniform(1.0, 2.0))
    phases = rng.uniform(0, 2 * np.pi, (3, 4))
    return SmoothMotion(frequencies, amplitudes, phases, np.zeros(4)).with_speed(speed_px, duration)


def object_motion(
    rng: np.random.Generator, reach_px: tuple[float, float], speed_px: float
) -> SmoothMotion:
    """Draw an object that swings by `reach_px` (x, y), with a largest speed, and turns."""
    swing = speed_px / (2 * np.pi * reach_px[0])
    frequencies = swing * np.array([1.0, rng.uniform(1.1, 1.6)])
    amplitudes = np.zeros((2, 4))
    amplitudes[0, 0], amplitudes[1, 1] = reach_px
    amplitudes[0, 2] = rng.uniform(0.03, 0.08)
    amplitudes[1, 3] = np.deg2rad(rng.uniform(8.0, 20.0))
    phases = rng.uniform(0, 2 * np.pi, (2, 4))
    return SmoothMotion(frequencies, amplitudes, phases, np.zeros(4))


# ---------------------------------------------------------------- scenes


@dataclass(frozen=True)
class Layer:
    """A texture uint8 [h, w, C + 1], premultiplied with its opacity, and its motion.

    `texture_from_own` leads from RGB pixels around the layer's middle to those of the texture.
    """

    texture: np.ndarray
    texture_from_own: np.ndarray
    motion: SmoothMotion


def render(
    background: np.ndarray,
    background_from_world: np.ndarray,
    layers: list[Layer],
    world_from_pixel: np.ndarray,
    size: tuple[int, int],
    time: float,
) -> np.ndarray:
    """Return what is seen of a background and the layers before it: uint8 [H, W(, 3)]."""
    height, width = size
    matrix, whole = background_from_world @ world_from_pixel, (0, 0, width, height)
    image = sample_box(background, matrix, whole, cv2.BORDER_REFLECT_101)
    for layer in layers:
        own_from_world = np.linalg.inv(pose_matrix(layer.motion.at(time)))
        matrix = layer.texture_from_own @ own_from_world @ world_from_pixel
        box = covered_box(np.linalg.inv(matrix), layer.texture.shape, image.shape)
        if box is not None:
            x0, y0, x1, y1 = box
            part = sample_box(layer.texture, matrix, box, cv2.BORDER_CONSTANT)
            image[y0:y1, x0:x1] = blend_over(image[y0:y1, x0:x1], part)
    return image


class Scene:
    """A background photograph, objects before it from back to front, and a moving camera.

    The background is as large as possible without the view of `duration` seconds leaving it. `size`
    is (height, width) of the RGB picture, both even.
    """

    def __init__(
        self,
        background: str,
        objects: tuple[tuple[CutOut, SmoothMotion], ...],
        camera: SmoothMotion,
        size: tuple[int, int],
        duration: float,
    ) -> None:
        self.camera, self.size = camera, size
        photograph = load_photograph(background)
        rgb, grey = [], []
        for part, motion in objects:
            colours, opacity = cut_out(load_photograph(part.photograph), part)
            own = _photo_from_layer(colours, part.photo_px)
            rgb.append(Layer(premultiply(colours, opacity), own, motion))
            grey.append(Layer(premultiply(to_grey(colours), opacity), own, motion))
        self._rgb, self._grey = (photograph, rgb), (to_grey(photograph), grey)
        self.photo_px = self._fit(duration)

    def rgb(self, seconds: float) -> np.ndarray:
        """Return the instantaneous picture, averaged over pixel areas: uint8 [H, W, 3]."""
        image = self._render(*self._rgb, seconds, SUPERSAMPLING)
        return cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)

    def half_grey(self, seconds: float) -> np.ndarray:
        """Return the mean encoded grey of 2 x 2 RGB pixels: float32 [H/2, W/2] in [0, 1]."""
        image = self._render(*self._grey, seconds, 1)
        height, width = self.size
        blocks = image.reshape(height // 2, 2, width // 2, 2)
        return blocks.sum(axis=(1, 3), dtype=np.uint16).astype(np.float32) / np.float32(4 * 255)

    def _render(
        self, background: np.ndarray, layers: list[Layer], seconds: float, samples: int
    ) -> np.ndarray:
        """Render at `samples` per RGB pixel: uint8 [samples*H, samples*W(, C)]."""
        screen_from_world = self.screen_from_world(seconds)
        world_from_pixel = np.linalg.inv(screen_from_world) @ np.diag([1 / samples] * 2 + [1.0])
        own, size = _photo_from_layer(background, self.photo_px), [samples * n for n in self.size]
        return render(background, own, layers, world_from_pixel, size, seconds)

    def screen_from_world(self, seconds: float) -> np.ndarray:
        """Return the camera's matrix with the origin of the screen at its top left corner."""
        height, width = self.size
        return shift_matrix(width / 2, height / 2) @ pose_matrix(self.camera.at(seconds))

    def _fit(self, duration: float) -> float:
        """Return the photograph pixels per RGB pixel that keep the view inside."""
        reach = np.zeros(2)
        for seconds in np.linspace(0, duration, 512):
            world = np.linalg.inv(self.screen_from_world(seconds)) @ _corners(*self.size)
            reach = np.maximum(reach, np.abs(world[:2]).max(axis=1))
        photo_height, photo_width = self._grey[0].shape
        fit = min((photo_width - 2) / 2 / reach[0], (photo_height - 2) / 2 / reach[1])
        return float(min(fit, LARGEST_PHOTO_PX))


def _photo_from_layer(photograph: np.ndarray, photo_px: float) -> np.ndarray:
    """Return the matrix from a layer's own coordinates, around its middle, to its photograph's."""
    height, width = photograph.shape[:2]
    return shift_matrix(width / 2, height / 2) @ np.diag([photo_px, photo_px, 1.0])


def _corners(height: int, width: int) -> np.ndarray:
    return np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T


def shift_matrix(x: float, y: float) -> np.ndarray:
    """Return p -> p + (x, y): float64 [3, 3]."""
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def covered_box(
    pixel_from_photo: np.ndarray, photo_shape: tuple[int, ...], image_shape: tuple[int, ...]
) -> tuple[int, int, int, int] | None:
    """Return the pixels (x0, y0, x1, y1) that a part may cover, or None if it is out of sight."""
    x, y, _ = pixel_from_photo @ _corners(*photo_shape[:2])
    x0, x1 = max(int(x.min()) - 1, 0), min(int(x.max()) + 2, image_shape[1])
    y0, y1 = max(int(y.min()) - 1, 0), min(int(y.max()) + 2, image_shape[0])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def sample_box(
    photograph: np.ndarray,
    photo_from_pixel: np.ndarray,
    box: tuple[int, int, int, int],
    border: int,
) -> np.ndarray:
    """Sample a photograph bilinearly at the pixels of a box (x0, y0, x1, y1) of the picture."""
    x0, y0, x1, y1 = box
    # OpenCV counts from pixel centres, the matrices from pixel corners.
    matrix = (shift_matrix(-0.5, -0.5) @ photo_from_pixel @ shift_matrix(x0 + 0.5, y0 + 0.5))[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(photograph, matrix, (x1 - x0, y1 - y0), flags=flags, borderMode=border)
