"""Self-similarity descriptors that look the same in every modality."""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.geometry.filters import box_around, box_sum

_TINY = 1e-12  # of a variance in squared units of the image, against division by 0


def mind_ssc(
    image: Tensor,
    *,
    radius: int = 1,
    dilation: int = 2,
    mask: Tensor | None = None,
    floor: float = 1e-3,
) -> Tensor:
    """Describe each voxel by the similarity of the patches around it: ``exp(−(D − min D) / V)``.

    ``D_c`` is the mean squared difference of the two patches of pair ``c``, ``V`` the mean of all
    ``D_c`` of a voxel, kept within ``floor`` and 1000 times its mean over the image. A pair is two
    of the neighbours at ``±dilation`` along the axes that are ``√2 · dilation`` apart.

    Convention:
        - unit: voxels; the image goes on beyond its border with its last value
        - channels: for axes ``a < b`` the pairs (+a, +b), (−b, −a), (−a, +b), (−b, +a)
        - ``image`` and ``s · image + t``, s ≠ 0, have the same descriptor; 1: most similar pair

    Args:
        image: ``(B, 1, *S)``.
        radius: patches have ``2 · radius + 1`` voxels along each axis.
        dilation: distance of the neighbours from the voxel.
        mask: ``(B, 1, *S)`` 0/1; voxels outside enter no patch, and the descriptor there is 0.
        floor: least ``V`` over its mean. The usual 1/1000 describes the noise in a muscle as
            sharply as its rim; 1/10 calls all pairs similar where there is little but noise.

    Returns:
        ``(B, 12, *S)`` in 3D, ``(B, 4, *S)`` in 2D, float32 in [0, 1].

    References:
        Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using
        self-similarities", MICCAI 2013.
    """
    if mask is None:
        return _described(image.float(), None, radius, dilation, floor)
    # Beyond the mask there is nothing to describe. One voxel of that around it, so that what goes
    # on beyond the box is not taken for data.
    inside = (mask > 0.5).float().expand(len(image), *mask.shape[1:])
    here = box_around(inside, 1)
    found = _described(image[here].float(), inside[here], radius, dilation, floor)
    if found.shape[2:] == image.shape[2:]:
        return found
    out = found.new_zeros(len(image), found.shape[1], *image.shape[2:])
    out[here] = found
    return out


def _described(
    image: Tensor, inside: Tensor | None, radius: int, dilation: int, floor: float
) -> Tensor:
    """`mind_ssc` of a whole image, ``(B, pairs, *S)``."""
    distance = _patch_distances(image, inside, radius, dilation)
    axes = tuple(range(1, image.ndim))
    variance = distance.mean(1, keepdim=True)
    if inside is None:
        typical = variance.detach().mean(axes, keepdim=True)
    else:
        total = (variance.detach() * inside).sum(axes, keepdim=True)
        typical = total / inside.sum(axes, keepdim=True).clamp_min(1.0)
    typical = typical.clamp_min(_TINY)
    variance = torch.minimum(torch.maximum(variance, typical * floor), typical * 1e3)
    # in place: these are large, and memory is what takes the time
    descriptor = (distance.amin(1, keepdim=True) - distance).div_(variance).exp_()
    return descriptor if inside is None else descriptor * inside


def _patch_distances(image: Tensor, inside: Tensor | None, radius: int, dilation: int) -> Tensor:
    """Mean squared difference of the two patches of each pair, ``(B, pairs, *S)``."""
    shape = image.shape[2:]
    padded = _pad(image, radius + dilation)
    width = 2 * radius + 1
    # counts of voxels: a byte holds those of small patches, and memory is what takes the time
    counts = torch.uint8 if width ** len(shape) < 256 else torch.int32
    padded_inside = None if inside is None else _pad(inside, radius + dilation).to(counts)
    distances, supports = [], []
    for offset, bases in _offsets(len(shape), dilation):
        near, far = _views(padded, offset, bases, dilation)
        squares = (near - far).square()
        if padded_inside is None:
            distances += _at(box_sum(squares, width) / width ** len(shape), bases, shape)
            continue
        near, far = _views(padded_inside, offset, bases, dilation)
        both = near * far
        support = box_sum(both, width)
        distances += _at(box_sum(squares * both, width) / support.clamp_min(1), bases, shape)
        supports += _at(support, bases, shape)
    distance = torch.cat(distances, dim=1)
    if inside is None:
        return distance
    # along the mask's rim only, so those voxels are picked out
    least = reduce(torch.minimum, supports)
    rim = ((least == 0) & (inside > 0))[:, 0].nonzero(as_tuple=True)
    of_voxels = distance.movedim(1, -1)
    supported = torch.stack([support[:, 0][rim] for support in supports], -1) > 0
    of_voxels[rim] = _without_gaps(of_voxels[rim], supported)
    return distance


def _without_gaps(distance: Tensor, supported: Tensor) -> Tensor:
    """Pairs without a single voxel inside the mask get the mean of the voxel's other pairs."""
    mean = (distance * supported).sum(-1, keepdim=True) / supported.sum(-1, keepdim=True).clamp_min(
        1
    )
    return torch.where(supported, distance, mean)


def _offsets(dims: int, dilation: int) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Vectors from one patch of a pair to the other, and where the first patches of both pairs lie.

    Each vector serves two pairs, so that it is subtracted, squared and averaged once.
    """
    for a, b in combinations(range(dims), 2):
        for sign in (1, -1):
            offset, first, second = [0] * dims, [0] * dims, [0] * dims
            offset[a], offset[b] = -sign * dilation, dilation
            first[a], second[b] = sign * dilation, -dilation
            yield offset, [first, second]


def _views(
    padded: Tensor, offset: Sequence[int], bases: Sequence[Sequence[int]], dilation: int
) -> tuple[Tensor, Tensor]:
    """The padded image around all first patches, and the same moved by the offset."""
    lowest, highest = _reach(bases)
    near = [dilation + low for low in lowest]
    sizes = [
        n - 2 * dilation + high - low
        for n, low, high in zip(padded.shape[2:], lowest, highest, strict=True)
    ]
    far = [start + step for start, step in zip(near, offset, strict=True)]
    return _window(padded, near, sizes), _window(padded, far, sizes)


def _at(values: Tensor, bases: Sequence[Sequence[int]], shape: Sequence[int]) -> list[Tensor]:
    """Values at each base for each voxel; ``values`` begins at the smallest base."""
    lowest = _reach(bases)[0]
    return [
        _window(values, [p - low for p, low in zip(base, lowest, strict=True)], shape)
        for base in bases
    ]


def _reach(bases: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Smallest and largest base along each axis."""
    columns = list(zip(*bases, strict=True))
    return [min(column) for column in columns], [max(column) for column in columns]


def _window(values: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """A view of a block of voxels."""
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        values = values.narrow(2 + axis, start, size)
    return values


def _pad(image: Tensor, width: int) -> Tensor:
    """Continue the border values."""
    return F.pad(image, [width] * (2 * (image.ndim - 2)), mode="replicate")
