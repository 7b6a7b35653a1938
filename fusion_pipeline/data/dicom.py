"""A DICOM series as one volume, every slice where its header says; or refused."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset

from fusion_pipeline.data.acquisitions import note_on_left_out
from fusion_pipeline.data.checks import RawImage
from fusion_pipeline.data.dicom_files import (
    DicomFile,
    check_whole,
    choose_series,
    files_in,
    image_files,
    is_image,
    read_header,
    without_copies,
)
from fusion_pipeline.data.dicom_pixels import (
    check_rescale,
    ct_units,
    notes_on_pixels,
    stored_pixels,
    volume_of,
)
from fusion_pipeline.data.frames import Frame, frames_of
from fusion_pipeline.data.image import Identity, InputError
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, quiet, refusal
from fusion_pipeline.data.slices import stack_affine
from fusion_pipeline.data.sources import Source
from fusion_pipeline.data.suv import emission_scale
from fusion_pipeline.geometry import lps_from_ras
from fusion_pipeline.geometry.affines import Matrix

_IDENTITY = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "patient_sex": "PatientSex",
    "patient_birth_date": "PatientBirthDate",
    "study_uid": "StudyInstanceUID",
    "frame_of_reference": "FrameOfReferenceUID",
}


def read_series(source: Source, place: str) -> RawImage:
    """Read one DICOM series as a volume on its native grid, in the units that its rescale gives.

    Args:
        source: a folder (searched with its subfolders), a DICOMDIR or one file; which series of
            several, and which acquisition of that.
        place: name of the image in messages.

    Raises:
        InputError: no image, several series or acquisitions, slices missing, uneven or tilted,
            colour, damage.
    """
    with quiet(), _understood(place):
        return _read_series(source, place)


def check_series_header(source: Source, place: str) -> None:
    """Refuse what is no DICOM image series, by the first header that belongs to it.

    Args:
        source: as for `read_series`.
        place: name of the image in messages.

    Raises:
        InputError: no image, not the series named, colour, or slices without geometry.
    """
    with quiet(), _understood(place):
        for path in files_in(Path(source.path)):
            header = read_header(path)
            if header is None or not is_image(header):
                continue
            if source.series in ("", str(header.get("SeriesInstanceUID", ""))):
                _check_grey([header], place)
                _check_counts([DicomFile(path, header)], place)
                next(frames_of(header, 0, place))
                return
    what = f"the series {source.series}" if source.series else "a DICOM image series"
    raise refusal(place, f"a folder with {what}", "none", "give the image series' folder")


@contextmanager
def _understood(place: str) -> Iterator[None]:
    """Refuse a damaged header, on which pydicom may raise anything when it parses an element."""
    try:
        yield
    except InputError:
        raise
    except READ_ERRORS as error:
        came = f"a header that cannot be understood ({one_line(error)})"
        raise refusal(place, "whole DICOM slices", came, "copy the series again") from error


@dataclass(frozen=True)
class SeriesHeaders:
    """A series without its pixels.

    Attributes:
        headers: in the order of the slices; one of a multi-frame file.
        affine: ``(4, 4)`` world_from_voxel of (column, row, slice), RAS mm.
        shape: columns, rows, slices.
    """

    headers: list[Dataset]
    affine: Matrix
    shape: tuple[int, ...]


def series_headers(source: Source, place: str) -> SeriesHeaders:
    """The headers of a series, and its grid.

    Args:
        source: as for `read_series`.
        place: name of the image in messages.

    Raises:
        InputError: as for `read_series`.
    """
    with quiet(), _understood(place):
        stack = _stack(source, place)
    affine = lps_from_ras(3) @ stack.lps_affine
    return SeriesHeaders(stack.headers, affine, (*stack.frames[0].size, len(stack.frames)))


@dataclass(frozen=True)
class _Stack:
    """The files of a series, its slices in order, and where they lie."""

    files: list[DicomFile]
    frames: list[Frame]
    lps_affine: Matrix
    messages: list[str]

    @property
    def headers(self) -> list[Dataset]:
        """Of the files that hold the slices, in their order."""
        return [self.files[n].header for n in dict.fromkeys(frame.file for frame in self.frames)]


def _stack(source: Source, place: str) -> _Stack:
    """The slices of a series, checked by their headers."""
    location = Path(source.path)
    files = choose_series(image_files(location, place), source.series, place)
    check_whole(location, files, place)
    files, messages = without_copies(files, lambda file: _pixels_anew(file, place), place)
    _check_grey([file.header for file in files], place)
    _check_counts(files, place)
    _check_parts([file.header for file in files], place)
    frames = [frame for n, f in enumerate(files) for frame in frames_of(f.header, n, place)]
    ordered, lps_affine = stack_affine(
        frames, place, selectors=source.selectors, name_of=lambda f: files[f.file].path.name
    )
    check_rescale(ordered, files, place)
    left_out = [] if source.selectors else note_on_left_out(ordered, place)
    stack = _Stack(files, ordered, lps_affine, [*messages, *left_out])
    _check_one_space(stack.headers, place)
    return stack


def _read_series(source: Source, place: str) -> RawImage:
    """The same, where a damaged header may raise anything."""
    stack = _stack(source, place)
    files, ordered, headers = stack.files, stack.frames, stack.headers
    modality = str(headers[0].get("Modality", ""))
    units, notes = ct_units(headers, place) if modality == "CT" else ("", [])
    suv = emission_scale(headers, place) if modality == "PT" else None
    if suv is not None:
        suv = suv._replace(warnings=[*suv.warnings, *_count_note(headers[0], len(ordered), place)])
    values, padding, cut = volume_of(files, ordered, place)
    return RawImage(
        values,
        lps_from_ras(3) @ stack.lps_affine,
        units=units,
        warnings=[*stack.messages, *notes, *notes_on_pixels(files, ordered, place), *cut],
        identity=_identity(headers[0]),
        dicom_modality=modality,
        suv=suv,
        padding=padding,
    )


def _pixels_anew(file: DicomFile, place: str) -> np.ndarray:
    """Pixels of a file whose header is still needed."""
    header = read_header(file.path)
    return stored_pixels(file if header is None else DicomFile(file.path, header), place)


def _identity(header: Dataset) -> Identity:
    """Whom a series shows and in which space."""
    said = {name: str(header.get(element) or "") for name, element in _IDENTITY.items()}
    return Identity(**{name: text.strip() for name, text in said.items()})


def _check_one_space(headers: Sequence[Dataset], place: str) -> None:
    """Refuse slices of two patients or modalities, or with positions from different points."""
    for element in ("PatientID", "FrameOfReferenceUID", "Modality"):
        values = {str(header.get(element) or "") for header in headers}
        if len(values) > 1:
            came = f"{len(values)} of them in one series"
            raise refusal(place, f"slices of one {element}", came, "export the series again")
    for element in ("PatientName", "PatientBirthDate", "PatientSex"):
        values = {str(header.get(element) or "").strip() for header in headers} - {""}
        if len(values) > 1:
            came = f"{len(values)} of them in one series"
            raise refusal(place, f"slices of one {element}", came, "export the series again")


def _check_grey(headers: Sequence[Dataset], place: str) -> None:
    """Refuse colour, and pixels whose bits do not begin at the lowest."""
    for header in headers:
        photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
        name = Path(str(header.filename)).name
        if int(header.get("SamplesPerPixel") or 1) != 1 or photometric != "MONOCHROME2":
            raise refusal(
                place,
                "grey slices (MONOCHROME2)",
                f"{photometric} in {name}",
                "give the original series, no screenshots",
            )
        stored, high = int(header.get("BitsStored") or 0), int(header.get("HighBit") or 0)
        if 0 < stored <= high:
            came = f"HighBit {high} with {stored} bits stored in {name}"
            raise refusal(
                place, "pixels in the lowest bits", came, "export the series again (dcmconv)"
            )


def _check_counts(files: Sequence[DicomFile], place: str) -> None:
    """Refuse more frames than a file can hold: a damaged number would keep the reader busy."""
    for file in files:
        count = int(file.header.get("NumberOfFrames") or 1)
        if not 1 <= count <= file.path.stat().st_size:
            came = f"{file.path.name}, which counts {count} frames"
            raise refusal(place, "whole DICOM slices", came, "copy the series again")


def _check_parts(headers: Sequence[Dataset], place: str) -> None:
    """Refuse some of the files that one multi-frame image was split into (a concatenation)."""
    parts: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for header in headers:
        if uid := str(header.get("ConcatenationUID") or ""):
            parts.setdefault(uid, set()).add(int(header.get("InConcatenationNumber") or 0))
            totals[uid] = int(header.get("InConcatenationTotalNumber") or 0)
    for uid, total in totals.items():
        if len(parts[uid]) < total:
            came = f"{len(parts[uid])} of them"
            advice = "export the whole series"
            raise refusal(place, f"all {total} files of a concatenation", came, advice)


def _count_note(header: Dataset, count: int, place: str) -> list[str]:
    """Warn when a PET series has fewer slices than its header counts."""
    promised = int(header.get("NumberOfSlices") or 0)
    if int(header.get("NumberOfTimeSlices") or 1) != 1 or count >= promised:
        return []
    return [f"{place}: {count} slices of the {promised} that the header counts are in the folder."]


__all__ = ["SeriesHeaders", "check_series_header", "read_series", "series_headers"]
