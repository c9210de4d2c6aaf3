"""Training scenes: photographs in random motion, seen by random RGB and spike cameras.

Scene i of a split depends on (seed, split, i) alone. Its pictures are rendered at every tick of the
spike camera: a blurry frame is the mean of the ticks of its exposure, its sharp counterpart is one
of them, and the spike camera integrates them. Others are like data made from a high-speed video: a
blurry frame is the mean of a few pictures, the spike camera sees cross-fades between them. Two
thirds have the usual cameras: those of `scripts/prepare_data.py --interpolator linear` on a video,
whose other options have their defaults. `scene.yaml` of a scene says what was drawn.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import yaml

from src.data.description import (
    ACCEPTED,
    DataDescription,
    content_of,
    read_description,
    write_content,
)
from src.data.exposures import Exposure
from src.data.simulation.simulator import SpikeNoise, SpikeSimulator, rgb_to_intensity
from src.data.spikes.spike_dat import SpikeSidecar
from src.prepare.demo import (
    SPLITS,
    TICKS_PER_SECOND,
    Planned,
    SequenceReport,
    fill_root,
    write_sequence,
)
from src.prepare.demo_scenes import (
    Layer,
    SmoothMotion,
    load_photograph,
    pose_matrix,
    premultiply,
    render,
    sample_box,
    shift_matrix,
)

VERSION = 6  # to be raised whenever the same seed gives other bytes than before
SPIKE_SCALES = {"mixed": (2, 1), "half": (2, 2), "full": (1, 1)}  # usual and other RGB pixels
TRANSFERS = {1.0: "encoded", 2.2: "linear"}  # what the spikes integrate, by the RGB camera's gamma
CONTENT = f"{ACCEPTED}frames and spikes are renderings of one scene"
# What the demo validates on is no part of the training split either.
PHOTOGRAPHS = {
    "train": (
        *("astronaut.png", "camera.png", "cell.png", "chelsea.png", "china.jpg", "coins.png"),
        *("grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "retina.jpg"),
        "rocket.jpg",
    ),
    "val": (
        *("brick.png", "coffee.png", "flower.jpg", "motorcycle_left.png", "motorcycle_right.png"),
        "text.png",
    ),
}
OF_SCIKIT_LEARN = ("china.jpg", "flower.jpg")  # the others are scikit-image's
LARGEST_PART_PX = 640  # of a photograph; a scene shows less
USUAL = 0.67  # part of the scenes with the usual cameras
USUAL_CAMERAS = {"gamma": 1.0, "threshold": 2.0, "dead": 0.0, "hot": 0.0, "jpeg_quality": 0}
USUAL_CAMERAS |= {"shot": 0.0, "read": 0.0, "noise": SpikeNoise()}
USUAL_STEP = 8  # ticks from picture to picture
USUAL_AVERAGED = (7, 7, 7, 9, 11, 13)  # pictures in a blurry frame; GoPro has 7 to 13
VIDEO = 0.5  # part of the other scenes made as from a high-speed video
UNEVEN = 0.5  # part of the motions that change direction within an exposure
DEAD_LEAVES = 0.25  # part of the training split's textures that are drawn shapes
_PLAN, _LAYERS, _SPIKES, _CAMERA = range(4)  # streams of random numbers


@dataclass(frozen=True)
class ScenePlan:
    """What was drawn for one scene."""

    split: str
    index: int
    size: tuple[int, int]  # height and width of the RGB frames
    num_frames: int  # blurry frames
    ticks: int  # length of an exposure
    stride: int  # ticks from one exposure's start to the next; below `ticks` they overlap
    sharp_tick: int  # tick of the sharp frame in its exposure
    frames_averaged: int  # pictures whose mean is a blurry frame; 0: those of all ticks
    gamma: float  # 1.0: blur and spikes are of encoded values; 2.2: of light
    softness_px: float  # standard deviation of the optical blur, in RGB pixels
    camera_px: float  # root-mean-square shift of the camera in one exposure, in RGB pixels
    object_px: tuple[float, ...]  # the same of each object
    downscale: int  # RGB pixels per spike pixel in each direction
    threshold: float  # of the spike camera, which fires intensity / threshold times per tick
    noise: SpikeNoise  # of the spike camera
    dead: float  # part of the spike pixels that never fire
    hot: float  # part of them that always fire
    shot: float  # variance of the RGB camera's noise per unit of light; 1 is full scale
    read: float  # standard deviation of its noise in the dark
    jpeg_quality: int  # of the blurry frames; 0: no JPEG

    @property
    def spike_size(self) -> tuple[int, int]:
        """Height and width of the spike camera."""
        return self.size[0] // self.downscale, self.size[1] // self.downscale

    @property
    def name(self) -> str:
        """Folder of the scene below the data root."""
        return f"{self.split}/scene_{self.index:05d}"

    @property
    def text(self) -> str:
        """What `scene.yaml` holds."""
        values = asdict(self) | {"size": list(self.size), "object_px": list(self.object_px)}
        return yaml.safe_dump(values, sort_keys=False)


def draw_plan(
    seed: int, split: str, index: int, spike_scale: str = "mixed", threshold: float | None = None
) -> ScenePlan:
    """Draw what a scene is; `spike_scale` and `threshold` fix that of the spike camera only."""
    rng = _generator(seed, split, index, _PLAN)
    ticks = round(_log_uniform(rng, 24, 160))
    gap, overlap = rng.uniform(1.05, 2.5), rng.uniform(0.5, 0.95)
    stride = rng.choice([1.0, gap, overlap], p=[0.5, 0.3, 0.2])
    sharp = rng.normal(0.5, 0.04)
    moves, is_noisy, is_damaged, is_jpeg = (rng.random(4) < (0.9, 0.4, 0.4, 0.2)).tolist()
    noise = SpikeNoise(
        gain_sigma=is_noisy * _rounded(rng.uniform(0, 0.06)),
        dark_mean=is_noisy * _rounded(rng.uniform(0, 0.01)),
        dark_sigma=is_noisy * _rounded(rng.uniform(0, 0.01)),
        temporal_sigma=is_noisy * _log_uniform(rng, 0.003, 0.1),
        sensor_seed=int(rng.integers(2**31)),
    )
    averaged = int(rng.random() < VIDEO) * int(rng.choice(range(5, 16, 2)))
    if averaged:
        step = max(2, ticks // averaged)
        ticks, stride, sharp = averaged * step, 1.0, (averaged - 1) / 2 / averaged
    plan = ScenePlan(
        split=split,
        index=index,
        size=(int(rng.choice([128, 144, 160])), int(rng.choice(range(128, 209, 16)))),
        num_frames=int(rng.integers(8, 13)),
        ticks=ticks,
        stride=round(ticks * stride),
        sharp_tick=min(round(ticks * sharp), ticks - 1),
        frames_averaged=averaged,
        gamma=float(rng.choice(list(TRANSFERS))),
        softness_px=_rounded(rng.uniform(0.2, 0.7)),
        camera_px=moves * _log_uniform(rng, 3, 30),
        object_px=tuple(
            (rng.random() > 0.1) * _log_uniform(rng, 3, 150) for _ in range(rng.integers(2, 7))
        ),
        downscale=SPIKE_SCALES[spike_scale][int(rng.random() > 0.7)],
        threshold=_log_uniform(rng, 1, 4),
        noise=noise,
        dead=is_damaged * _log_uniform(rng, 1e-4, 3e-3),
        hot=is_damaged * _log_uniform(rng, 1e-4, 1e-3),
        shot=_log_uniform(rng, 1e-5, 5e-4),
        read=_log_uniform(rng, 1e-4, 1e-3),
        jpeg_quality=int(is_jpeg) * int(rng.integers(60, 97)),
    )
    if rng.random() < USUAL:
        averaged = int(rng.choice(USUAL_AVERAGED))
        ticks, sharp_tick = averaged * USUAL_STEP, averaged // 2 * USUAL_STEP
        times = {"ticks": ticks, "stride": ticks, "sharp_tick": sharp_tick}
        plan = replace(plan, frames_averaged=averaged, **times, **USUAL_CAMERAS)
    return plan if threshold is None else replace(plan, threshold=float(threshold))


# ---------------------------------------------------------------- the data set


def make_training_scenes(
    output: str | Path,
    seed: int,
    counts: Mapping[str, int],
    spike_scale: str = "mixed",
    threshold: float | None = None,
    num_workers: int = 1,
) -> list[SequenceReport]:
    """Write the scenes of each split that are not there yet, see `fill_root`.

    More scenes are added to those that are there, fewer delete nothing.
    """
    output = Path(output)
    source = f"training scenes version {VERSION}, seed {seed}, spikes {spike_scale}"
    source += "" if threshold is None else f", threshold {float(threshold):g}"
    description = DataDescription(
        source, threshold=threshold, ticks_per_second=float(TICKS_PER_SECOND)
    )
    plans = [
        draw_plan(seed, split, index, spike_scale, threshold)
        for split in SPLITS
        for index in range(counts[split])
    ]
    planned = [Planned(plan.name, plan.num_frames, plan.text, plan) for plan in plans]
    make = functools.partial(simulate_scene, seed)
    reports = fill_root(output, description, planned, make, num_workers, wait=False)
    if content_of(read_description(output)) != CONTENT:
        write_content(output, CONTENT)
    return reports


def simulate_scene(seed: int, folder: Path, plan: ScenePlan) -> SequenceReport:
    """Render, simulate and write one scene; see the module's first lines."""
    rng = _generator(seed, plan.split, plan.index, _CAMERA)

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, Exposure]]:
        for k, (pictures, spikes) in enumerate(expose(seed, plan)):
            step = plan.ticks // (plan.frames_averaged or plan.ticks)
            blurry = photograph(mean_light(pictures[::step], plan.gamma), plan, rng)
            times = k * plan.stride + np.array([0, plan.ticks, plan.sharp_tick])
            t0, t1, t_sharp = (times / TICKS_PER_SECOND).tolist()
            yield blurry, pictures[plan.sharp_tick], spikes, Exposure(t0, t1, t_sharp=t_sharp)

    sidecar = SpikeSidecar(*plan.spike_size, float(TICKS_PER_SECOND), plan.threshold)
    return write_sequence(folder, plan, sidecar, frames())


