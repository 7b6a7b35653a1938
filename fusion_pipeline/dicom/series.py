"""An image on the reference's grid as a series of classic slices: CT, MR or PET Image Storage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage
from pydicom.valuerep import format_number_as_ds

from fusion_pipeline.data import Image
from fusion_pipeline.dicom.planes import Planes
from fusion_pipeline.dicom.study import SeriesOf, Study, add_references, as_source, coded
from fusion_pipeline.geometry import WorldMap, apply_affine, lps_from_ras

_LEVELS = 65535  # of 16 bits
_PROBES = 17  # points along each side of a slice whose source slices are looked up
_PET_UNITS = {"SUV": "GML", "Bq/ml": "BQML", "counts": "CNTS"}
# how the image was acquired; copied where all slices of the source agree
_ACQUISITION = {
    "CT": (
        "KVP ExposureTime XRayTubeCurrent Exposure FilterType ConvolutionKernel AcquisitionNumber "
        "BodyPartExamined ContrastBolusAgent"
    ),
    "MR": (
        "ScanningSequence SequenceVariant ScanOptions MRAcquisitionType SequenceName EchoTime "
        "RepetitionTime EchoTrainLength InversionTime FlipAngle MagneticFieldStrength "
        "ImagingFrequency ImagedNucleus NumberOfAverages EchoNumbers BodyPartExamined "
        "ContrastBolusAgent"
    ),
    "PT": (
        "SeriesType CountsSource CorrectedImage DecayCorrection CollimatorType "
        "ReconstructionMethod AttenuationCorrectionMethod RandomsCorrectionMethod "
        "ScatterCorrectionMethod FrameReferenceTime ActualFrameDuration BodyPartExamined"
    ),
}
# what DICOM requires to be there, if only empty
_TYPE_2 = {
    "CT": ("KVP", "AcquisitionNumber", "PatientPosition"),
    "MR": (
        "ScanOptions",
        "MRAcquisitionType",
        "EchoTime",
        "RepetitionTime",
        "EchoTrainLength",
        "PatientPosition",
    ),
    "PT": (
        "CorrectedImage",
        "CollimatorType",
        "ActualFrameDuration",
        "AcquisitionDate",
        "AcquisitionTime",
        "RadiopharmaceuticalInformationSequence",
        "PatientOrientationCodeSequence",
        "PatientGantryRelationshipCodeSequence",
    ),
}
# a PET image states these, and no derived one may make them up
_PET_FACTS = ("SeriesType", "CountsSource", "DecayCorrection", "FrameReferenceTime")
_PET_TIMES = ("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime")
_CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}


@dataclass(frozen=True)
class Stored:
    """Values as 16-bit integers: ``value = slope * stored + intercept``.

    Attributes:
        pixels: ``(slices, rows, columns)`` int16 or uint16.
        slope: in the image's units.
        intercept: in the image's units.
    """

    pixels: npt.NDArray[Any]
    slope: float
    intercept: float

    @classmethod
    def of(
        cls, frames: npt.NDArray[np.float32], scale: tuple[float, float] | None, *, offset: bool
    ) -> "Stored":
        """Values in whole steps, each within half a step of its own.

        Args:
            frames: in the image's units.
            scale: slope and intercept of the source; taken where 16 bits hold all values.
            offset: an intercept is allowed; a PET image has none.
        """
        low, high = float(frames.min()), float(frames.max())
        if scale is None or not _fits(low, high, *scale):
            scale = _finest(low, high, offset=offset)
        slope, intercept = scale
        steps = np.rint((frames.astype(np.float64) - intercept) / slope)
        kind = np.int16 if steps.min() < 0 else np.uint16
        return cls(steps.astype(kind), slope, intercept)

    def describe(self, ds: Dataset, frames: slice | int) -> None:
        """Put pixels of some frames and what they are into an object."""
        pixels = self.pixels[frames]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = pixels.shape[-2:]
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit = 15
        ds.PixelRepresentation = int(pixels.dtype == np.int16)
        ds.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()


def _fits(low: float, high: float, slope: float, intercept: float) -> bool:
    """Whether 16 bits, with or without a sign, hold all values in such steps."""
    ends = sorted(round((value - intercept) / slope) for value in (low, high))
    return (ends[0] >= -32768 and ends[1] <= 32767) or (ends[0] >= 0 and ends[1] <= _LEVELS)


def _finest(low: float, high: float, *, offset: bool) -> tuple[float, float]:
    """The finest slope that 16 bits allow, as DICOM's decimal text has it, and an intercept."""
    if offset:
        # from just below the lowest, so that the text's rounding leaves no value out
        slope = _decimal((high - low) / (_LEVELS - 1) or 1.0)
        return slope, _decimal(low)
    span = high / _LEVELS if low >= 0 else max(high / 32767, -low / 32768)
    return _decimal(span * (1 + 1e-9) or 1.0), 0.0


