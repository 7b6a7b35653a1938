"""Boxes of voxels: sums and means over them, as MIND-SSC, LNCC and smooth fields need."""

import torch.nn.functional as F
from torch import Tensor


def box_around(mask: Tensor, margin: int) -> tuple[slice, ...]:
    """Indices of the smallest box that holds a mask, and some voxels more where the image has them.

    Args:
        mask: ``(B, C, *S)``, positive inside; an empty one gives a corner.
        margin: voxels.

    Returns:
        Slices of all axes, the first two whole.
    """
    box = [slice(None), slice(None)]
    for axis, size in enumerate(mask.shape[2:], start=2):
        others = [a for a in range(mask.ndim) if a != axis]
        along = (mask.amax(others) > 0).nonzero()[:, 0].tolist() or [0]
        box.append(slice(max(along[0] - margin, 0), min(along[-1] + margin + 1, size)))
    return tuple(box)


def box_sum(values: Tensor, width: int) -> Tensor:
    """Sum over ``width`` voxels along each spatial axis, only where the whole box fits.

    Shifted views are added by doubling (1, 2, 4, … voxels): on a CPU several times faster than
    pooling or convolution, and exact where a running sum would cancel.

    Args:
        values: ``(B, C, *S)``.
        width: voxels.

    Returns:
        ``(B, C, *(S − width + 1))``; entry 0 is the sum of voxels 0 … width − 1.
    """
    for axis in range(2, values.ndim):
        values = _sum_along(values, axis, width)
    return values


def box_sum_same(values: Tensor, width: int) -> Tensor:
    """The same centred on each voxel; nothing is added from beyond the border.

    Args:
        values: ``(B, C, *S)``.
        width: an odd number of voxels.

    Returns:
        ``(B, C, *S)``.
    """
    return box_sum(F.pad(values, [width // 2] * (2 * (values.ndim - 2))), width)


def averaged(values: Tensor, times: int = 1) -> Tensor:
    """Average over three voxels along each axis, again and again; the border goes on.

    Args:
        values: ``(B, C, *S)``.
        times: how often.

    Returns:
        ``(B, C, *S)``.
    """
    d = values.ndim - 2
    for _ in range(times):
        values = box_sum(F.pad(values, [1] * (2 * d), mode="replicate"), 3) / 3**d
    return values


def _sum_along(values: Tensor, axis: int, width: int) -> Tensor:
    """Binary digits of ``width``: each set one adds a block of that many voxels."""
    length = values.shape[axis] - width + 1
    block, size, start = values, 1, 0
    total: Tensor | None = None
    while True:
        if width & size:
            part = block.narrow(axis, start, length)
            total = part if total is None else total + part
            start += size
        if start == width and total is not None:
            return total
        n = block.shape[axis] - size
        block, size = block.narrow(axis, 0, n) + block.narrow(axis, size, n), 2 * size