# ---------------------------------------------------------------- the cameras


def expose(seed: int, plan: ScenePlan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pictures uint8 [S, H, W, 3] and spikes uint8 [S, h, w] of each exposure.

    Shared ticks are rendered once, those between left out; the spike camera keeps its charge.
    """
    scene = TrainingScene(seed, plan)
    rng = _generator(seed, plan.split, plan.index, _SPIKES)
    sensor = SpikeSimulator(
        *plan.spike_size,
        seed=int(rng.integers(2**31)),
        threshold=plan.threshold,
        noise=plan.noise,
    )
    position = rng.random(plan.spike_size)
    pictures = spikes = None
    for start in range(0, plan.num_frames * plan.stride, plan.stride):
        known = max(0, plan.ticks - plan.stride) if start else 0
        ticks = range(start + known, start + plan.ticks)
        new = scene.pictures(ticks)
        bits = sensor.expose(rgb_to_intensity(new, TRANSFERS[plan.gamma], plan.downscale))
        bits[:, position < plan.dead] = 0
        bits[:, position > 1 - plan.hot] = 1
        pictures = np.concatenate([pictures[-known:], new]) if known else new
        spikes = np.concatenate([spikes[-known:], bits]) if known else bits
        yield pictures, spikes


def mean_light(pictures: np.ndarray, gamma: float) -> np.ndarray:
    """Return the mean of (value / 255) ** gamma over pictures uint8 [S, H, W, 3]: [H, W, 3]."""
    table = ((np.arange(256) / 255) ** gamma).astype(np.float32)
    total = np.zeros(pictures.shape[1:], np.float32)
    for picture in pictures:
        cv2.accumulate(cv2.LUT(picture, table), total)
    return total / len(pictures)


def photograph(light: np.ndarray, plan: ScenePlan, rng: np.random.Generator) -> np.ndarray:
    """Return what the RGB camera makes of light [H, W, 3] in 0..1: noise, curve, 8 bits, JPEG."""
    deviation = np.sqrt(plan.shot * light + plan.read**2)
    noisy = light + deviation * rng.standard_normal(light.shape, dtype=np.float32)
    image = np.rint(255 * noisy.clip(0, 1) ** (1 / plan.gamma)).astype(np.uint8)
    if not plan.jpeg_quality:
        return image
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, plan.jpeg_quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)


# ---------------------------------------------------------------- what is seen


class TrainingScene:
    """A background, 2 to 6 objects before it, and a moving camera; time is in exposures."""

    def __init__(self, seed: int, plan: ScenePlan) -> None:
        rng = _generator(seed, plan.split, plan.index, _LAYERS)
        self.size, self.ticks = plan.size, plan.ticks
        self.step = plan.ticks // (plan.frames_averaged or plan.ticks)
        duration = (plan.num_frames - 1) * plan.stride / plan.ticks + 1
        self.background, scale, position = soft_texture(rng, plan, margin_px=max(plan.size) / 2)
        own = pose_matrix([*position, -np.log(scale), rng.uniform(-np.pi, np.pi)])
        self.background_from_world = own @ np.diag([rng.choice([-1.0, 1.0]), 1.0, 1.0])
        self.camera = draw_motion(rng, plan.camera_px, duration, largest_turn=0.06)
        self.objects = []
        for shift_px in plan.object_px:
            motion = draw_motion(rng, shift_px, duration, largest_turn=0.3)
            x, y = rng.uniform(-0.45, 0.45, 2) * plan.size[::-1]
            texture, own = cut_blob(rng, plan)
            self.objects.append(Layer(texture, own, replace(motion, rest=np.array([x, y, 0, 0]))))

    def pictures(self, ticks: range) -> np.ndarray:
        """Return the picture at every tick, uint8 [S, H, W, 3]; cross-fades if it is a video."""
        instants = range(ticks.start, ticks.stop + self.step - 1, self.step)
        keys = [self.rgb(tick / self.ticks) for tick in instants]
        positions = [divmod(tick - ticks.start, self.step) for tick in ticks]
        return np.stack(
            [
                cv2.addWeighted(keys[i], 1 - k / self.step, keys[i + 1], k / self.step, 0)
                if k
                else keys[i]
                for i, k in positions
            ]
        )

    def rgb(self, exposures: float) -> np.ndarray:
        """Return the picture at a time: uint8 [H, W, 3]."""
        height, width = self.size
        view = pose_matrix(self.camera.at(exposures))
        world_from_pixel = np.linalg.inv(shift_matrix(width / 2, height / 2) @ view)
        own = self.background_from_world
        return render(self.background, own, self.objects, world_from_pixel, self.size, exposures)


def draw_motion(
    rng: np.random.Generator, shift_px: float, duration: float, largest_turn: float
) -> SmoothMotion:
    """Draw a slow swing with a shake that accelerates within an exposure; time is in exposures.

    `shift_px` is the root-mean-square shift in one exposure, `largest_turn` the amplitude of the
    rotation in radians; slow motions turn and zoom less. Half the motions also change direction
    within an exposure, like those of a film of 30 pictures per second of which 7 are averaged.
    """
    frequencies = rng.uniform([0.05, 0.3, 0.7, 1.5], [0.2, 0.8, 1.5, 3.0])
    uneven = rng.uniform(0.2, 1) * (rng.random() < UNEVEN)  # speed of the shakes; the swing has 1
    shares = [1, rng.uniform(0, 0.15), *(uneven * frequencies[0] / frequencies[2:])]
    amplitudes = np.zeros((4, 4))
    amplitudes[:, :2] = rng.uniform(0.3, 1.0, (4, 2)) * np.array(shares)[:, None]
    amplitudes[0, 2:] = rng.uniform(0, [0.15, largest_turn]) * min(1.0, shift_px / 8)
    phases = rng.uniform(0, 2 * np.pi, (4, 4))
    motion = SmoothMotion(frequencies, amplitudes, phases, np.zeros(4))
    return motion.with_speed(shift_px, duration)


def cut_blob(rng: np.random.Generator, plan: ScenePlan) -> tuple[np.ndarray, np.ndarray]:
    """Cut a blob with a smooth outline out of a texture: see `Layer`'s texture and matrix."""
    source, scale, position = soft_texture(rng, plan)
    detail = min(max(1.0, 1 / scale), 2.0)  # texture pixels per RGB pixel
    radii = _log_uniform(rng, 0.07, 0.5) * plan.size[0] * np.exp(rng.uniform(-0.5, 0.5, 2))
    side = 2 * int(np.ceil(1.7 * radii.max() * detail + 4))
    own = shift_matrix(side / 2, side / 2) @ np.diag([detail, detail, 1.0])
    source_from_own = pose_matrix([*position, -np.log(scale), rng.uniform(-np.pi, np.pi)])
    source_from_texture = source_from_own @ np.linalg.inv(own)
    colours = sample_box(source, source_from_texture, (0, 0, side, side), cv2.BORDER_REFLECT_101)
    y, x = (np.mgrid[:side, :side] + 0.5 - side / 2) / detail / radii[::-1, None, None]
    angle, outline = np.arctan2(y, x), 1.0
    for lobes in range(2, 6):
        shift = rng.uniform(0, 2 * np.pi)
        outline = outline + rng.normal(0, 0.18 / lobes) * np.sin(lobes * angle + shift)
    inside = (outline - np.hypot(x, y)) * radii.min() * detail  # texture pixels
    opacity = (255 * np.clip(inside + 0.5, 0, 1)).astype(np.uint8)
    opacity = cv2.GaussianBlur(opacity, (0, 0), plan.softness_px * detail)
    return premultiply(colours, opacity), own


def soft_texture(
    rng: np.random.Generator, plan: ScenePlan, margin_px: float = 0
) -> tuple[np.ndarray, float, np.ndarray]:
    """Draw a texture as the optics show it, its RGB pixels per texture pixel, and a position in it.

    Of three (x, y), if possible `margin_px` RGB pixels from the border, it is the one with most
    detail.
    """
    is_drawn = rng.random() < DEAD_LEAVES and plan.split == "train"
    names = PHOTOGRAPHS[plan.split]
    texture = _photograph_of(names[rng.integers(len(names))])
    texture = dead_leaves(rng, texture) if is_drawn else texture
    y, x = (int(rng.integers(max(1, n - LARGEST_PART_PX))) for n in texture.shape[:2])
    texture = texture[y : y + LARGEST_PART_PX, x : x + LARGEST_PART_PX]
    scale = _log_uniform(rng, 0.35, 1.2)
    soft = cv2.GaussianBlur(texture, (0, 0), plan.softness_px / scale).astype(np.float32)
    grey = soft.mean(axis=2, keepdims=True)
    detail = cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (65, 65))
    middle = np.array(detail.shape[::-1]) / 2
    free = np.clip(middle - margin_px / scale, 0, middle - 1)
    positions = middle + rng.uniform(-1, 1, (3, 2)) * free
    position = max(positions, key=lambda xy: detail[int(xy[1]), int(xy[0])])
    colours = grey + rng.uniform(0.5, 1.4) * (soft - grey)  # saturation, contrast, brightness,
    colours = grey.mean() + rng.uniform(0.7, 1.3) * (colours - grey.mean()) + rng.uniform(-25, 25)
    colours = (colours * rng.uniform(0.8, 1.2, 3)).clip(0, 255).astype(np.uint8)  # white balance
    return colours, scale, position


