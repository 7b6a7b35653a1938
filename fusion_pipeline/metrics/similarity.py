"""How alike two registered images of different modalities are."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import box_around
from fusion_pipeline.losses import mind_ssc

_MIND_REACH = 3  # voxels: the dilation and the radius of its patches


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
    joint = np.histogram2d(x.ravel(), y.ravel(), bins)[0] / x.size
    together = _entropy(joint)
    if together == 0:
        return 1.0
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / together


def mind_distance(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the self-similarity descriptors; 0 for the same structure.

    Args:
        a: ``(B, 1, *S)``.
        b: ``(B, 1, *S)``.
        mask: ``(B, 1, *S)`` 0/1, where to compare; patches end there.

    Returns:
        ``(B,)`` in [0, 1]; NaN under an empty mask.
    """
    if mask is not None and bool((mask > 0.5).any()):
        # what lies further away enters no patch: a partial view costs less
        box = box_around((mask > 0.5).float(), _MIND_REACH)
        a, b, mask = a[box], b[box], mask[box]
    inside = torch.ones_like(a[:, :1]) if mask is None else (mask > 0.5).to(a.dtype)
    difference = (mind_ssc(a, mask=mask) - mind_ssc(b, mask=mask)).abs().mean(1, keepdim=True)
    return (difference * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)


def _entropy(p: npt.NDArray[np.float64]) -> float:
    """``−Σ p log p``."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
