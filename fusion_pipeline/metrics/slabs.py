"""Sum local measures over images of any size, in bounded memory."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_SLAB_VOXELS = 4_000_000  # at a time: 32 MB for each float64 map
_MARGIN = 16  # voxels; the widest window, VIF's finest, reaches 8


def cropped(
    images: Sequence[npt.ArrayLike], mask: npt.ArrayLike | None, data_range: float
) -> tuple[list[Array], Mask]:
    """Images on the scale 0 … 255, cropped to the mask with a margin that no filter exceeds.

    Args:
        images: ``(*S)`` each.
        mask: ``(*S)``, nonzero where to judge; None judges everywhere.
        data_range: the value that becomes 255.

    Returns:
        float64 images and the boolean mask.

    Raises:
        ValueError: for images on different grids, or under an empty mask.
    """
    arrays = [np.asarray(image) for image in images]
    shape = arrays[0].shape
    inside = np.ones(shape, np.bool_) if mask is None else np.asarray(mask) != 0
    for array in (*arrays, inside):
        if array.shape != shape or array.ndim not in (2, 3):
            raise ValueError(f"expected 2D or 3D images on one grid, got {shape}, {array.shape}")
    if not inside.any():
        raise ValueError("the mask is empty: there is nothing to judge")
    box = _box(inside)
    scale = 255.0 / data_range
    return [array[box].astype(np.float64) * scale for array in arrays], inside[box]


def pooled(
    maps: Callable[..., tuple[Array, ...]], images: Sequence[Array], mask: Mask, halo: int
) -> Array:
    """Sum each of the maps over the mask, slab by slab along the last axis of a volume.

    Args:
        maps: takes the images of a slab, gives maps of the same shape.
        images: ``(*S)`` each.
        mask: ``(*S)``.
        halo: how far the maps look.

    Returns:
        One sum for each map.
    """
    total = np.zeros(1)
    for start, stop in slabs(mask.shape):
        low = max(0, start - halo)
        measured = maps(*(image[..., low : stop + halo] for image in images))
        inner = slice(start - low, stop - low)
        chosen = mask[..., start:stop]
        total = total + np.array([part[..., inner].sum(where=chosen) for part in measured])
    return total


def slabs(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of the last axis of a volume; an image is not cut."""
    n = shape[-1]
    thickness = n if len(shape) == 2 else max(1, _SLAB_VOXELS // max(1, shape[0] * shape[1]))
    for start in range(0, n, thickness):
        yield start, min(start + thickness, n)


def _box(mask: Mask) -> tuple[slice, ...]:
    """The mask's bounding box with the margin."""
    box = []
    for axis, n in enumerate(mask.shape):
        used = np.flatnonzero(mask.any(tuple(k for k in range(mask.ndim) if k != axis)))
        box.append(slice(max(0, int(used[0]) - _MARGIN), min(n, int(used[-1]) + 1 + _MARGIN)))
    return tuple(box)
