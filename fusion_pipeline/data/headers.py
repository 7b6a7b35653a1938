"""Check a case by its headers: whatever can be refused before a pixel is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from isal import igzip
from PIL import Image as PillowImage

from fusion_pipeline.data.checks import check_affine, check_overlap, check_shape
from fusion_pipeline.data.companions import check_grid, check_points
from fusion_pipeline.data.datalist import CaseFiles, SeriesFiles
from fusion_pipeline.data.dicom import check_series_header
from fusion_pipeline.data.dicom_files import is_dicom
from fusion_pipeline.data.image import Image
from fusion_pipeline.data.loading import check_counts, check_dims, check_field_grid, read_points
from fusion_pipeline.data.nifti_header import is_packed
from fusion_pipeline.data.pictures import PICTURE_AFFINE, PICTURE_SUFFIXES
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, quiet, refusal, where
from fusion_pipeline.data.sources import InMemory, Source, as_meta_tensor
from fusion_pipeline.data.volumes import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    VolumeHeader,
    read_itk_header,
    read_nifti_header,
)
from fusion_pipeline.geometry.affines import Matrix

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Grid:
    """Where an image lies.

    Attributes:
        affine: ``(d + 1, d + 1)`` float64, world_from_voxel, RAS+ mm.
        shape: spatial shape.
    """

    affine: Matrix
    shape: tuple[int, ...]


def check_case_headers(files: CaseFiles, spatial_dims: int | None = None) -> None:
    """Check every file of a case as far as names, headers and sizes tell; no pixel is read.

    Of a DICOM series one header is read; whether its slices are whole and even shows on loading.

    Args:
        files: from `read_datalist`.
        spatial_dims: 2 or 3, of the images that the networks are made for; None: either.

    Raises:
        NoOverlapError: a moving image shares no space with the reference.
        InputError: a file is missing, damaged or does not fit; the message names case, key, file.
    """
    images: dict[str, Image | None] = {}
    for key, series in files.series.items():
        place = where(files.id, key, str(series.image))
        grid = read_grid(series.image, place)
        images[key] = None if grid is None else _empty(grid, key)
        dims = 3 if grid is None else len(grid.shape)
        if spatial_dims not in (None, dims):
            advice = f"use a bundle for {dims}D input"
            raise refusal(place, f"{spatial_dims}D, as the networks are", f"{dims}D", advice)
    fixed = images[files.reference]
    for key, image in images.items():
        if fixed is not None and image is not None:
            place = where(files.id, key, str(files.images[key]))
            check_dims(image.spatial_dims, fixed, place)
            check_overlap(_grid(fixed), _grid(image), place, files.reference)
    for key, series in files.series.items():
        _check_beside(files.id, key, series, images[key], fixed)
    if fixed is not None:
        points = {
            key: read_points(files.id, key, series.landmarks, fixed)
            for key, series in files.series.items()
            if series.landmarks is not None
        }
        check_counts(files, points)
        _check_points(files, points, images)


def _check_points(
    files: CaseFiles, points: Mapping[str, Matrix], images: Mapping[str, Image | None]
) -> None:
    """Refuse landmarks that lie outside their image."""
    for key, marks in points.items():
        own = images[key]
        if own is not None:
            landmarks = str(files.series[key].landmarks)
            check_points(own, marks, where(files.id, f"{key}_landmarks", landmarks))


def read_grid(source: Source | InMemory, place: str) -> Grid | None:
    """Affine and shape from the header, checked; None of a DICOM series, whose slices tell them.

    Args:
        source: a file, a DICOM folder, or an image in memory.
        place: its name in messages.

    Raises:
        InputError: no such file, no such image, or a file shorter than its header says.
    """
    if isinstance(source, InMemory):
        image = as_meta_tensor(source.content)
        return _checked(image.affine.numpy(), tuple(image.shape[1:]), place)
    path = Path(source.path)
    if not source.path or not path.exists():
        came = "no such file"
        raise refusal(place, "an image file or a DICOM folder", came, "check the path")
    if source.is_dicom_choice or path.is_dir() or is_dicom(path):
        check_series_header(source, place)
        return None
    name = source.path.lower()
    if name.endswith(PICTURE_SUFFIXES):
        return _checked(PICTURE_AFFINE, _picture_size(path, place), place)
    if name.endswith(NIFTI_SUFFIXES):
        header = read_nifti_header(path, place)
        _check_length(path, header, place)
    elif name.endswith(ITK_SUFFIXES):
        header = read_itk_header(path, place)
    else:
        expected = "NIfTI, NRRD, MetaImage, a DICOM folder or PNG"
        raise refusal(place, expected, f"a file named {path.name}", "convert it to one of these")
    if header.components > 1:
        came = f"{header.components} components"
        raise refusal(place, "one real value per voxel", came, "convert it to a scalar image")
    return _checked(header.affine, header.shape, place)


def _checked(affine: Matrix, shape: tuple[int, ...], place: str) -> Grid:
    """The grid, if an image can lie on it."""
    matrix = np.asarray(affine, dtype=np.float64)
    check_affine(matrix, place)
    check_shape(shape, place)
    return Grid(matrix, shape)


def _empty(grid: Grid, key: str) -> Image:
    """An image without memory, for the checks that take one."""
    return Image(torch.zeros(()).expand(1, *grid.shape), grid.affine, key, "unread")


def _grid(image: Image) -> tuple[Matrix, tuple[int, ...]]:
    """Affine and shape."""
    return image.affine, image.shape


def _check_beside(
    case_id: str, key: str, series: SeriesFiles, own: Image | None, fixed: Image | None
) -> None:
    """Check mask, label map and true field of an image."""
    for name, source in (("mask", series.mask), ("label", series.label)):
        if source is None:
            continue
        place = where(case_id, f"{key}_{name}", str(source))
        grid = read_grid(source, place)
        if grid is not None and own is not None:
            check_dims(len(grid.shape), own, place)
            check_grid(own, grid.affine, grid.shape, place)
            check_overlap(_grid(own), (grid.affine, grid.shape), place, key)
    if series.displacement is None:
        return
    place = where(case_id, f"{key}_displacement", str(series.displacement))
    path = Path(series.displacement.path)
    nifti = path.name.lower().endswith(NIFTI_SUFFIXES)
    header = (read_nifti_header if nifti else read_itk_header)(path, place, vectors=True)
    if nifti:
        _check_length(path, header, place)
    if fixed is not None:
        check_field_grid(header.affine, header.shape, fixed, place)


def _picture_size(path: Path, place: str) -> tuple[int, ...]:
    """Columns and rows of a PNG."""
    try:
        with quiet(), PillowImage.open(path, formats=["PNG"]) as picture:
            return picture.size
    except (*READ_ERRORS, PillowImage.DecompressionBombError) as error:
        came = f"one that cannot be read ({one_line(error) or type(error).__name__})"
        raise refusal(place, "a whole PNG picture", came, "save it as a grey or RGB PNG") from error


def _check_length(path: Path, header: VolumeHeader, place: str) -> None:
    """Refuse a NIfTI file that ends before its last voxel."""
    size = path.stat().st_size
    if is_packed(path):
        size = _unpacked_bytes(path, header.bytes, place)
    if size < header.bytes:
        came = f"{size} bytes of the {header.bytes} that its header counts"
        raise refusal(place, "a whole NIfTI file", came, "copy the file again")


def _unpacked_bytes(path: Path, expected: int, place: str) -> int:
    """Bytes of a gzip file after unpacking.

    A whole file of one part ends in that number (modulo 2^32); only where it is not the expected
    one the file is unpacked, since gzip files of several parts end in that of the last.
    """
    try:
        with path.open("rb") as file:
            file.seek(-4, 2)
            if int.from_bytes(file.read(4), "little") == expected % (1 << 32):
                return expected
        with igzip.open(path) as unpacked:
            size = 0
            while chunk := unpacked.read(_CHUNK):
                size += len(chunk)
            return size
    except READ_ERRORS as error:
        came = f"one that cannot be unpacked ({one_line(error)})"
        raise refusal(place, "a whole NIfTI file", came, "copy the file again") from error


__all__ = ["Grid", "check_case_headers", "read_grid"]