def dead_leaves(rng: np.random.Generator, photo: np.ndarray, side: int = 512) -> np.ndarray:
    """Return shapes and letters over each other in colours of a photograph: uint8 [side, side, 3].

    Their density falls with the cube of their size, as in natural images: edges at every scale.
    """
    image, count = np.zeros((side, side, 3), np.uint8), 1500
    sizes = (3.0**-2 + rng.random(count) * (150.0**-2 - 3.0**-2)) ** -0.5
    colours = photo.reshape(-1, 3)[rng.integers(photo.size // 3, size=count)].tolist()
    positions = rng.integers(side, size=(count, 2)).tolist()
    letters = rng.integers(33, 127, (count, 5), dtype=np.uint8)
    shapes, turns = rng.uniform(0.3, 1, count), rng.uniform(0, 180, count)
    for i in np.argsort(-sizes * rng.uniform(0.3, 1, count)):
        axes = max(1, int(sizes[i])), max(1, int(sizes[i] * shapes[i]))
        if i % 4 == 0 and sizes[i] > 6:
            text, scale, thickness = letters[i].tobytes().decode(), sizes[i] / 20, int(axes[1] / 8)
            cv2.putText(image, text, positions[i], 0, scale, colours[i], 1 + thickness, cv2.LINE_AA)
        elif i % 2:
            cv2.ellipse(image, positions[i], axes, turns[i], 0, 360, colours[i], -1)
        else:
            corners = cv2.boxPoints((positions[i], (2.0 * axes[0], 2.0 * axes[1]), turns[i]))
            cv2.fillConvexPoly(image, corners.astype(np.int32), colours[i])
    return image


@functools.cache
def _photograph_of(name: str) -> np.ndarray:
    origin = ("sklearn", "datasets/images") if name in OF_SCIKIT_LEARN else ("skimage", "data")
    return load_photograph(name, *origin)


def _generator(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index, stream])


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return _rounded(np.exp(rng.uniform(np.log(low), np.log(high))))


def _rounded(value: float) -> float:
    """Return a value with the digits that scene.yaml holds."""
    return float(f"{value:.6g}")