def _decimal(number: float) -> float:
    """A number as it will be read from DICOM's 16 characters."""
    return float(format_number_as_ds(number))


def dicom_modality(image: Image, headers: Sequence[Dataset], study: Study) -> str:
    """``CT``, ``MR`` or ``PT`` where the image can be such a series; empty where it cannot.

    A PET or SPECT image says how it was acquired and corrected, which only its own header knows.
    """
    if image.modality in ("ct", "mr"):
        return image.modality.upper()
    first = headers[0] if headers else Dataset()
    pet = first.get("SOPClassUID") == PositronEmissionTomographyImageStorage
    known = pet and all(name in first for name in _PET_FACTS)
    return "PT" if known and not (study.removed and image.units == "Bq/ml") else ""


def series_of_slices(
    image: Image,
    key: str,
    planes: Planes,
    study: Study,
    series: SeriesOf,
    world_map: WorldMap | None,
) -> Iterator[Dataset]:
    """An image on the reference's grid, slice by slice.

    Args:
        image: in its own units, on the reference's native grid.
        key: of the image in the case.
        planes: the grid.
        study: what all objects share.
        series: its modality decides the class.
        world_map: from the reference's world to the image's own; None: the reference itself.

    Yields:
        Slices in order along the normal, pixels and file header included.
    """
    headers = study.headers[key]
    stored = Stored.of(
        planes.frames(image.array[0]),
        _rescale(headers, image),
        offset=series.modality != "PT",
    )
    shared = _acquisition(headers, series.modality, study)
    sources = _source_slices(planes, headers, world_map) if study.has_sources(key) else None
    scanner = study.scanner(key)
    sop_class = UID(_CLASSES[series.modality])
    for number, position in enumerate(planes.positions):
        ds = study.dataset(sop_class, series, number + 1)
        ds.update(shared)
        _place(ds, planes, position, number)
        stored.describe(ds, number)
        _add_units(ds, image, stored, series.modality)
        if series.modality == "PT":
            ds.NumberOfSlices, ds.ImageIndex = len(planes.positions), number + 1
        ds.ImageType = _IMAGE_TYPE[series.modality]
        ds.DerivationDescription = series.description
        if world_map is not None:
            ds.DerivationCodeSequence = coded("113085", "DCM", "Spatial resampling")
        if sources is not None:
            ds.SourceImageSequence = Items([as_source(headers[n]) for n in sources[number]])
            add_references(ds, [headers[n] for n in sources[number]])
        if scanner is not None:
            ds.ContributingEquipmentSequence = scanner
        yield ds


# PRIMARY is the only second value that DICOM allows a PET image
_IMAGE_TYPE = {
    "CT": ["DERIVED", "SECONDARY", "AXIAL"],
    "MR": ["DERIVED", "SECONDARY", "OTHER"],
    "PT": ["DERIVED", "PRIMARY"],
}


def _place(ds: Dataset, planes: Planes, position: npt.NDArray[np.float64], number: int) -> None:
    """Where a slice lies."""
    ds.ImagePositionPatient = [format_number_as_ds(float(v)) for v in position]
    ds.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in planes.orientation]
    ds.PixelSpacing = [format_number_as_ds(float(v)) for v in planes.spacing]
    ds.SliceThickness = format_number_as_ds(planes.step)
    ds.SliceLocation = format_number_as_ds(float(position @ planes.normal))


def _add_units(ds: Dataset, image: Image, stored: Stored, modality: str) -> None:
    """How stored values become the image's, and what those are."""
    if modality == "MR" and (stored.slope, stored.intercept) == (1.0, 0.0):
        return  # an MR image has no rescale of its own
    ds.RescaleSlope = format_number_as_ds(stored.slope)
    ds.RescaleIntercept = format_number_as_ds(stored.intercept)
    if modality == "PT":
        ds.Units = _PET_UNITS.get(image.units, "NONE")
        if image.units == "SUV":
            ds.SUVType = "BW"
    else:
        ds.RescaleType = "HU" if image.units == "HU" else "US"


