"""Pointwise work on volumes part by part, so that what it needs in between stays small."""

from collections.abc import Callable

import torch
from torch import Tensor

# What is worked on at a time, at least one slice: 2 MB for each float32 volume in between, which a
# processor's fast memory holds. It changes no result, only the time: `benchmarks/full_size.py`.
PART_VOXELS = 500_000


def in_parts(
    function: Callable[..., Tensor],
    channels: int,
    *volumes: Tensor,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``function(*volumes)`` of a function that looks at each voxel alone.

    Args:
        function: of ``(*, *S)`` tensors; gives ``(channels, *S)``.
        channels: of the result.
        *volumes: each ``(*, *S)`` with one and the same number of axes in front.
        dtype: of the result; that of the first volume by default.

    Returns:
        ``(channels, *S)``.
    """
    shape = volumes[0].shape[1:]
    count = max(1, min(shape[0], torch.Size(shape).numel() // PART_VOXELS))
    if count == 1:
        return function(*volumes).to(dtype or volumes[0].dtype)
    out = volumes[0].new_empty((channels, *shape), dtype=dtype)
    for part, *parts in zip(
        out.chunk(count, 1), *(v.chunk(count, 1) for v in volumes), strict=True
    ):
        part.copy_(function(*parts))
    return out


__all__ = ["PART_VOXELS", "in_parts"]
