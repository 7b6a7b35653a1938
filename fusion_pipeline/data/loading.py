"""Load a case: every file read and checked, and the images against each other."""

import numpy as np
from torch import Tensor

from fusion_pipeline.data.checks import check_overlap
from fusion_pipeline.data.datalist import CaseFiles
from fusion_pipeline.data.image import Case, Image
from fusion_pipeline.data.pictures import PICTURE_SUFFIXES
from fusion_pipeline.data.reading import (
    read_displacement_grid,
    read_image,
    read_labels,
    read_landmarks,
)
from fusion_pipeline.data.refusals import refusal, where
from fusion_pipeline.geometry import spacing_of
from fusion_pipeline.geometry.affines import Matrix

_UNEVEN = 1.2  # times another picture's longest side


def load_case(files: CaseFiles) -> Case:
    """Read a case's files into world coordinates, checked once.

    Args:
        files: from `read_datalist` or `case_from_paths`.

    Returns:
        The case; ``warnings`` tells what was repaired or guessed.

    Raises:
        NoOverlapError: a moving image shares no space with the reference.
        InputError: a file cannot be used, or 2D and 3D images are mixed.
    """
    images: dict[str, Image] = {}
    messages: list[str] = []
    for key, path in files.images.items():
        images[key], notes = read_image(path, key, case_id=files.id)
        messages += notes
    fixed = images[files.reference]
    points = {key: _landmarks(files, key, path, fixed) for key, path in files.landmarks.items()}
    _check_counts(files, points)
    for key, image in images.items():
        place = where(files.id, key, image.path)
        _check_dims(image.spatial_dims, fixed, place)
        if key != files.reference:
            check_overlap(_grid(fixed), _grid(image), place, files.reference)
            messages += _uneven_pictures(fixed, image, place)
    return Case(
        id=files.id,
        reference=files.reference,
        images=images,
        transforms=dict(files.transforms),
        masks={key: _map(files, key, path, images, "mask") for key, path in files.masks.items()},
        labels={key: _map(files, key, path, images, "label") for key, path in files.labels.items()},
        landmarks=points,
        displacements={
            key: _displacement(files, key, path, fixed) for key, path in files.displacements.items()
        },
        target=files.target,
        warnings=tuple(messages),
    )


def _grid(image: Image) -> tuple[Matrix, tuple[int, ...]]:
    """Affine and shape."""
    return image.affine, image.shape


def _uneven_pictures(fixed: Image, image: Image, place: str) -> list[str]:
    """A word on pictures whose sizes differ: they hardly have pixels of one size, as is assumed."""
    sides = [max(one.shape) for one in (fixed, image)]
    pictures = all(str(one.path).lower().endswith(PICTURE_SUFFIXES) for one in (fixed, image))
    if not pictures or max(sides) < _UNEVEN * min(sides):
        return []
    (a, b), (c, d) = fixed.shape, image.shape
    return [
        f"{place}: {c} x {d} pixels beside {a} x {b} of {fixed.key}, and a pixel of each counts as "
        "1 mm. If both show one field of view, bring them to one pixel size, or give 2D NIfTI."
    ]


def _check_dims(dims: int, fixed: Image, place: str) -> None:
    """Refuse 2D beside 3D."""
    if dims != fixed.spatial_dims:
        raise refusal(
            place,
            f"{fixed.spatial_dims}D, as the reference {fixed.key}",
            f"{dims}D",
            "give all images of a case as volumes, or all as 2D",
        )


def _map(files: CaseFiles, key: str, path: str, images: dict[str, Image], name: str) -> Image:
    """A mask or label map, which must lie on its image."""
    labels = read_labels(path, f"{key}_{name}", case_id=files.id)
    place = where(files.id, f"{key}_{name}", path)
    _check_dims(labels.spatial_dims, images[files.reference], place)
    check_overlap(_grid(images[key]), _grid(labels), place, key)
    return labels


def _landmarks(files: CaseFiles, key: str, path: str, fixed: Image) -> Matrix:
    """Points with as many coordinates as the image has axes."""
    place = where(files.id, f"{key}_landmarks", path)
    points = read_landmarks(path, place=place)
    _check_dims(points.shape[1], fixed, place)
    return points


def _check_counts(files: CaseFiles, points: dict[str, Matrix]) -> None:
    """Refuse lists of points whose rows cannot be the same places."""
    if files.reference not in points:
        return
    count = len(points[files.reference])
    for key, path in files.landmarks.items():
        if len(points[key]) != count:
            raise refusal(
                where(files.id, f"{key}_landmarks", path),
                f"{count} points, as {files.reference}_landmarks",
                f"{len(points[key])}",
                "give the same places in the same order",
            )


def _displacement(files: CaseFiles, key: str, path: str, fixed: Image) -> Tensor:
    """A true field on the reference's grid."""
    place = where(files.id, f"{key}_displacement", path)
    field, affine = read_displacement_grid(path, place=place)
    same_shape = tuple(field.shape[1:]) == fixed.shape
    tolerance = 1e-3 * float(spacing_of(fixed.affine).min())
    if not same_shape or np.abs(affine - fixed.affine).max() > tolerance:
        raise refusal(
            place,
            f"a field on the grid of {fixed.key} (shape {fixed.shape})",
            f"another grid (shape {tuple(field.shape[1:])})",
            "resample the field to the reference",
        )
    return field


__all__ = ["load_case"]
