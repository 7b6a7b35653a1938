"""Similarity of the structure of two registered images of different modalities."""

import torch
from torch import Tensor

from fusion_pipeline.geometry.filters import box_around
from fusion_pipeline.losses import mind_ssc

_MIND_REACH = 3  # voxels: the dilation and the radius of its patches


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
