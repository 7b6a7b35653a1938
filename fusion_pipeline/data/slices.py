"""Where the slices of a DICOM series lie: one even stack along its normal, or refused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.geometry.affines import Matrix

_PARALLEL = 1e-3  # largest difference of direction cosines within a stack
_TILT_DEG = 0.5
_SAME_MM = 1e-3
_NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"  # NM Image Storage


@dataclass(frozen=True)
class Frame:
    """One slice.

    Attributes:
        file: index of its file.
        number: index of the frame in the file.
        size: columns, rows.
        orientation: direction cosines of the row, then of the column, LPS ``(6,)``.
        position: centre of the first pixel, LPS mm ``(3,)``.
        spacing: mm between rows, between columns ``(2,)``.
        slope: to the modality's units.
        intercept: to the modality's units.
    """

    file: int
    number: int
    size: tuple[int, int]
    orientation: Matrix
    position: Matrix
    spacing: Matrix
    slope: float
    intercept: float


def frames_of(header: Dataset, file: int, place: str) -> Iterator[Frame]:
    """The slices of one file: one of a classic file, all of an enhanced or nuclear one.

    Raises:
        InputError: a slice's position, orientation or pixel size is missing.
    """
    count = int(header.get("NumberOfFrames") or 1)
    nuclear = str(header.get("SOPClassUID", "")) == _NUCLEAR
    size = (int(header.Columns), int(header.Rows))
    for number in range(count):
        groups = _groups(header, number)
        try:
            geometry = _nuclear(header, number) if nuclear else _geometry(groups)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise refusal(
                place,
                "slices with position, orientation and pixel spacing",
                f"none of it in {header.get('SOPClassUID').name} (slice {number + 1} of the file)",
                "export the series as CT, MR or PET slices with geometry",
            ) from error
        scale = groups["PixelValueTransformationSequence"]
        slope = _number(scale, "RescaleSlope", 1.0)
        yield Frame(file, number, size, *geometry, slope, _number(scale, "RescaleIntercept", 0.0))


def stack_affine(frames: Sequence[Frame], place: str) -> tuple[list[Frame], Matrix]:
    """Order slices along their normal and give the stack's affine.

    Returns:
        The frames in order, and world_from_voxel ``(4, 4)`` in LPS mm of (column, row, slice).

    Raises:
        InputError: one slice only, different sizes or directions, two slices at one place,
            missing slices, uneven spacing, gantry tilt.
    """
    first = frames[0]
    if len(frames) < 2:
        raise refusal(place, "a stack of slices", "a single slice", "give the whole series")
    _check_alike(frames, place)
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
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


def _groups(header: Dataset, number: int) -> dict[str, Dataset]:
    """Where a frame's geometry and scaling are: per frame, shared, or (classic) in the header."""
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    frame = (header.get("PerFrameFunctionalGroupsSequence") or [{}] * (number + 1))[number]
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    found = {name: frame.get(name) or shared.get(name) for name in names}
    return {name: group[0] if group else header for name, group in found.items()}


def _geometry(groups: dict[str, Dataset]) -> tuple[Matrix, Matrix, Matrix]:
    """Orientation, position and spacing of a slice."""
    orientation = _vector(groups["PlaneOrientationSequence"], "ImageOrientationPatient", 6)
    position = _vector(groups["PlanePositionSequence"], "ImagePositionPatient", 3)
    return orientation, position, _vector(groups["PixelMeasuresSequence"], "PixelSpacing", 2)


def _nuclear(header: Dataset, number: int) -> tuple[Matrix, Matrix, Matrix]:
    """A reconstructed slice of a nuclear medicine file: the first one's place and a signed step."""
    detector = header["DetectorInformationSequence"].value[0]
    orientation = _vector(detector, "ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    step = float(header.get("SpacingBetweenSlices") or header["SliceThickness"].value)
    position = _vector(detector, "ImagePositionPatient", 3) + number * step * normal
    return orientation, position, _vector(header, "PixelSpacing", 2)


def _vector(group: Dataset, name: str, length: int) -> Matrix:
    """An element of several finite numbers, or a ValueError."""
    vector = np.asarray(group[name].value, dtype=np.float64)
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise ValueError(name)
    return vector


def _number(group: Dataset, name: str, default: float) -> float:
    """A number, or the default where it is missing or empty."""
    value = group.get(name)
    return default if value is None or value == "" else float(value)


def _check_alike(frames: Sequence[Frame], place: str) -> None:
    """Refuse slices of different size, pixel spacing or direction."""
    first = frames[0]
    for frame in frames:
        same_grid = frame.size == first.size and np.allclose(frame.spacing, first.spacing, 1e-4)
        parallel = np.abs(frame.orientation - first.orientation).max() < _PARALLEL
        if not (same_grid and parallel):
            raise refusal(
                place,
                "slices of one size, spacing and orientation",
                f"{_seen(first)} and {_seen(frame)}",
                "take localizers and other views out of the folder",
            )


def _seen(frame: Frame) -> str:
    """A slice in a message."""
    spacing = "x".join(f"{s:g}" for s in frame.spacing)
    cosines = frame.orientation.round(3).tolist()
    return f"{frame.size[0]}x{frame.size[1]} of {spacing} mm along {cosines}"


def _check_steps(heights: Matrix, place: str) -> None:
    """Refuse repeated, missing and uneven slices; ``heights`` are sorted mm along the normal."""
    steps = np.diff(heights)
    if steps.min() < _SAME_MM:
        raise refusal(
            place,
            "one slice at each position",
            f"{int((steps < _SAME_MM).sum())} more at the same positions of {len(heights)}",
            "give one time point, echo or reconstruction",
        )
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


__all__ = ["Frame", "frames_of", "stack_affine"]
