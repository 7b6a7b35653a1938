"""Read one file of a case: image, label map, mask, landmarks or displacement field, checked."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data.checks import Array, check_affine, check_shape
from fusion_pipeline.data.image import Image
from fusion_pipeline.data.pictures import PICTURE_SUFFIXES
from fusion_pipeline.data.readers import read_raw
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, refusal, where
from fusion_pipeline.data.sources import InMemory, Source, as_meta_tensor
from fusion_pipeline.data.volumes import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    header_dims,
    read_vectors,
)
from fusion_pipeline.geometry.affines import Matrix

_COORDINATES = re.compile(r"CoordinateSystem\s*=\s*(\w+)", re.IGNORECASE)
_NUMBERED = {"0": "RAS", "1": "LPS"}  # older versions of 3D Slicer
_SIGNS = {"RAS": (1.0, 1.0, 1.0), "LPS": (-1.0, -1.0, 1.0)}


def read_labels(source: Source | InMemory | str | Path, key: str, *, case_id: str = "") -> Image:
    """Read an integer map (labels or mask) on its own grid.

    Args:
        source: a file, or an image in memory.
        key: what it is called, such as ``ct_mask``.
        case_id: for messages.

    Returns:
        An image of the given key whose float32 ``array`` holds whole numbers.

    Raises:
        InputError: not an image, not whole numbers, or nothing marked.
    """
    return read_map(source, key, case_id=case_id)[0]


def read_map(
    source: Source | InMemory | str | Path, key: str, *, case_id: str = ""
) -> tuple[Image, list[str]]:
    """The same, and a sentence about everything that the reader repaired or guessed."""
    given = source if isinstance(source, Source | InMemory) else Source.parse(source)
    place = where(case_id, key, str(given))
    values, affine, messages = _values(given, place)
    check_affine(affine, place)
    check_shape(values.shape, place)
    if not np.isfinite(values).all() or np.abs(values - np.rint(values)).max() > 1e-3:
        raise refusal(place, "whole numbers", "fractions or NaN", "give a label map")
    array = np.rint(values)
    if not (array >= 1).any():
        came = "zeros only" if not array.any() else f"nothing above {array.max():g}"
        raise refusal(place, "a map that marks something with 1 or more", came, "check the file")
    return Image(_tensor(array), affine, key, "labels", str(given)), messages


def read_landmarks(path: Source | str | Path, *, place: str = "") -> Matrix:
    """Read points ``(n, d)`` in RAS mm from a CSV: ``x,y[,z]`` per line, header optional.

    A line ``# CoordinateSystem = LPS`` of 3D Slicer is heeded.

    Raises:
        InputError: no such file, or other than 2 or 3 numbers on a line.
    """
    place = place or f"landmarks ({path})"
    try:
        with Path(str(path)).open(newline="", encoding="utf-8-sig") as file:
            lines = [row for row in csv.reader(file) if row]
    except FileNotFoundError as error:
        raise refusal(place, "a CSV of points", "no such file", "check the path") from error
    except (*READ_ERRORS, csv.Error) as error:
        raise refusal(place, "a CSV of points", one_line(error), "write x,y,z lines") from error
    comments = [",".join(row) for row in lines if row[0].lstrip().startswith("#")]
    rows = [row for row in lines if not row[0].lstrip().startswith("#")]
    signs = _signs(comments, place)
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if rows and [cell.strip().lower() for cell in rows[0]] in (["x", "y"], ["x", "y", "z"]):
        rows = rows[1:]
    points = _points(rows, place)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        came = "no point" if not rows else f"{len(rows)} lines that are not all 2 or 3 numbers"
        raise refusal(place, "lines of x,y,z in RAS mm", came, "correct the file")
    return points * signs[: points.shape[1]]


def _signs(comments: Sequence[str], place: str) -> Matrix:
    """To RAS from the coordinates that 3D Slicer notes: ``# CoordinateSystem = LPS``.

    Raises:
        InputError: coordinates of no patient.
    """
    named = [found[1].upper() for text in comments if (found := _COORDINATES.search(text))]
    system = _NUMBERED.get(named[-1], named[-1]) if named else "RAS"
    if system not in _SIGNS:
        came = f"CoordinateSystem = {named[-1]}"
        raise refusal(place, "points in RAS or LPS mm", came, "export them in RAS")
    return np.array(_SIGNS[system])


def read_displacement(path: Source | str | Path, *, place: str = "") -> Tensor:
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


def read_displacement_grid(path: Source | str | Path, *, place: str = "") -> tuple[Tensor, Matrix]:
    """The same field, and the affine of its grid (RAS mm)."""
    place = place or f"displacement ({path})"
    vectors, affine = read_vectors(Path(str(path)), place)
    check_affine(affine, place)
    if not np.isfinite(vectors).all():
        raise refusal(place, "finite vectors", "NaN or infinity", "check how the field was made")
    return torch.from_numpy(vectors), affine


def spatial_dims_of(source: Source | InMemory | str | Path, *, place: str = "") -> int:
    """2 or 3, from the name or the header alone.

    Raises:
        InputError: the header cannot be read.
    """
    given = source if isinstance(source, Source | InMemory) else Source.parse(source)
    if isinstance(given, InMemory):
        return as_meta_tensor(given.content).ndim - 1
    name = given.path.lower()
    if name.endswith(PICTURE_SUFFIXES):
        return 2
    if name.endswith(NIFTI_SUFFIXES + ITK_SUFFIXES) and not Path(given.path).is_dir():
        return header_dims(Path(given.path), place or f"image ({given})")
    return 3


def _values(source: Source | InMemory, place: str) -> tuple[Array, Matrix, list[str]]:
    """Values ``(*S)`` and affine of a map, and what its reader has to say."""
    if isinstance(source, InMemory):
        image = as_meta_tensor(source.content)
        return image.as_tensor()[0].numpy(), image.affine.numpy(), []
    raw = read_raw(source, place)
    return raw.array, raw.affine, list(raw.warnings)


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
    "read_labels",
    "read_landmarks",
    "read_map",
    "spatial_dims_of",
]
