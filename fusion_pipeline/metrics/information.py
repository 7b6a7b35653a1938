"""Entropy, mutual information and its normalized form, from one joint histogram of exact counts.

`losses.mutual_information` spreads each value over several bins, to be differentiable; here every
voxel counts in one bin, as the literature that scores are compared with has it.
"""

import numpy as np
import numpy.typing as npt

from fusion_pipeline.metrics.slabs import Array, Mask, cropped

_LEVELS = 256  # gray levels of 8 bits, as published measures of fusion count them


def joint_histogram(
    a: Array, b: Array, bins: int, limits: tuple[float, float] | None = None
) -> Array:
    """Shares of the voxels in each pair of equal bins.

    Args:
        a: ``(n,)``, at least one value.
        b: ``(n,)``.
        bins: of each image.
        limits: ends of both images' bins; None takes the smallest and largest value of each.

    Returns:
        ``(bins, bins)``, sums to 1; the first axis follows ``a``.

    >>> joint_histogram(np.array([0.0, 0.0, 1.0]), np.array([5.0, 5.0, 3.0]), 2).round(2).tolist()
    [[0.0, 0.67], [0.33, 0.0]]
    """
    ends = None if limits is None else [limits, limits]
    return np.asarray(np.histogram2d(a, b, bins, ends)[0] / a.size)


def normalized_mutual_information(
    a: npt.ArrayLike, b: npt.ArrayLike, mask: npt.ArrayLike | None = None, bins: int = 64
) -> float:
    """``(H(a) + H(b)) / H(a, b)`` from a joint histogram of equal bins.

    Args:
        a: ``(*S)``; array or tensor of any range.
        b: ``(*S)``.
        mask: ``(*S)``, nonzero where to compare.
        bins: bins of each image, between its smallest and largest value in the mask.

    Returns:
        1 (nothing shared) to 2 (each image tells the other); 1 if both are constant.

    References:
        Studholme et al., "An overlap invariant entropy measure of 3D medical image alignment",
        Pattern Recognition 1999.

    >>> normalized_mutual_information([0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 3.0, 3.0])
    2.0
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if mask is not None:
        chosen = np.asarray(mask) != 0
        x, y = x[chosen], y[chosen]
    if x.size == 0:
        return 1.0
    joint = joint_histogram(x.ravel(), y.ravel(), bins)
    together = _entropy(joint)
    if together == 0:
        return 1.0
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / together


def mutual_information(
    fused: npt.ArrayLike,
    source: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    data_range: float = 1.0,
) -> float:
    """Information shared by the fused image and a source, 256 grey levels, in nats.

    References:
        Qu et al., "Information measure for performance of image fusion", Electronics Letters 2002.
    """
    (f, s), inside = cropped([fused, source], mask, data_range)
    joint = joint_histogram(_levels(f, inside), _levels(s, inside), _LEVELS, (0, _LEVELS))
    return _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint)


def entropy(
    image: npt.ArrayLike, mask: npt.ArrayLike | None = None, data_range: float = 1.0
) -> float:
    """Shannon entropy of 256 grey levels, in bits."""
    (array,), inside = cropped([image], mask, data_range)
    counts = np.histogram(_levels(array, inside), _LEVELS, (0, _LEVELS))[0]
    return _entropy(counts / counts.sum()) / float(np.log(2))


def _levels(image: Array, inside: Mask) -> Array:
    """Grey levels 0 … 255 of the voxels inside."""
    return np.clip(np.round(image[inside]), 0, _LEVELS - 1)


def _entropy(p: Array) -> float:
    """``−Σ p log p``."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
