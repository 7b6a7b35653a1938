"""The files of a DICOM folder: which hold images, which series they belong to, which are copies."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID

from fusion_pipeline.data.refusals import READ_ERRORS, one_line, refusal

_DIGITS = re.compile(r"\d+")
_NOT_IMAGES = ("SEG", "RTDOSE", "RTIMAGE", "REG", "PR", "KO", "SR", "RTSTRUCT", "RTPLAN")
_DIRECTORY = "1.2.840.10008.1.3.10"  # Media Storage Directory Storage: a DICOMDIR
_DEFER = 4096  # bytes; longer elements (pixels, tables) are read only when they are asked for
# How data without a preamble begin: group 2 or 8, element 0 to FF, then a type in two letters, or
# (implicit) a length below 256.
_EXPLICIT = re.compile(rb"(?:[\x02\x08]\x00.\x00|\x00[\x02\x08]\x00.)[A-Z][A-Z]", re.DOTALL)
_IMPLICIT = re.compile(rb"\x08\x00.\x00.\x00\x00\x00", re.DOTALL)


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file with an image; its pixels are still on disk."""

    path: Path
    header: Dataset


def is_dicom(path: Path) -> bool:
    """Begins as DICOM does: a preamble of 128 bytes and DICM, or at once with its elements."""
    with suppress(OSError), path.open("rb") as file:
        start = file.read(132)
        return start[128:] == b"DICM" or _is_bare(start)
    return False  # unreadable: its format's reader says why


def files_in(location: Path) -> list[Path]:
    """The files of a folder and its subfolders, linked ones too; or the file itself.

    A DICOMDIR stands for the folder that it lies in.
    """
    if location.is_file() and is_directory_file(location):
        location = location.parent
    if not location.is_dir():
        return [location]
    return sorted(_walk(location))


def is_directory_file(path: Path) -> bool:
    """Is a DICOMDIR, whatever its name."""
    if not is_dicom(path):
        return False
    with suppress(*READ_ERRORS):
        return str(read_file_meta_info(path).get("MediaStorageSOPClassUID", "")) == _DIRECTORY
    return False


def read_header(path: Path) -> Dataset | None:
    """The header of a DICOM file, or None when it is something else."""
    try:
        with path.open("rb") as file:
            bare = _is_bare(file.read(132))
        header = pydicom.dcmread(path, defer_size=_DEFER, force=bare)
    except READ_ERRORS:
        return None
    return header if "SOPClassUID" in header else None


def is_image(header: Dataset) -> bool:
    """Has rows and columns, and is neither a segmentation nor a dose."""
    return bool(header.get("Rows")) and str(header.get("Modality", "")) not in _NOT_IMAGES


def image_files(location: Path, place: str) -> list[DicomFile]:
    """Every file that is DICOM and holds an image.

    Raises:
        InputError: there is none.
    """
    read = [
        DicomFile(path, header)
        for path in files_in(location)
        if (header := read_header(path)) is not None
    ]
    files = [file for file in read if is_image(file.header)]
    if files:
        return files
    others = sorted({str(file.header.get("Modality", "?")) for file in read})
    came = f"only {', '.join(others)} ({len(read)} files)" if read else "no DICOM file"
    raise refusal(
        place, "a folder with a DICOM image series", came, "give the image series' folder"
    )


def choose_series(files: Sequence[DicomFile], uid: str, place: str) -> list[DicomFile]:
    """The files of one series.

    Raises:
        InputError: there are several and none is named, or not the one that is named.
    """
    series: dict[str, list[DicomFile]] = {}
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


def check_whole(location: Path, images: Sequence[DicomFile], place: str) -> None:
    """Refuse what an interrupted copy leaves of a series' slices: at an end no gap would tell.

    A file that is none, under the name of a slice but for its digits; or one of the same series (or
    of none) that says it is an image and has no rows.

    Raises:
        InputError: there is such a file.
    """
    names = {_DIGITS.sub("#", image.path.name) for image in images}
    series = str(images[0].header.get("SeriesInstanceUID", ""))
    for path in sorted(set(files_in(location)) - {image.path for image in images}):
        header = read_header(path)
        if header is None:
            left = _DIGITS.sub("#", path.name) in names or _says_image(path)
        else:
            unknown = str(header.get("SeriesInstanceUID", series)) == series
            left = unknown and not header.get("Rows") and _says_image(path)
        if left:
            came = f"{path.name}, which is {'cut short' if path.stat().st_size else 'empty'}"
            raise refusal(place, "whole DICOM slices", came, "copy the series again")


def without_copies(
    files: Sequence[DicomFile], decode: Callable[[DicomFile], np.ndarray], place: str
) -> tuple[list[DicomFile], list[str]]:
    """Drop files that repeat an instance: the same UID, position and pixels.

    Anonymizers that cut UIDs give several slices one UID; those are no copies.

    Args:
        files: of one series.
        decode: gives the pixels of a file.
        place: name of the image in the notes.

    Returns:
        The files that are left, and a sentence where there were copies or shared UIDs.
    """
    instances: dict[str, list[DicomFile]] = {}
    for file in files:
        same = instances.setdefault(str(file.header.get("SOPInstanceUID", file.path)), [])
        if not any(_is_copy(file, other, decode) for other in same):
            same.append(file)
    left = [file for same in instances.values() for file in same]
    copies, shared = len(files) - len(left), len(left) - len(instances)
    notes = []
    if copies:
        notes.append(
            f"{place}: {copies} files are copies of others in the folder; each slice was read once."
        )
    if shared:
        notes.append(
            f"{place}: {shared} slices have the SOPInstanceUID of another slice, but another "
            "position or other pixels; all of them were read."
        )
    return left, notes


def _is_copy(a: DicomFile, b: DicomFile, decode: Callable[[DicomFile], np.ndarray]) -> bool:
    """Two files of one instance UID lie at one position and have the same pixels."""
    names = ("ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames", "Rows", "Columns")
    if any(a.header.get(name) != b.header.get(name) for name in names):
        return False
    return np.array_equal(decode(a), decode(b))


def _is_bare(start: bytes) -> bool:
    """The first bytes of DICOM data without a preamble."""
    return bool(_EXPLICIT.match(start) or _IMPLICIT.match(start)) and start[128:] != b"DICM"


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder; a folder that is linked to twice, or into itself, is read once."""
    visited: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        state = Path(name).stat()
        if (state.st_dev, state.st_ino) in visited:
            folders.clear()
            continue
        visited.add((state.st_dev, state.st_ino))
        yield from (path for file in files if (path := Path(name, file)).is_file())


def _says_image(path: Path) -> bool:
    """Has DICOM's mark and an image's class in its first lines."""
    if not is_dicom(path):
        return False
    with suppress(*READ_ERRORS):
        kind = UID(str(read_file_meta_info(path).get("MediaStorageSOPClassUID", "")))
        return kind.name.endswith("Image Storage")
    return False


def _series_line(uid: str, members: Sequence[DicomFile]) -> str:
    """A series in a message."""
    first = members[0].header
    count = sum(int(m.header.get("NumberOfFrames") or 1) for m in members)
    text = one_line(first.get("SeriesDescription") or "no description", 60)
    return f"{uid} ({first.get('Modality', '?')}, {text!r}, {count} slices)"


__all__ = [
    "DicomFile",
    "check_whole",
    "choose_series",
    "files_in",
    "image_files",
    "is_dicom",
    "is_directory_file",
    "is_image",
    "read_header",
    "without_copies",
]
