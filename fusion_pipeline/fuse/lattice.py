"""Of finer grids: what is decided on a lattice of blocks of their voxels goes to each voxel."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.fuse.shares import within_sources
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import sum_along
from fusion_pipeline.geometry.sampling import sample_along_axes

# A voxel of the lattice is no larger: between the 1 and 2 mm that the network and the steps were
# trained and chosen on, so that those images (0.98 × 0.98 × 3.27 mm) keep their own voxels.
_LARGEST_MM = 1.6
_MOST, _FEWEST = 4, 32  # voxels in a block, and of the lattice, along an axis
_VOXELS = 2_000_000  # of a part of the grid
# of the range: strength below which what is finer is hardly visible, mostly noise; fitted by
# `benchmarks/fusion_fine.py --faint`
_FAINT = 0.01
_AROUND = 5  # voxels over which the strength of what is finer is measured


def voxels_in_block(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels of a grid in one of the lattice, along each axis; one in pictures.

    Only axes of voxels of at most 0.8 mm are joined, and small images not at all.

    >>> voxels_in_block((512, 512, 250), (0.8, 0.8, 1.0))
    (2, 2, 1)
    """
    if len(shape) == 2:
        return 1, 1
    return tuple(
        max(1, min(n // _FEWEST, _MOST, int(_LARGEST_MM / s + 1e-3)))
        for n, s in zip(shape, spacing, strict=True)
    )


def block_means(values: Tensor, view: Tensor, block: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Means over blocks that an image shows whole, and which these are; 0 in all others.

    Where a field of view ends within a block, a mean of what lies in it would be carried beyond it.

    Args:
        values: ``(*S)``.
        view: ``(*S)`` bool, the field of view.
        block: voxels along each axis; of the last blocks what lies in the grid counts.

    Returns:
        ``(*T)`` and ``(*T)`` bool.
    """
    if all(n == 1 for n in block):
        return values * view, view
    shape, thick = view.shape, block[0]
    whole = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    means, covered = values.new_empty(whole), view.new_empty(whole)
    rows = max(1, _VOXELS // (shape[1] * shape[2] * thick))
    there = _share_in_grid(shape, block).to(values.device)
    missing = [w * b - n for w, b, n in zip(whole, block, shape, strict=True)]
    for start in range(0, whole[0], rows):
        part = slice(start * thick, (start + rows) * thick)
        inside = view[part].to(values.dtype)
        two = torch.stack([values[part] * inside, inside])
        beyond = (0, missing[2], 0, missing[1], 0, -two.shape[1] % thick)
        total, count = F.avg_pool3d(F.pad(two, beyond) if any(beyond) else two, tuple(block))
        some = slice(start, start + rows)
        covered[some] = count > 0.999 * there[some]
        means[some] = total / there[some] * covered[some]
    return means, covered


def _share_in_grid(shape: Sequence[int], block: Sequence[int]) -> Tensor:
    """How much of each block lies in the grid, ``(*T)``."""
    parts = [
        (n - torch.arange(0, n, b)).clamp_max(b) / b for n, b in zip(shape, block, strict=True)
    ]
    return parts[0].view(-1, 1, 1) * parts[1].view(-1, 1) * parts[2]


def in_detail(
    decided: Tensor,
    weights: Tensor,
    shown: Tensor,
    shares: Tensor,
    images: Sequence[Tensor],
    views: Tensor,
    block: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """The fused image and the weights of a grid, by those of its lattice.

    ``fused = up(fused') + Σ_k v_k R_k`` with ``R_k = I_k − up(I_k')``, which is finer than the
    lattice, and ``v_k ∝ w_k · (rms(R_k) + 0.01)`` of sum 1, over 5 × 5 voxels of a plane: by the
    weights alone an edge of one image would be thinned by what the others do not show there. Where
    one image alone is in view it comes out as it is, but for some 0.01 within a block of another.
    As on the lattice, within 0.7 of the darkest to 1.15 of the brightest source.

    Args:
        decided: ``(1, *T)`` in [0, 1], fused on the lattice.
        weights: ``(M, *T)``.
        shown: ``(M, *T)``, the images' means.
        shares: ``(M, *T)`` of its weight that each image keeps.
        images: M of ``(*S)`` in [0, 1], as a reader displays them.
        views: ``(M, *S)`` bool, their fields of view.
        block: voxels of the grid in one of the lattice.

    Returns:
        ``(1, *S)`` in [0, 1] and ``(M, *S)`` of sum 1, 0 outside each field of view; on the CPU.
    """
    fused = torch.empty(1, *views.shape[1:])
    detailed = torch.empty(views.shape)
    for near, inner, part in _parts(views.shape[1:]):
        places = _of_lattice(views.shape[1:], block, near)
        # where no block is covered whole, all that is covered counts alike
        weight = (sample_along_axes(weights, places) + 1e-6) * views[:, near]
        weight = weight / weight.sum(0, keepdim=True).clamp_min(1e-9)
        view = views[:, near].to(decided.dtype)
        own = torch.stack([one[near].to(decided.device) for one in images]) * view
        finer = own - sample_along_axes(shown, places)
        counts = weight * (_strength(finer) + _FAINT)
        finer = (counts * finer).sum(0, keepdim=True) / counts.sum(0, keepdim=True).clamp_min(1e-12)
        share = (sample_along_axes(shares, places) + 1e-6) * view
        # beside the part only to measure the strength in it
        now, own, share = (
            x[:, inner] for x in (sample_along_axes(decided, places) + finer, own, share)
        )
        fused[:, part] = within_sources(now, own, share)
        detailed[:, part] = weight[:, inner]
    return fused, detailed


def _strength(details: Tensor) -> Tensor:
    """Root mean square over the first two axes around each voxel; ``(M, *S)``."""
    near = details.square()
    for axis in (1, 2):
        margin = [0, 0] * (near.ndim - 1 - axis) + [_AROUND // 2] * 2
        line = F.pad(near.new_ones(near.shape[axis]), [_AROUND // 2] * 2)
        count = sum_along(line, 0, _AROUND).view(-1, *[1] * (near.ndim - 1 - axis))
        near = sum_along(F.pad(near, margin), axis, _AROUND).div_(count)
    return near.sqrt_()


def _parts(shape: Sequence[int]) -> Iterator[tuple[slice, slice, slice]]:
    """Parts of a grid along its first axis: with what lies around, without it there, and where."""
    # of thinner parts most would be what lies around
    rows, around = max(4 * _AROUND, _VOXELS // (shape[1] * shape[2])), _AROUND // 2
    for start in range(0, shape[0], rows):
        stop = min(start + rows, shape[0])
        low, high = max(0, start - around), min(shape[0], stop + around)
        yield slice(low, high), slice(start - low, stop - low), slice(start, stop)


def _of_lattice(shape: Sequence[int], block: Sequence[int], rows: slice) -> list[Matrix]:
    """Where the voxels of some rows of a grid lie on its lattice, ``(n,)`` along each axis."""
    there = [np.arange(n) for n in shape]
    there[0] = there[0][rows]
    return [(at + 0.5) / b - 0.5 for at, b in zip(there, block, strict=True)]


__all__ = ["block_means", "in_detail", "voxels_in_block"]
