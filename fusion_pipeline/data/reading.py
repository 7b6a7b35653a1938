"""Read one file of a case: image, label map, mask, landmarks or displacement field, checked."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data.checks import (
    Array,
    RawImage,
    check_affine,
    check_shape,
    repair_values,
)
from fusion_pipeline.data.dicom import SERIES_SEPARATOR, has_dicom_mark, read_series
from fusion_pipeline.data.image import Image, is_not_in_hu, modality_of
from fusion_pipeline.data.pictures import PICTURE_SUFFIXES, read_picture
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, refusal, where
from fusion_pipeline.data.volumes import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    header_dims,
    read_itk,
    read_nifti,
    read_vectors,
)
from fusion_pipeline.geometry.affines import Matrix

_FORMATS = "NIfTI, NRRD, MetaImage, a DICOM folder or PNG"


def read_image(path: str | Path, key: str, *, case_id: str = "") -> tuple[Image, list[str]]:
    """Read an image on its native grid, with its exact affine.

    Convention:
        - ``array`` axes are the file's own (no reorientation), in the order of the affine's columns
        - the world is RAS+ mm; a picture's column and row are ITK's x and y, 1 mm each
        - CT in HU, PET in SUV where a DICOM header allows it

    Args:
        path: NIfTI, NRRD, MetaImage, PNG, a DICOM folder or file (``…::SeriesInstanceUID``).
        key: image key, such as ``ct`` or ``mr_t1``.
        case_id: for messages.

    Returns:
        The image, and a sentence about everything that was repaired or guessed.

    Raises:
        InputError: the file is missing, damaged, or not such an image.
    """
    place = where(case_id, key, path)
    raw = _read_raw(str(path), key, place)
    messages = list(raw.warnings)
    messages += check_affine(raw.affine, place) + check_shape(raw.array.shape, place)
    in_hu = modality_of(key) == "ct" and not is_not_in_hu(torch.from_numpy(raw.array))
    array, repaired = repair_values(raw.array, -1000.0 if in_hu else 0.0, place)
    units, guessed = _units(replace(raw, array=array), key, place)
    messages += repaired + guessed
    colour = None if raw.colour is None else torch.from_numpy(raw.colour)
    image = Image(_tensor(array), raw.affine, key, units, str(path), colour)
    return image, messages


def read_labels(path: str | Path, key: str, *, case_id: str = "") -> Image:
    """Read an integer map (labels or mask) on its own grid.

    Returns:
        An image of the given key whose float32 ``array`` holds whole numbers.

    Raises:
        InputError: not an image, not whole numbers, or nothing marked.
    """
    place = where(case_id, key, path)
    raw = _read_raw(str(path), key.removesuffix("_label").removesuffix("_mask"), place)
    check_affine(raw.affine, place)
    check_shape(raw.array.shape, place)
    if not np.isfinite(raw.array).all() or np.abs(raw.array - np.rint(raw.array)).max() > 1e-3:
        raise refusal(place, "whole numbers", "fractions or NaN", "give a label map")
    array = np.rint(raw.array)
    if not (array >= 1).any():
        came = "zeros only" if not array.any() else f"nothing above {array.max():g}"
        raise refusal(place, "a map that marks something with 1 or more", came, "check the file")
    return Image(_tensor(array), raw.affine, key, "labels", str(path))


def read_landmarks(path: str | Path, *, place: str = "") -> Matrix:
    """Read points ``(n, d)`` in RAS mm from a CSV: ``x,y[,z]`` per line, header optional.

    Raises:
        InputError: no such file, or other than 2 or 3 numbers on a line.
    """
    place = place or f"landmarks ({path})"
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row and not row[0].lstrip().startswith("#")]
    except FileNotFoundError as error:
        raise refusal(place, "a CSV of points", "no such file", "check the path") from error
    except (*READ_ERRORS, csv.Error) as error:
        raise refusal(place, "a CSV of points", one_line(error), "write x,y,z lines") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if rows and [cell.strip().lower() for cell in rows[0]] in (["x", "y"], ["x", "y", "z"]):
        rows = rows[1:]
    points = _points(rows, place)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        came = "no point" if not rows else f"{len(rows)} lines that are not all 2 or 3 numbers"
        raise refusal(place, "lines of x,y,z in RAS mm", came, "correct the file")
    return points


def read_displacement(path: str | Path, *, place: str = "") -> Tensor:
    """Read an ITK displacement field.

    Convention:
        - in the file: LPS mm (NIfTI vector intent, MetaImage or NRRD vectors)
        - returned: RAS mm, channel c moves along world axis c

    Returns:
        ``(d, *S)`` float32.

    Raises:
        InputError: not a displacement field.
    """
    return read_displacement_grid(path, place=place)[0]


def read_displacement_grid(path: str | Path, *, place: str = "") -> tuple[Tensor, Matrix]:
    """The same field, and the affine of its grid (RAS mm)."""
    place = place or f"displacement ({path})"
    vectors, affine = read_vectors(Path(path), place)
    check_affine(affine, place)
    if not np.isfinite(vectors).all():
        raise refusal(place, "finite vectors", "NaN or infinity", "check how the field was made")
    return torch.from_numpy(vectors), affine


def spatial_dims_of(path: str | Path, *, place: str = "") -> int:
    """2 or 3, from the name or the header alone.

    Raises:
        InputError: the header cannot be read.
    """
    name = str(path).lower()
    if name.endswith(PICTURE_SUFFIXES):
        return 2
    if name.endswith(NIFTI_SUFFIXES + ITK_SUFFIXES) and not Path(path).is_dir():
        return header_dims(Path(path), place or f"image ({path})")
    return 3


def _read_raw(path: str, key: str, place: str) -> RawImage:
    """Read by the format that the path names."""
    location = Path(path.partition(SERIES_SEPARATOR)[0])
    if not path or not location.exists():
        raise refusal(place, "an image file or a DICOM folder", "no such file", "check the path")
    name = location.name.lower()
    if location.is_dir() or SERIES_SEPARATOR in path or has_dicom_mark(location):
        return read_series(path, key, place)
    if name.endswith(NIFTI_SUFFIXES):
        return read_nifti(location, place)
    if name.endswith(ITK_SUFFIXES):
        return read_itk(location, place)
    if name.endswith(PICTURE_SUFFIXES):
        return read_picture(location, place)
    came = f"a file named {location.name}"
    raise refusal(place, _FORMATS, came, "convert the image to one of these")


def _units(raw: RawImage, key: str, place: str) -> tuple[str, list[str]]:
    """Units of the values, by modality where the file does not tell."""
    modality = modality_of(key)
    if raw.array.ndim == 2:  # a picture as a rule, of which nobody expects units
        hu = modality == "ct" and not is_not_in_hu(torch.as_tensor(raw.array))
        return raw.units or ("HU" if hu else "a.u."), []
    if modality == "ct":
        low, high = float(raw.array.min()), float(raw.array.max())
        note = f"{place}: values from {low:g} to {high:g} do not look like HU (air is -1000)."
        return "HU", [note] if is_not_in_hu(torch.as_tensor(raw.array)) else []
    if modality == "pet" and not raw.units:
        note = f"{place}: PET units are not in the file; the values are taken as they are."
        return "a.u.", [note]
    return raw.units or "a.u.", []


def _points(rows: list[list[str]], place: str) -> Matrix:
    """Rows of text as numbers."""
    try:
        return np.array([[float(cell) for cell in row] for row in rows], dtype=np.float64)
    except ValueError as error:
        came = one_line(error)
        raise refusal(place, "lines of x,y,z in RAS mm", came, "correct the file") from error


def _tensor(array: Array) -> Tensor:
    """``(1, *S)``."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]


__all__ = [
    "read_displacement",
    "read_displacement_grid",
    "read_image",
    "read_labels",
    "read_landmarks",
    "spatial_dims_of",
]
