"""What every image must fulfil, whatever file it came from."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fusion_pipeline.data.image import Identity, NoOverlapError
from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.data.suv import EmissionScale
from fusion_pipeline.geometry import apply_affine, spacing_of
from fusion_pipeline.geometry.affines import Matrix

Array = npt.NDArray[np.float32]

FEW_SLICES = 8
SINGULAR = 1e-4  # |det| of the axes' unit vectors
CLINICAL_MM = (0.01, 50.0)  # voxel sizes that are believed
_BELIEVED = (1e-20, 1e20)  # largest size of a value, in any unit; beyond it a scale went wrong
_SIGN_LOST = (65000.0, 65536.0)  # range of 16-bit values, some of them negative, read as unsigned
_SOME = 4096  # voxels: of an image that has more than two values, some of these have a third
_RARE = 0.005  # share of the values
SHEARED = 1e-3  # |cos| of the angle between two axes: 0.06 degrees


@dataclass(frozen=True)
class RawImage:
    """What a format's reader hands over, before the checks that all formats share.

    Attributes:
        array: ``(*S)`` float32, axes in the order of the affine's columns.
        affine: ``(d + 1, d + 1)`` float64, world_from_voxel, RAS+ mm.
        units: of the values, where the file tells; else empty.
        colour: ``(3, *S)`` 0..255, of a colour picture.
        warnings: what the reader repaired or guessed.
        identity: whom it shows and in which space, as a DICOM header says.
        dicom_modality: DICOM's Modality, else empty.
        suv: how a PET series becomes SUV; it counts where the case calls the image a PET.
        padding: ``(*S)``, where the header's padding value stands; None: it names none.
    """

    array: Array
    affine: Matrix
    units: str = ""
    colour: Array | None = None
    warnings: list[str] = field(default_factory=list)
    identity: Identity | None = None
    dicom_modality: str = ""
    suv: EmissionScale | None = None
    padding: npt.NDArray[np.bool_] | None = None


def check_affine(affine: Matrix, place: str) -> list[str]:
    """Refuse an affine that maps to no volume; warn of one with shear.

    Raises:
        InputError: the affine has NaN or infinite entries, is singular, or its voxels have no
            clinical size.
    """
    advice = "repair the header (its sform, qform or direction)"
    if not np.isfinite(affine).all():
        raise refusal(place, "a finite affine", "NaN or infinity in it", advice)
    d = affine.shape[0] - 1
    spacing = spacing_of(affine)
    axes = affine[:d, :d] / np.where(spacing > 0, spacing, 1)
    if abs(np.linalg.det(axes)) < SINGULAR:
        came = f"a singular one with voxel sizes {np.round(spacing, 6).tolist()} mm"
        raise refusal(place, "an affine that can be inverted", came, advice)
    if not (CLINICAL_MM[0] <= spacing.min() and spacing.max() <= CLINICAL_MM[1]):
        came = f"voxels of {' x '.join(f'{size:g}' for size in spacing)} mm"
        expected = f"voxels of {CLINICAL_MM[0]:g} to {CLINICAL_MM[1]:g} mm"
        raise refusal(place, expected, came, "correct the header's voxel sizes or their unit")
    cosines = np.abs(axes.T @ axes - np.eye(d)).max()
    if cosines > SHEARED:
        angle = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        return [
            f"{place}: the affine is sheared (two axes meet at {angle:.1f} degrees); it is used "
            "exactly as it is, but programs built on ITK may refuse files on this grid."
        ]
    return []


def check_shape(shape: tuple[int, ...], place: str) -> list[str]:
    """Refuse a grid without extent; warn of a thin volume.

    Raises:
        InputError: an axis shorter than 2 voxels.
    """
    if min(shape) < 2:
        raise refusal(
            place,
            "at least 2 voxels along each axis",
            f"shape {_by(shape)}",
            "give the whole volume, or 2D images for 2D fusion",
        )
    if len(shape) == 3 and min(shape) < FEW_SLICES:
        return [
            f"{place}: only {min(shape)} slices (shape {_by(shape)}); "
            "registration along that axis is weak."
        ]
    return []


def check_values(array: Array, data: npt.NDArray[np.bool_] | None, place: str) -> list[str]:
    """Refuse an image that shows nothing.

    An image of two values is a mask by mistake more often than an image: that is said.

    Args:
        array: ``(*S)``.
        data: ``(*S)``, False in padding and where there is no number; None: True everywhere.
        place: name of the image in messages.

    Raises:
        InputError: no finite voxel, all voxels equal, values of no believable size, or negative
            ones that were read as unsigned.
    """
    advice = "check how the file was made"
    if data is not None and not data.any():
        came = f"only {'padding' if np.isfinite(array).any() else 'NaN or infinite voxels'}"
        raise refusal(place, "an image", came, advice)
    values = array if data is None else array[data]
    low, high = values.min(), values.max()
    if low == high:
        raise refusal(place, "an image", f"the constant value {low:g} everywhere", advice)
    some = values.ravel(order="K")[:: values.size // _SOME | 1]
    _check_scale(float(low), float(high), some, place)
    if ((some > low) & (some < high)).any():  # as nearly always, and told by few voxels
        return []
    if np.count_nonzero(values == low) + np.count_nonzero(values == high) == values.size:
        return [
            f"{place}: holds two values only ({low:g} and {high:g}), like a mask; "
            "a mask of where to look is given as KEY_mask (--mask-KEY)."
        ]
    return []


def slope_notes(slope: float, place: str) -> list[str]:
    """A word on a scale of values below 0."""
    if slope >= 0:
        return []
    return [f"{place}: the header's slope is {slope:g}: bright and dark change places."]


def _check_scale(low: float, high: float, some: Array, place: str) -> None:
    """Refuse values that a wrong scale or a lost sign has made.

    Args:
        low: the lowest of the image.
        high: the highest of the image.
        some: of its values, a sample.
        place: name of the image in messages.
    """
    largest = max(abs(low), abs(high))
    if not _BELIEVED[0] <= largest <= _BELIEVED[1]:
        came = f"values from {low:g} to {high:g}"
        raise refusal(place, "an image", came, "correct the scale of its values in the header")
    if not _SIGN_LOST[0] <= high - low <= _SIGN_LOST[1]:
        return
    share = (some - low) / (high - low)
    dark, bright = (share < 0.25).mean(), (share > 0.75).mean()
    if dark + bright == 1 and min(dark, bright) > _RARE:
        came = f"values near {low:g} and near {high:g} and none between, as if a sign was lost"
        raise refusal(place, "an image", came, "write its voxels as signed 16-bit numbers")


def check_overlap(
    fixed: tuple[Matrix, tuple[int, ...]],
    moving: tuple[Matrix, tuple[int, ...]],
    place: str,
    reference: str,
) -> None:
    """Refuse two grids whose bounding boxes in the world share no volume.

    Args:
        fixed: affine and shape of the reference.
        moving: affine and shape of the other image.
        place: name of the moving image in the message.
        reference: key of the other image in the message.

    Raises:
        NoOverlapError: they share nothing.
    """
    a, b = _world_box(*fixed), _world_box(*moving)
    if np.any(np.minimum(a[1], b[1]) <= np.maximum(a[0], b[0])):
        raise refusal(
            place,
            f"an image that overlaps {reference} ({_box(a)} mm)",
            f"one at {_box(b)} mm (world, RAS)",
            "check that both are of the same patient and that the headers keep the position",
            NoOverlapError,
        )


def _world_box(affine: Matrix, shape: tuple[int, ...]) -> Matrix:
    """Lower and upper corner ``(2, d)`` of the box around a grid, half a voxel included."""
    sides = [(-0.5, n - 0.5) for n in shape]
    corners = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, len(shape))
    points = apply_affine(affine, corners)
    return np.stack([points.min(0), points.max(0)])


def _box(box: Matrix) -> str:
    """A world box as text: ``-10..20 x 0..30``."""
    return " x ".join(f"{low:.0f}..{high:.0f}" for low, high in box.T)


def _by(shape: tuple[int, ...]) -> str:
    """A shape as people write it."""
    return "x".join(str(n) for n in shape)


__all__ = [
    "Array",
    "RawImage",
    "check_affine",
    "check_overlap",
    "check_shape",
    "check_values",
    "slope_notes",
]
