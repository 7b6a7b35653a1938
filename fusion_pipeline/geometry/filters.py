"""Filters of images and fields: box sums and means, halving, blocks, differences; 2D and 3D."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_AVERAGE = {2: F.avg_pool2d, 3: F.avg_pool3d}
_LARGEST = {2: F.max_pool2d, 3: F.max_pool3d}


def box_around(mask: Tensor, margin: int) -> tuple[slice, ...]:
    """Indices of the smallest box that holds a mask, and some voxels more where the image has them.

    Args:
        mask: ``(B, C, *S)``, positive inside; an empty one gives a corner.
        margin: voxels.

    Returns:
        Slices of all axes, the first two whole.
    """
    sizes = list(mask.shape[2:])
    lines = [
        mask.amax([a for a in range(mask.ndim) if a != axis]) > 0 for axis in range(2, mask.ndim)
    ]
    box = [slice(None), slice(None)]
    # one copy to the processor for all axes, since it waits for each
    for line, size in zip(torch.cat(lines).cpu().split(sizes), sizes, strict=True):
        along = line.nonzero()[:, 0].tolist() or [0]
        box.append(slice(max(along[0] - margin, 0), min(along[-1] + margin + 1, size)))
    return tuple(box)


def sum_along(values: Tensor, axis: int, width: int) -> Tensor:
    """Sum over ``width`` voxels along one axis, only where all fit.

    By the binary digits of ``width``: each set one adds a block of that many voxels.

    Args:
        values: of any shape.
        axis: of ``values``.
        width: voxels.

    Returns:
        As ``values``, but ``width − 1`` fewer along the axis; entry 0 is the sum of 0 … width − 1.
    """
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
        values = sum_along(values, axis, width)
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


class _BoxSum(torch.autograd.Function):
    """A centred box sum is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, width: int) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.width = width
        return box_sum_same(values, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return box_sum_same(gradient, ctx.width), None


def box_sum_adjoint(values: Tensor, width: int) -> Tensor:
    """`box_sum_same` whose gradient is the same sum of the gradient: three times faster to train.

    Args:
        values: ``(B, C, *S)``.
        width: an odd number of voxels.

    Returns:
        ``(B, C, *S)``.
    """
    summed: Tensor = _BoxSum.apply(values, width)
    return summed


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


def box_mean(image: Tensor, window: int, *, zeros_beyond: bool = False) -> Tensor:
    """Mean over boxes around each voxel.

    Args:
        image: ``(B, C, *S)``.
        window: an odd number of voxels; at most as many as the image has along an axis.
        zeros_beyond: count zeros beyond the border; by default fewer voxels are averaged there.

    Returns:
        ``(B, C, *S)``.
    """
    pool = _AVERAGE[image.ndim - 2]
    d = image.ndim - 2
    for axis in range(d):  # one axis after the other: six times faster than the whole box at once
        n = image.shape[2 + axis]
        size = [min(window, n - 1 + n % 2) if a == axis else 1 for a in range(d)]
        half = [n // 2 for n in size]
        image = pool(image, size, 1, half, count_include_pad=zeros_beyond)
    return image


def block_mean(values: Tensor, size: int) -> Tensor:
    """Mean over blocks that tile the image; what does not fill a block is left out.

    Args:
        values: ``(B, C, *S)``.
        size: side of a block in voxels.

    Returns:
        ``(B, C, *(S // size))``.
    """
    return _AVERAGE[values.ndim - 2](values, size)


def continued(values: Tensor, mask: Tensor) -> Tensor:
    """Values in a mask, carried on by one voxel around it: linear interpolation reaches no farther.

    Args:
        values: ``(B, C, *S)``.
        mask: ``(B, 1, *S)`` bool.

    Returns:
        ``(B, C, *S)``; next to the mask the mean of the neighbours in it, farther out ``values``.
    """
    count = box_sum_same(mask.to(values.dtype), 3)
    mean = box_sum_same(torch.where(mask, values, 0.0), 3) / count.clamp_min(1.0)
    return torch.where(mask | (count < 0.5), values, mean)


def halved(image: Tensor) -> Tensor:
    """Average around every other voxel, corners kept: size ``2 n + 1`` becomes ``n + 1``.

    Args:
        image: ``(B, C, *S)``.

    Returns:
        ``(B, C, *((S + 1) // 2))``.
    """
    pool = _AVERAGE[image.ndim - 2]
    return pool(image, 3, stride=2, padding=1, count_include_pad=False)


def dilated(mask: Tensor, reach: float) -> Tensor:
    """The mask and a box of so many voxels around each of its voxels.

    Args:
        mask: ``(B, C, *S)`` 0/1.
        reach: voxels, at least one.

    Returns:
        ``(B, C, *S)`` 0/1.
    """
    n = max(1, round(reach))
    d = mask.ndim - 2
    for axis in range(d):  # one axis after the other: the same box, many times faster
        size = [2 * n + 1 if a == axis else 1 for a in range(d)]
        mask = _LARGEST[d](mask, size, 1, [k // 2 for k in size])
    return mask


def gradients(image: Tensor) -> Tensor:
    """Forward differences along each axis, 0 at the far border.

    Args:
        image: ``(B, 1, *S)``.

    Returns:
        ``(B, d, *S)`` per voxel.

    >>> gradients(torch.tensor([[[[0.0, 3.0], [1.0, 4.0]]]]))[0].tolist()
    [[[1.0, 1.0], [0.0, 0.0]], [[3.0, 0.0], [3.0, 0.0]]]
    """
    parts = []
    for axis in range(2, image.ndim):
        last = image.narrow(axis, image.shape[axis] - 1, 1)
        parts.append(torch.diff(image, dim=axis, append=last))
    return torch.cat(parts, 1)
