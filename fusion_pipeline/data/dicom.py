"""A DICOM series as one volume, every slice where its header says; or refused."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID

from fusion_pipeline.data.checks import RawImage
from fusion_pipeline.data.image import Identity, InputError
from fusion_pipeline.data.refusals import READ_ERRORS, muted, one_line, quiet, refusal
from fusion_pipeline.data.slices import Frame, frames_of, stack_affine
from fusion_pipeline.data.sources import Source
from fusion_pipeline.data.suv import emission_scale

_DIGITS = re.compile(r"\d+")
_IDENTITY = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "patient_sex": "PatientSex",
    "patient_birth_date": "PatientBirthDate",
    "study_uid": "StudyInstanceUID",
    "frame_of_reference": "FrameOfReferenceUID",
}
_NOT_IMAGES = ("SEG", "RTDOSE", "RTIMAGE", "REG", "PR", "KO", "SR", "RTSTRUCT", "RTPLAN")


@dataclass(frozen=True)
class _File:
    """A DICOM file with an image, its header without pixels."""

    path: Path
    header: Dataset


def has_dicom_mark(path: Path) -> bool:
    """Has DICOM's mark behind a preamble of 128 bytes."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False  # unreadable: its format's reader says why


def read_series(source: Source, place: str) -> RawImage:
    """Read one DICOM series as a volume on its native grid, in the units that its rescale gives.

    Args:
        source: a folder (searched with its subfolders) or one file, and which series of several.
        place: name of the image in messages.

    Raises:
        InputError: no image, several series, slices missing, uneven or tilted, colour, damage.
    """
    with quiet():
        try:
            return _read_series(source, place)
        except InputError:
            raise
        except READ_ERRORS as error:  # pydicom parses each element only when asked for it
            came = f"a header that cannot be understood ({one_line(error)})"
            raise refusal(place, "whole DICOM slices", came, "copy the series again") from error


def check_series_header(source: Source, place: str) -> None:
    """Refuse what is no DICOM image series, by the first header that belongs to it.

    Args:
        source: as for `read_series`.
        place: name of the image in messages.

    Raises:
        InputError: no image, not the series named, colour, or slices without geometry.
    """
    with quiet():
        for path in _files_in(Path(source.path)):
            header = _header(path)
            if header is None or not _is_image(header):
                continue
            if source.series in ("", str(header.get("SeriesInstanceUID", ""))):
                _check_grey([header], place)
                next(frames_of(header, 0, place))
                return
    what = f"the series {source.series}" if source.series else "a DICOM image series"
    raise refusal(place, f"a folder with {what}", "none", "give the image series' folder")


def _read_series(source: Source, place: str) -> RawImage:
    """The same, where a damaged header may raise anything."""
    location = Path(source.path)
    files = _choose(_image_files(location, place), source.series, place)
    _check_whole(location, files, place)
    files, messages = _without_copies(files, place)
    headers = [file.header for file in files]
    _check_grey(headers, place)
    frames = [frame for n, header in enumerate(headers) for frame in frames_of(header, n, place)]
    ordered, lps_affine = stack_affine(frames, place)
    modality = str(headers[0].get("Modality", ""))
    suv = emission_scale(headers, place) if modality == "PT" else None
    if suv is not None:
        suv = suv._replace(warnings=[*suv.warnings, *_count_note(headers[0], len(frames), place)])
    return RawImage(
        _pixels(files, ordered, place),
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps_affine,
        warnings=messages,
        identity=_identity(headers[0]),
        dicom_modality=modality,
        suv=suv,
    )


def _identity(header: Dataset) -> Identity:
    """Whom a series shows and in which space."""
    said = {name: str(header.get(element) or "") for name, element in _IDENTITY.items()}
    return Identity(**{name: text.strip() for name, text in said.items()})


def _image_files(location: Path, place: str) -> list[_File]:
    """Every file that is DICOM and holds an image."""
    read = [
        _File(path, header) for path in _files_in(location) if (header := _header(path)) is not None
    ]
    files = [file for file in read if _is_image(file.header)]
    if files:
        return files
    others = sorted({str(file.header.get("Modality", "?")) for file in read})
    came = f"only {', '.join(others)} ({len(read)} files)" if read else "no DICOM file"
    raise refusal(
        place, "a folder with a DICOM image series", came, "give the image series' folder"
    )