def _rescale(headers: Sequence[Dataset], image: Image) -> tuple[float, float] | None:
    """Slope and intercept of the source, if all its slices have the same and units were kept."""
    if image.units == "SUV" or not headers:
        return None
    scales = {(h.get("RescaleSlope"), h.get("RescaleIntercept")) for h in headers}
    enhanced = any("SharedFunctionalGroupsSequence" in h for h in headers)
    tabled = any("ModalityLUTSequence" in h for h in headers)
    if len(scales) != 1 or enhanced or tabled:
        return None
    slope, intercept = next(iter(scales))
    scale = (1.0 if slope is None else float(slope), float(intercept or 0.0))
    return scale if scale[0] > 0 else None


def _acquisition(headers: Sequence[Dataset], modality: str, study: Study) -> Dataset:
    """How the image was acquired: what all source slices agree on."""
    ds = Dataset()
    for name in _ACQUISITION[modality].split():
        values = {str(h.get(name)) for h in headers if h.get(name) not in (None, "")}
        if len(values) == 1 and all(name in h for h in headers):
            setattr(ds, name, headers[0].get(name))
    if modality == "MR":  # of type 1; RM: research mode
        ds.ScanningSequence = ds.get("ScanningSequence") or "RM"
        ds.SequenceVariant = ds.get("SequenceVariant") or "NONE"
    if modality == "PT":
        _add_pet(ds, headers, study)
    for name in _TYPE_2[modality]:
        if name not in ds:
            setattr(ds, name, Items() if name.endswith("Sequence") else None)
    reference = study.headers[study.reference]
    # a PET image says it by codes
    if modality != "PT" and reference and reference[0].get("PatientPosition"):
        ds.PatientPosition = reference[0].PatientPosition
    return ds


def _add_pet(ds: Dataset, headers: Sequence[Dataset], study: Study) -> None:
    """What a PET image states beside: the earliest bed's time, the injection, the clock."""
    for name in _PET_FACTS:
        if name not in ds and headers[0].get(name) is not None:
            setattr(ds, name, min((h.get(name) for h in headers), key=_number_or_text))
    if "DecayFactor" in headers[0]:
        ds.DecayFactor = min((h.get("DecayFactor") for h in headers), key=_number_or_text)
    if study.removed:
        return
    given = headers[0].get("RadiopharmaceuticalInformationSequence")
    if given:
        ds.RadiopharmaceuticalInformationSequence = given
    for name in _PET_TIMES:
        times = [str(h.get(name)) for h in headers if h.get(name)]
        if times:
            setattr(ds, name, min(times))


def _number_or_text(value: Any) -> tuple[float, str]:  # noqa: ANN401 - any element's value
    """An order of numbers, and of text behind them."""
    try:
        return float(value), ""
    except (TypeError, ValueError):
        return float("inf"), str(value)


def _source_slices(
    planes: Planes, headers: Sequence[Dataset], world_map: WorldMap | None
) -> list[list[int]]:
    """For each slice the source slices that it was made from, one more on either side."""
    heights = _heights(headers)
    if heights is None:
        return [[0]] * len(planes.positions)
    normal, along = heights
    columns, rows, _ = planes.shape
    flip = lps_from_ras(3)
    across = [np.linspace(0, n - 1, min(n, _PROBES)) for n in (columns, rows)]
    u, v = (a.ravel() for a in np.meshgrid(*across, indexing="ij"))
    inside = np.outer(u * planes.spacing[1], planes.orientation[:3])
    inside += np.outer(v * planes.spacing[0], planes.orientation[3:])
    used = []
    for position in planes.positions:
        points = apply_affine(flip, position + inside)
        there = points if world_map is None else world_map.points(points)
        reached = apply_affine(flip, there) @ normal
        first = int(np.searchsorted(along, reached.min())) - 1
        last = int(np.searchsorted(along, reached.max()))
        used.append(list(range(max(0, min(first, len(along) - 1)), min(last, len(along) - 1) + 1)))
    return [one or [0] for one in used]


def _heights(
    headers: Sequence[Dataset],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """The normal of classic slices, and their heights along it; None of a multi-frame file."""
    if len(headers) == 1:
        return None
    turn = np.asarray(headers[0].ImageOrientationPatient, dtype=np.float64)
    normal = np.cross(turn[:3], turn[3:])
    return normal, np.array([np.asarray(h.ImagePositionPatient, float) @ normal for h in headers])


__all__ = ["Stored", "dicom_modality", "series_of_slices"]
