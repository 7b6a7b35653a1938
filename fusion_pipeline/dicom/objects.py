"""DICOM objects that are no images: found, read, compared with the series they go to."""

import uuid
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.uid import UID

from fusion_pipeline.data import Source, files_in
from fusion_pipeline.data.dicom import SeriesHeaders, series_headers
from fusion_pipeline.data.dicom_files import is_dicom, read_header
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, quiet, refusal


def read_object(path: Path, classes: Sequence[str], what: str, place: str) -> Dataset:
    """The object of a file, or the only one of its kind in a folder.

    Args:
        path: file or folder.
        classes: SOP class UIDs that are wanted.
        what: their name in messages.
        place: name of the input in messages.

    Raises:
        InputError: none or several, or damage.
    """
    if not path.exists():
        raise refusal(place, what, "no such file", "check the path")
    with quiet():
        fitting = [one for one in files_in(path) if _class_of(one) in classes]
        if len(fitting) != 1:
            several = f"{len(fitting)} of them in the folder"
            came = several if fitting else "none"
            raise refusal(place, what, came, "name the file")
        try:
            return pydicom.dcmread(fitting[0])
        except READ_ERRORS as error:
            came = f"a damaged file ({one_line(error)})"
            raise refusal(place, what, came, "export it again") from error


def _class_of(path: Path) -> str:
    """SOPClassUID; empty of what is no DICOM."""
    header = read_header(path)
    return "" if header is None else str(header.SOPClassUID)


def target_series(path: str, place: str) -> SeriesHeaders:
    """The slices that contours and segments go to.

    Args:
        path: folder of a DICOM series, ``folder::SeriesInstanceUID``.
        place: name of it in messages.

    Raises:
        InputError: no series, or a multi-frame file.
    """
    source = Source.parse(path)
    where = Path(source.path)
    if not (source.is_dicom_choice or where.is_dir() or (where.is_file() and is_dicom(where))):
        raise refusal(place, "a DICOM series", path, "contours and segments go to slices of one")
    series = series_headers(source, place)
    if len(series.headers) != series.shape[2]:
        raise refusal(place, "a file for each slice", "a multi-frame file", "convert it to slices")
    return series


def check_same_patient(header: Dataset, target: Dataset, place: str) -> None:
    """Refuse an object and a series of different patients.

    Raises:
        InputError: their PatientIDs differ.
    """
    ids = [str(one.get("PatientID") or "").strip() for one in (header, target)]
    if all(ids) and ids[0] != ids[1]:
        raise refusal(place, "the patient of the series --onto", "another", "check both")


def new_uid() -> UID:
    """A UID that nobody else has: a random UUID (DICOM PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid4().int}")


__all__ = ["check_same_patient", "new_uid", "read_object", "target_series"]