def _header(path: Path) -> Dataset | None:
    """The header of a DICOM file, or None when it is something else."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except READ_ERRORS:
        return None
    return header if "SOPClassUID" in header else None


def _is_image(header: Dataset) -> bool:
    """Has rows and columns, and is neither a segmentation nor a dose."""
    return bool(header.get("Rows")) and str(header.get("Modality", "")) not in _NOT_IMAGES


def _check_whole(location: Path, images: Sequence[_File], place: str) -> None:
    """Refuse what an interrupted copy leaves of a series' slices: at an end no gap would tell.

    A file that is none, under the name of a slice but for its digits; or one of the same series (or
    of none) that says it is an image and has no rows.
    """
    names = {_DIGITS.sub("#", image.path.name) for image in images}
    series = str(images[0].header.get("SeriesInstanceUID", ""))
    for path in sorted(set(_files_in(location)) - {image.path for image in images}):
        header = _header(path)
        if header is None:
            left = _DIGITS.sub("#", path.name) in names or _says_image(path)
        else:
            unknown = str(header.get("SeriesInstanceUID", series)) == series
            left = unknown and not header.get("Rows") and _says_image(path)
        if left:
            came = f"{path.name}, which is {'cut short' if path.stat().st_size else 'empty'}"
            raise refusal(place, "whole DICOM slices", came, "copy the series again")


def _files_in(location: Path) -> list[Path]:
    """The files of a folder and its subfolders, or the file itself."""
    if not location.is_dir():
        return [location]
    return sorted(p for p in location.rglob("*") if p.is_file())


def _says_image(path: Path) -> bool:
    """Has DICOM's mark and an image's class in its first lines."""
    if not has_dicom_mark(path):
        return False
    with suppress(*READ_ERRORS):
        kind = UID(str(read_file_meta_info(path).get("MediaStorageSOPClassUID", "")))
        return kind.name.endswith("Image Storage")
    return False


def _choose(files: Sequence[_File], uid: str, place: str) -> list[_File]:
    """The files of one series."""
    series: dict[str, list[_File]] = {}
    for file in files:
        series.setdefault(str(file.header.get("SeriesInstanceUID", "")), []).append(file)
    if uid in series:
        return series[uid]
    if not uid and len(series) == 1:
        return list(files)
    listed = "; ".join(_series_line(name, members) for name, members in series.items())
    expected = f"the series {uid}" if uid else "one series"
    raise refusal(
        place,
        expected,
        f"{len(series)} series: {listed}",
        "pick one with folder::SeriesInstanceUID",
    )


def _series_line(uid: str, members: Sequence[_File]) -> str:
    """A series in a message."""
    first = members[0].header
    count = sum(int(m.header.get("NumberOfFrames") or 1) for m in members)
    text = one_line(first.get("SeriesDescription") or "no description", 60)
    return f"{uid} ({first.get('Modality', '?')}, {text!r}, {count} slices)"


def _without_copies(files: Sequence[_File], place: str) -> tuple[list[_File], list[str]]:
    """Drop files that repeat an instance."""
    once: dict[str, _File] = {}
    for file in files:
        once.setdefault(str(file.header.get("SOPInstanceUID", file.path)), file)
    copies = len(files) - len(once)
    note = f"{place}: {copies} files are copies of others in the folder; each slice was read once."
    return list(once.values()), [note] if copies else []


def _check_grey(headers: Sequence[Dataset], place: str) -> None:
    """Refuse colour."""
    for header in headers:
        photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
        if int(header.get("SamplesPerPixel") or 1) != 1 or photometric != "MONOCHROME2":
            raise refusal(
                place,
                "grey slices (MONOCHROME2)",
                f"{photometric} in {Path(str(header.filename)).name}",
                "give the original series, no screenshots",
            )


def _count_note(header: Dataset, found: int, place: str) -> list[str]:
    """Warn when a PET series has fewer slices than its header counts."""
    promised = int(header.get("NumberOfSlices") or 0)
    if int(header.get("NumberOfTimeSlices") or 1) != 1 or found >= promised:
        return []
    return [f"{place}: {found} slices of the {promised} that the header counts are in the folder."]


def _pixels(files: Sequence[_File], frames: Sequence[Frame], place: str) -> npt.NDArray[np.float32]:
    """Rescaled values ``(columns, rows, slices)``."""
    columns, rows = frames[0].size
    volume = np.empty((len(frames), rows, columns), dtype=np.float32)
    for file_index, file in enumerate(files):
        wanted = [(k, f) for k, f in enumerate(frames) if f.file == file_index]
        stored = _decoded(file.path, place)
        for k, frame in wanted:
            volume[k] = stored.values(frame)
    return np.ascontiguousarray(volume.transpose(2, 1, 0))


@dataclass(frozen=True)
class _Stored:
    """Decoded pixels ``(frames, rows, columns)`` of one file."""

    array: npt.NDArray[Any]
    rescaled: bool

    def values(self, frame: Frame) -> npt.NDArray[np.float64]:
        """Values of a frame in the modality's units."""
        pixels = self.array[frame.number].astype(np.float64)
        return pixels if self.rescaled else pixels * frame.slope + frame.intercept


def _decoded(path: Path, place: str) -> _Stored:
    """Decode by pydicom; what it has no decoder for (lossless JPEG), by SimpleITK."""
    try:
        dataset = pydicom.dcmread(path)
        array, rescaled = np.asarray(dataset.pixel_array), False
    except READ_ERRORS as error:
        array, rescaled = _decoded_by_itk(path, place, error), True
    return _Stored(array if array.ndim == 3 else array[None], rescaled)


def _decoded_by_itk(path: Path, place: str, error: Exception) -> npt.NDArray[Any]:
    """Rescaled pixels of a compressed single-frame file."""
    if _is_compressed(path):
        try:
            with muted():
                return sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat64))
        except READ_ERRORS:
            pass
    raise _damaged(path, place, error) from error


def _is_compressed(path: Path) -> bool:
    """The pixels are encapsulated: SimpleITK pads what is cut short of plain ones with noise."""
    meta = pydicom.dcmread(path, stop_before_pixels=True)
    frames = int(meta.get("NumberOfFrames") or 1)
    return bool(meta.file_meta.TransferSyntaxUID.is_compressed) and frames == 1


def _damaged(path: Path, place: str, error: Exception) -> InputError:
    """The refusal of a file whose pixels cannot be read."""
    came = f"{path.name}, which cannot be decoded ({one_line(error)})"
    return refusal(place, "whole DICOM slices", came, "copy the series again")


__all__ = ["check_series_header", "has_dicom_mark", "read_series"]
