"""Of finer grids: what is decided on a lattice of blocks of their voxels goes to each voxel."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.fuse.shares import within_sources

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
    shape, depth = view.shape, block[-1]
    whole = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    means, covered = values.new_empty(whole), view.new_empty(whole)
    slices = max(1, _VOXELS // (shape[0] * shape[1] * depth))
    there = _share_in_grid(shape, block).to(values.device)
    missing = [w * b - n for w, b, n in zip(whole[:-1], block[:-1], shape[:-1], strict=True)]
    for start in range(0, whole[-1], slices):
        part = slice(start * depth, (start + slices) * depth)
        inside = view[..., part].to(values.dtype)
        two = torch.stack([values[..., part] * inside, inside])
        beyond = (0, -two.shape[-1] % depth, 0, missing[1], 0, missing[0])
        total, count = F.avg_pool3d(F.pad(two, beyond), tuple(block))
        some = (slice(None), slice(None), slice(start, start + slices))
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
    for part, enlarged in _parts(views.shape[1:], block):
        view = views[..., part].to(decided.dtype)
        own = torch.stack([one[..., part].to(decided.device) for one in images]) * view
        # where no block is covered whole, all that is covered counts alike
        weight = (enlarged(weights) + 1e-6) * view
        weight = weight / weight.sum(0, keepdim=True).clamp_min(1e-9)
        finer = own - enlarged(shown)
        counts = weight * (_strength(finer) + _FAINT)
        finer = (counts * finer).sum(0, keepdim=True) / counts.sum(0, keepdim=True).clamp_min(1e-12)
        fused[..., part] = within_sources(
            enlarged(decided) + finer, own, (enlarged(shares) + 1e-6) * view
        )
        detailed[..., part] = weight
    return fused, detailed


def _strength(details: Tensor) -> Tensor:
    """Root mean square over the first two axes around each voxel; ``(M, *S)``."""
    near = details.square().permute(0, 3, 1, 2)
    for window in ((_AROUND, 1), (1, _AROUND)):
        half = [n // 2 for n in window]
        near = F.avg_pool2d(near, window, 1, half, count_include_pad=False)
    return near.permute(0, 2, 3, 1).sqrt_()


def _parts(
    shape: Sequence[int], block: Sequence[int]
) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
    """Parts of a grid along its last axis, and what enlarges volumes of the lattice to each."""
    depth = block[-1]
    slices = max(1, _VOXELS // (shape[0] * shape[1]) // depth) * depth
    for start in range(0, shape[-1], slices):
        stop = min(start + slices, shape[-1])

        def enlarged(volumes: Tensor, start: int = start, stop: int = stop) -> Tensor:
            rows = [slice(n) for n in shape[:-1]]
            size = [n * b for n, b in zip(volumes.shape[1:], block, strict=True)]
            if depth == 1:  # the same in a third of the time
                planes = volumes[..., start:stop].permute(0, 3, 1, 2)
                many = F.interpolate(planes, size=size[:2], mode="bilinear", align_corners=False)
                return many.permute(0, 2, 3, 1)[(slice(None), *rows)]
            # one more on either side, for linear interpolation
            low, high = max(0, start // depth - 1), -(-stop // depth) + 1
            few = volumes[None, ..., low:high]
            size[2] = few.shape[-1] * depth
            many = F.interpolate(few, size=size, mode="trilinear", align_corners=False)[0]
            return many[(slice(None), *rows, slice(start - low * depth, stop - low * depth))]

        yield slice(start, stop), enlarged


__all__ = ["block_means", "in_detail", "voxels_in_block"]
