"""Voxels that hold no data: what a header, a value that cannot be, or the lack of a number says."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from fusion_pipeline.data.checks import Array

Bool = npt.NDArray[np.bool_]

# HU, and any other unit: nothing is less dense than air at -1000, whose noise ends above this.
_LOWEST = -1100.0
# No tissue or metal has more HU; stored values of 16 bits end at 32767 or 65535.
_HIGHEST = 32000.0
_SHARE = 0.001  # of an image, of one value: a constant
_GAP = 0.02  # of the range of all other values, at least, between them and a constant
# HU between which a header's padding value may be air as well: there only solid blocks count.
_AIR = (-1100.0, -850.0)
_BLOCK = 4  # voxels; noisy air that was clipped to one value fills no block of 64


def impossible_constants(array: Array, finite: Bool | None = None) -> Bool | None:
    """Where an image has a constant below -1100 or above 32000, apart from all its other values.

    Args:
        array: ``(*S)``.
        finite: where it has numbers; None: everywhere.

    Returns:
        ``(*S)``; None where there is none.
    """
    constant: Bool | None = None
    for _ in range(4):  # a scanner's circle, a resampling's corners and a rare third one
        low, high = _ends(array, finite if constant is None else ~constant & _all(finite))
        value = low if low < _LOWEST else high
        if not is_impossible(low, high):
            break
        same = array == value
        if np.count_nonzero(same) < max(2.0, _SHARE * array.size):
            break
        others = ~same & _all(finite)
        ends = _ends(array, others if constant is None else others & ~constant)
        near, opposite = ends if value == low else ends[::-1]
        if not np.isfinite(near) or abs(near - value) < _GAP * abs(opposite - near):
            break
        constant = same if constant is None else constant | same
    return constant


def is_impossible(low: float, high: float) -> bool:
    """Whether an image with these ends has a value that no tissue has."""
    return low < _LOWEST or high > _HIGHEST


def _ends(array: Array, where: Bool | None) -> tuple[float, float]:
    """Lowest and highest value; infinite the wrong way round where there is none."""
    if where is None:
        return float(array.min()), float(array.max())
    some = array[where]
    return (float(some.min()), float(some.max())) if some.size else (np.inf, -np.inf)


def _all(where: Bool | None) -> Bool:
    """A mask, or everywhere."""
    return np.ones((), bool) if where is None else where


def stored_padding(header: Dataset, stored: npt.NDArray[Any]) -> Bool | None:
    """Where stored pixels have the header's PixelPaddingValue, or lie up to its range limit.

    Args:
        header: of the file.
        stored: pixels before the rescale.

    Returns:
        Of the same shape; None where the header names no such value.
    """
    value = header.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = header.get("PixelPaddingRangeLimit")
    ends = [_as_stored(header, one) for one in (value, value if limit in (None, "") else limit)]
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _as_stored(header: Dataset, value: object) -> int:
    """A padding value in the pixels' signedness: writers take US for SS and the other way round."""
    number, bits = int(str(value)), int(header.get("BitsAllocated") or 16)
    signed = int(header.get("PixelRepresentation") or 0) == 1
    if signed and number >= 1 << (bits - 1):
        return number - (1 << bits)
    return number + (1 << bits) if not signed and number < 0 else number


def certain(padding: Bool, array: Array, units: str) -> Bool:
    """A header's padding without voxels that are air of the same value.

    Args:
        padding: ``(*S)``, where the header's value stands.
        array: ``(*S)``.
        units: of the values.
    """
    some = array[padding]
    if units != "HU" or some.size == 0 or not _AIR[0] <= float(some.min()) <= _AIR[1]:
        return padding
    solid = padding
    for axis, size in enumerate(padding.shape):
        solid = np.logical_and.reduceat(solid, np.arange(0, size, _BLOCK), axis=axis)
    # with the blocks beside: a solid region's rim fills none
    for axis in range(solid.ndim):
        first = np.moveaxis(solid, axis, 0)
        grown = first.copy()
        grown[1:] |= first[:-1]
        grown[:-1] |= first[1:]
        solid = np.moveaxis(grown, 0, axis)
    index = [np.arange(n) // _BLOCK for n in padding.shape]
    return padding & solid[np.ix_(*index)]


__all__ = ["certain", "impossible_constants", "is_impossible", "stored_padding"]
