"""Where the slices of a DICOM series lie: one even stack along its normal, or refused."""

from collections.abc import Callable, Sequence

import numpy as np

from fusion_pipeline.data.acquisitions import (
    Selectors,
    check_one_acquisition,
    differing_labels,
    pick,
)
from fusion_pipeline.data.frames import Frame
from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.geometry.affines import Matrix

_PARALLEL = 1e-3  # largest difference of direction cosines within a stack
_COSINES = 0.01  # of direction cosines that writers rounded
_TILT_DEG = 0.5


def stack_affine(
    frames: Sequence[Frame],
    place: str,
    *,
    selectors: Selectors = (),
    name_of: Callable[[Frame], str] = lambda frame: f"slice {frame.number + 1}",
) -> tuple[list[Frame], Matrix]:
    """Order slices along their normal and give the stack's affine.

    Args:
        frames: of one series.
        place: name of the image in messages.
        selectors: which of several acquisitions is wanted, such as ``("echo", "90")``.
        name_of: the name of a slice's file, for messages.

    Returns:
        The frames in order, and world_from_voxel ``(4, 4)`` in LPS mm of (column, row, slice).

    Raises:
        InputError: one slice only, different sizes or directions, several acquisitions, two slices
            at one position, missing slices, uneven spacing, gantry tilt.
    """
    frames = pick(frames, selectors, place)
    first = frames[0]
    if len(frames) < 2:
        raise refusal(place, "a stack of slices", "a single slice", "give the whole series")
    _check_alike(frames, place)
    _check_axes(first, place)
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    check_one_acquisition(ordered, selectors, name_of, place)
    positions = np.stack([frame.position for frame in ordered])
    _check_steps(positions @ normal, place)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    _check_tilt(step, normal, place)
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing[1]
    affine[:3, 1] = column * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return ordered, affine


def _check_axes(first: Frame, place: str) -> None:
    """Refuse rows and columns that are no axes of a lattice."""
    axes = first.orientation.reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > _COSINES or abs(axes[0] @ axes[1]) > _COSINES:
        came = f"ImageOrientationPatient {first.orientation.round(3).tolist()}"
        expected = "directions of length 1 that are perpendicular"
        raise refusal(place, expected, came, "export the series again")
    if not (first.spacing > 0).all():
        came = f"PixelSpacing {first.spacing.tolist()}"
        raise refusal(place, "pixel sizes above 0 mm", came, "correct it in the headers")


def _check_alike(frames: Sequence[Frame], place: str) -> None:
    """Refuse slices of different size, pixel spacing or direction."""
    first = frames[0]
    spacings = np.array([frame.spacing for frame in frames])
    turns = np.array([frame.orientation for frame in frames])
    same = np.isclose(spacings, first.spacing, rtol=1e-4).all(axis=1)
    same &= np.abs(turns - first.orientation).max(axis=1) < _PARALLEL
    same &= [frame.size == first.size for frame in frames]
    if same.all():
        return
    odd = frames[int(np.argmin(same))]
    names = differing_labels(first, odd)
    way = f", or pick by their {' or '.join(names)} (folder::{names[0]}=…)" if names else ""
    raise refusal(
        place,
        "slices of one size, spacing and orientation",
        f"{_described(first)} and {_described(odd)}",
        f"take localizers and other views out of the folder{way}",
    )


def _described(frame: Frame) -> str:
    """A slice in a message."""
    spacing = "x".join(f"{s:g}" for s in frame.spacing)
    cosines = frame.orientation.round(3).tolist()
    return f"{frame.size[0]}x{frame.size[1]} of {spacing} mm along {cosines}"


def _check_steps(heights: Matrix, place: str) -> None:
    """Refuse missing and uneven slices; ``heights`` are sorted mm along the normal."""
    steps = np.diff(heights)
    step = float(np.median(steps))
    even = heights[0] + np.arange(len(heights)) * (heights[-1] - heights[0]) / (len(heights) - 1)
    if np.abs(heights - even).max() <= 0.1 + 0.01 * step and steps.max() < 1.5 * step:
        return
    smallest = float(steps.min())
    gap = int(np.argmax(steps))
    multiples = steps / smallest
    whole = np.abs(multiples - np.rint(multiples)).max() < 0.1
    if whole and steps.max() > 1.5 * smallest:
        missing = int(np.rint(multiples).sum()) - len(steps)
        raise refusal(
            place,
            f"a slice every {smallest:g} mm",
            f"{missing} missing (a gap of {steps[gap]:g} mm after slice {gap + 1} "
            f"of {len(heights)})",
            "export the whole series",
        )
    raise refusal(
        place,
        "evenly spaced slices",
        f"steps from {steps.min():g} to {steps.max():g} mm",
        "resample the series to even spacing first",
    )


def _check_tilt(step: Matrix, normal: Matrix, place: str) -> None:
    """Refuse a stack whose slices are shifted against each other."""
    along = float(step @ normal)
    angle = float(np.degrees(np.arctan2(np.linalg.norm(step - along * normal), along)))
    if angle > _TILT_DEG:
        raise refusal(
            place,
            "slices stacked along their normal",
            f"a tilt of {angle:.1f} degrees (gantry tilt)",
            "straighten the series first (dcm2niix does)",
        )


__all__ = ["stack_affine"]
