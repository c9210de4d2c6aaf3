"""PSNR and SSIM of 8-bit images, on RGB and on luma, as BasicSR and VRT define them.

All take two uint8 RGB images [H, W, 3] of one size, else they raise ValueError. They score whole
images: no border is cut, nothing is resized. All arithmetic is float64.
"""

import math

import cv2
import numpy as np

PEAK = 255.0
SSIM_WINDOW_PX = 11
SSIM_SIGMA_PX = 1.5
SSIM_C1 = (0.01 * PEAK) ** 2  # Wang et al. 2004, K1 = 0.01
SSIM_C2 = (0.03 * PEAK) ** 2  # Wang et al. 2004, K2 = 0.03
# BT.601 studio range: Y in 16..235 for R, G, B in 0..255.
LUMA_WEIGHTS = (65.481 / PEAK, 128.553 / PEAK, 24.966 / PEAK)
LUMA_OFFSET = 16.0


def psnr(restored: np.ndarray, sharp: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB; equal images give `inf`.

    The squared error is averaged over all pixels and channels before the logarithm.
    """
    return _psnr(*_checked(restored, sharp))


def ssim(restored: np.ndarray, sharp: np.ndarray) -> float:
    """Return the structural similarity, the mean over channels.

    Gaussian window of 11 x 11 pixels with sigma 1.5, averaged where the window fits into the image
    (Wang et al. 2004). Both sides must be at least 11 pixels.
    """
    return _ssim(*_checked(restored, sharp))


def psnr_y(restored: np.ndarray, sharp: np.ndarray) -> float:
    """Return the PSNR of the luma in dB, see `rgb_to_y`."""
    return _psnr(*map(rgb_to_y, _checked(restored, sharp)))


def ssim_y(restored: np.ndarray, sharp: np.ndarray) -> float:
    """Return the SSIM of the luma, see `rgb_to_y` and `ssim`."""
    return _ssim(*map(rgb_to_y, _checked(restored, sharp)))


def rgb_to_y(image: np.ndarray) -> np.ndarray:
    """Return the BT.601 studio-range luma, float64 [H, W] in 16..235, of a uint8 RGB [H, W, 3].

    The value is not rounded: rounding it to 8 bits changes PSNR-Y by up to half a decibel.
    """
    return image.astype(np.float64) @ np.array(LUMA_WEIGHTS) + LUMA_OFFSET


def score_text(value: float | None, decimals: int) -> str:
    """Return a score as text, "-" where it was not measured."""
    return "-" if value is None else f"{value:.{decimals}f}"


def _psnr(restored: np.ndarray, sharp: np.ndarray) -> float:
    mean_squared_error = float(np.mean(np.square(restored - sharp)))
    return 10.0 * math.log10(PEAK**2 / mean_squared_error) if mean_squared_error else math.inf


def _ssim(restored: np.ndarray, sharp: np.ndarray) -> float:
    height, width = sharp.shape[:2]
    if min(height, width) < SSIM_WINDOW_PX:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW_PX} x {SSIM_WINDOW_PX} pixels, "
            f"got {height} x {width}"
        )
    mean_a, mean_b = _smooth(restored), _smooth(sharp)
    square_a, square_b, product = mean_a * mean_a, mean_b * mean_b, mean_a * mean_b
    variance_sum = _smooth(restored * restored + sharp * sharp) - square_a - square_b
    covariance = _smooth(restored * sharp) - product
    luminance = (2 * product + SSIM_C1) / (square_a + square_b + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_sum + SSIM_C2)
    return float(np.mean(luminance * structure))


def _smooth(image: np.ndarray) -> np.ndarray:
    """Return the Gaussian mean of a float64 image where the whole window lies inside it."""
    kernel = cv2.getGaussianKernel(SSIM_WINDOW_PX, SSIM_SIGMA_PX, cv2.CV_64F)
    border = SSIM_WINDOW_PX // 2
    return cv2.sepFilter2D(image, cv2.CV_64F, kernel, kernel)[border:-border, border:-border]


def _checked(restored: np.ndarray, sharp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both images as float64."""
    for name, image in (("restored", restored), ("sharp", sharp)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"{name} image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}"
            )
    if restored.shape != sharp.shape:
        raise ValueError(
            f"restored image is {restored.shape[0]} x {restored.shape[1]} pixels, "
            f"sharp image {sharp.shape[0]} x {sharp.shape[1]}; scores need equal sizes"
        )
    return restored.astype(np.float64), sharp.astype(np.float64)
