"""Smooth random motion for the demo scenes: hand shake, zoom, rotation, objects of their own."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pose:
    """Where something is at one time.

    Args:
        x: shift to the right in RGB pixels.
        y: shift downwards in RGB pixels.
        zoom: magnification.
        angle: rotation in radians.
    """

    x: float
    y: float
    zoom: float
    angle: float

    def matrix(self) -> np.ndarray:
        """Return p -> zoom * R(angle) * p + (x, y) as float64 [3, 3]."""
        cosine, sine = self.zoom * np.cos(self.angle), self.zoom * np.sin(self.angle)
        return np.array([[cosine, -sine, self.x], [sine, cosine, self.y], [0, 0, 1]])


class SmoothMotion:
    """A sum of sinusoids per coordinate: x, y, log zoom, angle.

    Args:
        frequencies_hz: [M] of the parts.
        amplitudes: [M, 4], in pixels, pixels, log zoom, radians.
        phases: [M, 4] in radians.
        rest: [4], where the motion is around.
    """

    def __init__(
        self,
        frequencies_hz: np.ndarray,
        amplitudes: np.ndarray,
        phases: np.ndarray,
        rest: np.ndarray,
    ) -> None:
        self.frequencies_hz, self.amplitudes = frequencies_hz, amplitudes
        self.phases, self.rest = phases, rest

    def at(self, seconds: float) -> Pose:
        """Return the pose at a time."""
        turn = 2 * np.pi * self.frequencies_hz[:, None] * seconds + self.phases
        x, y, log_zoom, angle = self.rest + (self.amplitudes * np.sin(turn)).sum(axis=0)
        return Pose(float(x), float(y), float(np.exp(log_zoom)), float(angle))

    def with_speed(self, speed_px: float, duration: float) -> "SmoothMotion":
        """Return this motion with its shifts scaled to a root-mean-square speed in pixels/s."""
        times = np.linspace(0, duration, 512)
        poses = [self.at(seconds) for seconds in times]
        speeds = np.diff([(pose.x, pose.y) for pose in poses], axis=0) / (times[1] - times[0])
        factor = speed_px / np.sqrt((speeds**2).sum(axis=1).mean())
        amplitudes = self.amplitudes * [factor, factor, 1, 1]
        return SmoothMotion(self.frequencies_hz, amplitudes, self.phases, self.rest)


def camera_motion(rng: np.random.Generator, speed_px: float, duration: float) -> SmoothMotion:
    """Draw a shaking camera: shifts at 3 to 8 Hz, slower rotation and zoom.

    Args:
        rng: what draws it.
        speed_px: root-mean-square speed of the image centre in RGB pixels per second.
        duration: seconds over which that speed is meant.
    """
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
    """Draw an object that swings to and fro across the scene and turns.

    Args:
        rng: what draws it.
        reach_px: how far it goes to the side and up or down, in RGB pixels.
        speed_px: its largest speed to the side, in RGB pixels per second.
    """
    swing = speed_px / (2 * np.pi * reach_px[0])
    frequencies = swing * np.array([1.0, rng.uniform(1.1, 1.6)])
    amplitudes = np.zeros((2, 4))
    amplitudes[0, 0], amplitudes[1, 1] = reach_px
    amplitudes[0, 2] = rng.uniform(0.03, 0.08)
    amplitudes[1, 3] = np.deg2rad(rng.uniform(8.0, 20.0))
    phases = rng.uniform(0, 2 * np.pi, (2, 4))
    return SmoothMotion(frequencies, amplitudes, phases, np.zeros(4))
