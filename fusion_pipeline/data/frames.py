"""The slices of one DICOM file: where each lies, how its pixels scale, what else it differs in."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydicom import Dataset

from fusion_pipeline.data.dimensions import labels_of, private_value
from fusion_pipeline.data.refusals import refusal
from fusion_pipeline.geometry.affines import Matrix

NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"  # NM Image Storage
_SIEMENS_TILES = ("SIEMENS MR HEADER", 0x0019, 0x0A)  # NumberOfImagesInMosaic
_GEOMETRY = (
    ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ("PlanePositionSequence", "ImagePositionPatient", 3),
    ("PixelMeasuresSequence", "PixelSpacing", 2),
)
# Values of ImageType of an NM file whose frames are views or projections (DICOM PS3.3 C.8.4.9.1.1).
_VIEWS = ("STATIC", "DYNAMIC", "GATED", "WHOLE BODY", "TOMO", "GATED TOMO")


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
        lacks: which of RescaleSlope and RescaleIntercept the header does not give.
        labels: what may tell slices of two acquisitions apart, see `dimensions`.
        thickness: mm of the slice; 0 where the header does not say it.
    """

    file: int
    number: int
    size: tuple[int, int]
    orientation: Matrix
    position: Matrix
    spacing: Matrix
    slope: float = 1.0
    intercept: float = 0.0
    lacks: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    thickness: float = 0.0


def frames_of(header: Dataset, file: int, place: str) -> Iterator[Frame]:
    """The slices of one file: one of a classic file, all of an enhanced or nuclear one.

    Raises:
        InputError: a slice's position, orientation or pixel size is missing; frames that are no
            slices, or a mosaic.
    """
    count = int(header.get("NumberOfFrames") or 1)
    nuclear = str(header.get("SOPClassUID", "")) == NUCLEAR
    size = (int(header.Columns), int(header.Rows))
    _check_slices(header, count, nuclear=nuclear, place=place)
    labels = labels_of(header, count, nuclear=nuclear)
    thickness = _thickness(header)
    for number in range(count):
        groups = _groups(header, number)
        try:
            geometry = _nuclear(header, number) if nuclear else _geometry(groups)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise refusal(
                place,
                "slices with position, orientation and pixel spacing",
                f"{_lacking(groups)} in {header.get('SOPClassUID').name} "
                f"(slice {number + 1} of the file)",
                "export the series as CT, MR or PET slices with geometry",
            ) from error
        slope, intercept, lacks = _rescale(groups["PixelValueTransformationSequence"])
        yield Frame(
            file, number, size, *geometry, slope, intercept, lacks, labels[number], thickness
        )


def _check_slices(header: Dataset, count: int, *, nuclear: bool, place: str) -> None:
    """Refuse frames that are views, projections or tiles of slices."""
    image_type = [str(value).strip().upper() for value in header.get("ImageType") or []]
    tiles = private_value(header, *_SIEMENS_TILES)
    if "MOSAIC" in image_type or (tiles is not None and int(tiles) > 1):
        raise refusal(
            place,
            "one slice in each DICOM file",
            "a Siemens mosaic (all slices of a volume tiled in one picture)",
            "convert it to NIfTI first (dcm2niix does)",
        )
    if not nuclear:
        return
    advice = "export the reconstructed slices (RECON TOMO)"
    kind = image_type[2] if len(image_type) > 2 else ""
    if kind in _VIEWS:
        raise refusal(place, "reconstructed slices", f"{count} frames that are {kind}", advice)
    slices = int(header.get("NumberOfSlices") or 0)
    gates = int(header.get("NumberOfTimeSlots") or 1)
    several = slices != count if slices else gates > 1
    if several and not any(name in header for name in ("TimeSlotVector", "SliceVector")):
        came = f"{count} frames of {slices or '?'} slices and {gates} gates, and no vector of them"
        raise refusal(place, "frames that are slices", came, "export one gate as slices")


def _groups(header: Dataset, number: int) -> dict[str, Dataset]:
    """Where a frame's geometry and scaling are: per frame, shared, or (classic) in the header."""
    names = (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    if per_frame is None and "SharedFunctionalGroupsSequence" not in header:
        return dict.fromkeys(names, header)
    frame = (per_frame or [{}] * (number + 1))[number]
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    given = {name: frame.get(name) or shared.get(name) for name in names}
    return {name: group[0] if group else header for name, group in given.items()}


def _geometry(groups: dict[str, Dataset]) -> tuple[Matrix, Matrix, Matrix]:
    """Orientation, position and spacing of a slice."""
    orientation, position, spacing = (
        _vector(groups[group], name, length) for group, name, length in _GEOMETRY
    )
    return orientation, position, spacing


def _nuclear(header: Dataset, number: int) -> tuple[Matrix, Matrix, Matrix]:
    """A reconstructed slice of a nuclear medicine file: the first one's place and a signed step."""
    detector = header["DetectorInformationSequence"].value[0]
    orientation = _vector(detector, "ImageOrientationPatient", 6)
    normal = np.cross(orientation[:3], orientation[3:])
    step = float(header.get("SpacingBetweenSlices") or header["SliceThickness"].value)
    slices = header.get("SliceVector")
    if slices is not None and not isinstance(slices, int):
        number = int(slices[number]) - 1
    position = _vector(detector, "ImagePositionPatient", 3) + number * step * normal
    return orientation, position, _vector(header, "PixelSpacing", 2)


def _vector(group: Dataset, name: str, length: int) -> Matrix:
    """An element of several finite numbers, or a ValueError."""
    vector = np.asarray(group[name].value, dtype=np.float64)
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise ValueError(name)
    return vector


def _lacking(groups: dict[str, Dataset]) -> str:
    """What of a slice's geometry cannot be used."""
    lacks = []
    for group, name, length in _GEOMETRY:
        try:
            _vector(groups[group], name, length)
        except (KeyError, TypeError, ValueError):
            lacks.append(name)
    return f"no usable {lacks[0]}" if len(lacks) == 1 else "none of it"


def _thickness(header: Dataset) -> float:
    """Of the slice in mm, or 0."""
    try:
        return float(header.get("SliceThickness") or 0.0)
    except (TypeError, ValueError):
        return 0.0


def _rescale(group: Dataset) -> tuple[float, float, tuple[str, ...]]:
    """Slope, intercept, and which of them are missing or empty (then 1 and 0)."""
    names = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
    given = {name: group.get(name) for name in names}
    lacks = tuple(name for name, value in given.items() if value is None or value == "")
    slope, intercept = (
        names[name] if name in lacks else float(value) for name, value in given.items()
    )
    return slope, intercept, lacks


__all__ = ["NUCLEAR", "Frame", "frames_of"]
