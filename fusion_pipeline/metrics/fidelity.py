"""Pixel-domain visual information fidelity and the structural similarity map."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fusion_pipeline.metrics.slabs import Array

_TINY = 1e-10  # gray levels², as in the authors' program vifp_mscale
_NOISE = 2.0  # gray levels², variance of the visual noise, there as well


def similarity_map(x: Array, y: Array, windows: Sequence[int]) -> Array:
    """SSIM of each voxel's window on the scale 0 … 255, with the sample covariance.

    Args:
        x: ``(*S)``.
        y: ``(*S)``.
        windows: width along each axis.

    Returns:
        ``(*S)``; half a window from the border it uses the reflected image.

    References:
        Wang et al., "Image quality assessment: from error visibility to structural similarity",
        IEEE TIP 2004, eq. 13.
    """
    n = float(np.prod(windows))
    sample = n / max(n - 1, 1.0)
    mean_x, mean_y, xx, yy, xy = (
        np.asarray(ndimage.uniform_filter(z, tuple(windows))) for z in (x, y, x * x, y * y, x * y)
    )
    variances = sample * (xx - mean_x**2 + yy - mean_y**2)
    covariance = sample * (xy - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * covariance + c2) / (variances + c2)
    return np.asarray(structure * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1))


def fidelity_sums(source: Array, fused: Array) -> Array:
    """Numerator and denominator of VIF over four scales, on the scale 0 … 255.

    The filters run along the first two axes, so a volume is a stack of images along its last axis.
    A scale whose window does not fit into the image is left out.

    Args:
        source: ``(H, W)`` or ``(H, W, slices)``, the reference.
        fused: the same.

    Returns:
        ``(2,)``: information about the source in the fused image, and in the source itself.

    References:
        Sheikh and Bovik, "Image information and visual quality", IEEE TIP 2006 (the authors'
        program vifp_mscale).
    """
    total = np.zeros(2)
    for scale in range(1, 5):
        width = 2 ** (5 - scale) + 1
        if scale > 1 and min(source.shape[:2]) >= width:
            source, fused = (_smoothed(z, width)[::2, ::2] for z in (source, fused))
        if min(source.shape[:2]) >= width:
            total += _information(source, fused, width)
    return total


def _information(source: Array, fused: Array, width: int) -> Array:
    """The two sums of one scale: the fused image is ``g · source`` plus noise, window by window."""
    mean_s, mean_f, ss, ff, sf = (
        _smoothed(z, width) for z in (source, fused, source * source, fused * fused, source * fused)
    )
    var_s = np.maximum(ss - mean_s * mean_s, 0)
    var_f = np.maximum(ff - mean_f * mean_f, 0)
    gain = (sf - mean_s * mean_f) / (var_s + _TINY)
    flat = (var_s < _TINY) | (var_f < _TINY)
    gain = np.where(flat, 0, gain)
    noise = np.where(gain > 0, var_f - gain * (sf - mean_s * mean_f), var_f)
    noise = np.maximum(np.where(var_f < _TINY, 0, noise), _TINY)
    var_s = np.where(var_s < _TINY, 0, var_s)
    gain = np.maximum(gain, 0)
    return np.array(
        [
            np.log10(1 + gain * gain * var_s / (noise + _NOISE)).sum(),
            np.log10(1 + var_s / _NOISE).sum(),
        ]
    )


def _smoothed(image: Array, width: int) -> Array:
    """Gaussian of standard deviation ``width / 5`` along the first two axes, whole windows only."""
    offsets = np.arange(width) - (width - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * (width / 5) ** 2))
    weights /= weights.sum()
    half = width // 2
    for axis in (0, 1):
        image = ndimage.correlate1d(image, weights, axis)
        image = image[half:-half] if axis == 0 else image[:, half:-half]
    return image
