"""Load a case: every file read, checked and prepared, and the images against each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch import Tensor

from fusion_pipeline.data.checked_image import CheckImaged
from fusion_pipeline.data.checks import check_overlap
from fusion_pipeline.data.companions import check_grid, check_marked, check_points
from fusion_pipeline.data.datalist import CaseFiles, SeriesFiles
from fusion_pipeline.data.image import (
    Case,
    Identity,
    Image,
    InputError,
    NoOverlapError,
    Prepared,
    Series,
    along_axes_of,
    fill_value_of,
)
from fusion_pipeline.data.initial_transforms import read_initial_transform
from fusion_pipeline.data.readers import LoadImaged
from fusion_pipeline.data.reading import read_displacement_grid, read_landmarks, read_map
from fusion_pipeline.data.refusals import refusal, where
from fusion_pipeline.data.sources import InMemory, Source
from fusion_pipeline.geometry import inverse_affine, spacing_of
from fusion_pipeline.geometry.affines import Matrix

_UNEVEN = 1.2  # times another picture's longest side
Preprocessing = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def load_case(
    files: CaseFiles, preprocessing: Preprocessing | None = None, *, one_space: bool = True
) -> Case:
    """Read a case's files into world coordinates, checked and prepared once.

    Args:
        files: from `read_datalist` or `case_from_paths`.
        preprocessing: what each image goes through, see `prepare_image`; None: it is only read, and
            stays in its file's axes.
        one_space: False: the images are looked at one by one, and need not overlap.

    Returns:
        The case; ``warnings`` tells what was repaired or guessed.

    Raises:
        NoOverlapError: a moving image shares no space with the reference.
        InputError: a file cannot be used, or 2D and 3D images are mixed.
    """
    steps = reading() if preprocessing is None else preprocessing
    loaded = {
        key: prepare_image(source, key, steps, case_id=files.id)
        for key, source in files.images.items()
    }
    messages = [text for one in loaded.values() for text in one.warnings]
    native_affine = loaded[files.reference].native_affine
    fixed = loaded[files.reference].image
    points = {
        key: read_points(files.id, key, one.landmarks, fixed)
        for key, one in files.series.items()
        if one.landmarks is not None
    }
    check_counts(files, points)
    starts: dict[str, Matrix | None] = {}
    before: list[str] = []
    for key, image in loaded.items():
        place = where(files.id, key, image.image.path)
        check_dims(image.image.spatial_dims, fixed, place)
        if key != files.reference:
            starts[key] = _initial_transform(files, key, fixed)
            if one_space:
                _check_place(fixed, image.image, starts[key], place)
            messages += _uneven_pictures(fixed, image.image, place)
        messages += _same_values(image.image, [loaded[k].image for k in before], place)
        before.append(key)
    for key, marks in points.items():
        place = where(files.id, f"{key}_landmarks", str(files.series[key].landmarks))
        messages += check_points(loaded[key].image, marks, place)
    series = {}
    for key in files.series:
        one, notes = _series(files, key, loaded, points.get(key))
        series[key] = replace(one, initial_transform=starts.get(key))
        messages += notes
    return Case(
        id=files.id,
        reference=files.reference,
        series=series,
        native_affine=native_affine,
        target=files.target,
        warnings=tuple(messages),
    )


def prepare_case(case: Case, preprocessing: Preprocessing) -> Case:
    """A case that was made in memory, after `preprocessing`; a prepared one stays.

    Args:
        case: its images on any axes.
        preprocessing: what each image goes through, see `prepare_image`.

    Raises:
        InputError: an image cannot be used.
    """
    if all(series.prepared is not None for series in case.series.values()):
        return case
    native, messages = case.fixed.affine, list(case.warnings)
    made: dict[str, LoadedImage] = {}
    series: dict[str, Series] = {}
    for key, one in case.series.items():
        made[key] = prepare_image(one.image, key, preprocessing, case_id=case.id)
        messages += made[key].warnings
    fixed = made[case.reference].image
    for key, one in case.series.items():
        truth = one.displacement
        turned = None if truth is None else along_axes_of(fixed.affine, truth, native)
        new = made[key]
        series[key] = replace(
            one,
            image=new.image,
            prepared=new.prepared,
            displacement=turned,
            native_affine=one.image.affine,
        )
    return replace(case, series=series, native_affine=native, warnings=tuple(messages))


@dataclass(frozen=True)
class LoadedImage:
    """One image after `preprocessing`.

    Attributes:
        image: the values as given; in canonical axes if `preprocessing` turned them.
        prepared: the image and its masks; None if `preprocessing` made none.
        native_affine: the affine that its file has.
        warnings: what was repaired or guessed.
        data: the whole dictionary that `preprocessing` gave.
    """

    image: Image
    prepared: Prepared | None
    native_affine: Matrix
    warnings: list[str]
    data: Mapping[str, Any]

    def with_identity(self, identity: Identity | None) -> "LoadedImage":
        """The same, its image known to show somebody."""
        image = replace(self.image, identity=identity)
        prepared = self.prepared
        if prepared is not None:
            same = prepared.working is prepared.image
            working = image if same else replace(prepared.working, identity=identity)
            prepared = replace(prepared, image=image, working=working)
        return replace(self, image=image, prepared=prepared)


def prepare_image(
    source: Source | InMemory | Image, key: str, preprocessing: Preprocessing, *, case_id: str = ""
) -> LoadedImage:
    """Read one image and bring it through `preprocessing`.

    Args:
        source: where the image is, or the image.
        key: image key of the case, such as ``mr_t1``.
        preprocessing: takes ``{"image": source, "key": key}`` and gives ``image`` ``(1, *S)`` in
            canonical axes and, where it finds them, ``image_field_of_view`` and ``image_body``.
        case_id: for messages.

    Raises:
        InputError: the image cannot be used; the message names case, key and file.
    """
    given: object = str(source) if isinstance(source, Source) else source
    if isinstance(source, Image):
        given = source.as_meta_tensor()
    path = source.path if isinstance(source, Image) else str(source)
    prefix = where(case_id, key, "").removesuffix("()")
    try:
        data = preprocessing({"image": given, "key": key})
    except Exception as error:
        refused = refusal_within(error)
        if refused is None:
            raise cause_of(error) from error
        text = str(refused)
        gap = "" if text.startswith("(") else f"({path}): "
        raise type(refused)(f"{prefix}{gap}{text}") from error
    loaded = _loaded(data, key, path, prefix)
    if isinstance(source, Image):  # its meta names no patient
        loaded = loaded.with_identity(source.identity)
    return loaded


def _loaded(data: Mapping[str, Any], key: str, path: str, prefix: str) -> LoadedImage:
    """What `preprocessing` gave, as the stages take it."""
    image: MetaTensor = data["image"]
    native_affine = np.asarray(image.meta["original_affine"], dtype=np.float64)
    # a transform that changes the values (`Denoised`) keeps those that were given
    given = replace(_image(data.get("image_original", image), key), path=path)
    if "image_colour" in data:
        colour = data["image_colour"].as_tensor().float()
        given = replace(given, colour=along_axes_of(given.affine, colour, native_affine))
    masks = [data[name] for name in ("image_field_of_view", "image_body") if name in data]
    prepared = None
    if len(masks) == 2:
        working = given.with_array(image.as_tensor()) if "image_original" in data else given
        prepared = Prepared(given, working, *[_plain(mask)[:1] > 0 for mask in masks])
    warnings = [f"{prefix}{text}" for text in image.meta.get("warnings", ())]
    return LoadedImage(given, prepared, native_affine, warnings, data)


@cache  # making MONAI's loader takes as long as reading a small file
def reading() -> Compose:
    """Only read and check, in the file's own axes: the first part of every `preprocessing`."""
    return Compose([LoadImaged("image"), CheckImaged("image")])


def read_image(
    source: str | Source | InMemory, key: str, *, case_id: str = ""
) -> tuple[Image, list[str]]:
    """Read an image on its native grid, with its exact affine.

    Convention:
        - ``array`` axes are the file's own (no reorientation), in the order of the affine's columns
        - the world is RAS+ mm; a picture's column and row are ITK's x and y, 1 mm each
        - CT in HU, PET in SUV where a DICOM header allows it

    Args:
        source: NIfTI, NRRD, MetaImage, PNG, a DICOM folder or file (``…::SeriesInstanceUID``).
        key: image key, such as ``ct`` or ``mr_t1``.
        case_id: for messages.

    Returns:
        The image, and a sentence about everything that was repaired or guessed.

    Raises:
        InputError: the file is missing, damaged, or not such an image.
    """
    given = source if isinstance(source, Source | InMemory) else Source.parse(source)
    one = prepare_image(given, key, reading(), case_id=case_id)
    return one.image, one.warnings


def refusal_within(error: BaseException | None) -> InputError | None:
    """The refusal that caused an error: MONAI wraps whatever a transform or component raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def _plain(mask: Tensor) -> Tensor:
    """Without meta: a MetaTensor costs nine times as much per small operation."""
    return mask.as_tensor() if isinstance(mask, MetaTensor) else mask


def cause_of(error: Exception) -> Exception:
    """What a transform raised, without what MONAI's Compose wraps around it."""
    while str(error).startswith("applying transform") and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _image(values: MetaTensor, key: str) -> Image:
    """An image of one channel from MONAI's."""
    return Image(
        array=values.as_tensor(),
        affine=values.affine.numpy(),
        key=key,
        units=(units := str(values.meta["units"])),
        darkest=_unlike_units(float(values.meta["fill_value"]), units),
        identity=Identity.from_meta(values.meta),
    )


def _unlike_units(fill_value: float, units: str) -> float | None:
    """A fill value that its units do not have by themselves."""
    return None if fill_value == fill_value_of(units) else fill_value


def _series(
    files: CaseFiles, key: str, loaded: Mapping[str, LoadedImage], landmarks: Matrix | None
) -> tuple[Series, list[str]]:
    """One image with its mask, labels, landmarks and true field, and what is to be said of them."""
    one: SeriesFiles = files.series[key]
    own, reference = loaded[key].image, loaded[files.reference]
    fixed = reference.image
    truth = None
    if one.displacement is not None:
        place = where(files.id, f"{key}_displacement", str(one.displacement))
        truth = _displacement(one.displacement, fixed.in_axes_of(reference.native_affine), place)
        truth = along_axes_of(fixed.affine, truth, reference.native_affine)
    messages: list[str] = []
    maps: dict[str, Image | None] = {"mask": None, "label": None}
    for name, given in (("mask", one.mask), ("label", one.label)):
        if given is not None:
            maps[name], notes = _map(files.id, f"{key}_{name}", given, loaded[key], fixed)
            messages += notes
    series = Series(
        image=own,
        prepared=loaded[key].prepared,
        transform=one.transform,
        mask=maps["mask"],
        labels=maps["label"],
        landmarks=landmarks,
        displacement=truth,
        native_affine=loaded[key].native_affine,
    )
    return series, messages


def _initial_transform(files: CaseFiles, key: str, fixed: Image) -> Matrix | None:
    """The affine at which the registration of a moving image may begin."""
    source = files.series[key].initial_transform
    if source is None:
        return None
    place = where(files.id, f"{key}_initial_transform", str(source))
    return read_initial_transform(source.path, fixed.spatial_dims, place=place)


def _check_place(fixed: Image, image: Image, start: Matrix | None, place: str) -> None:
    """Refuse an image that shares no space with the reference, by its header or its start."""
    grids = [_grid(image)]
    if start is not None:
        grids.insert(0, (inverse_affine(start) @ image.affine, image.shape))
    for number, grid in enumerate(grids):
        try:
            check_overlap(_grid(fixed), grid, place, fixed.key)
            return
        except NoOverlapError:
            if number == len(grids) - 1:
                raise


def _grid(image: Image) -> tuple[Matrix, tuple[int, ...]]:
    """Affine and shape."""
    return image.affine, image.shape


def _same_values(image: Image, others: Sequence[Image], place: str) -> list[str]:
    """A word on an image that has the values of another: one file was given for both."""
    return [
        f"{place}: it has the values of {other.key}, voxel by voxel; one file may have been given "
        "for both."
        for other in others
        if torch.equal(image.array, other.array)
    ]


def _uneven_pictures(fixed: Image, image: Image, place: str) -> list[str]:
    """A word on pictures whose sizes differ: they hardly have pixels of one size, as is assumed."""
    sides = [max(one.shape) for one in (fixed, image)]
    if not (fixed.is_picture and image.is_picture) or max(sides) < _UNEVEN * min(sides):
        return []
    (a, b), (c, d) = fixed.shape, image.shape
    return [
        f"{place}: {c} x {d} pixels beside {a} x {b} of {fixed.key}, and a pixel of each counts as "
        "1 mm. If both show one field of view, bring them to one pixel size, or give 2D NIfTI."
    ]


def check_dims(dims: int, fixed: Image, place: str) -> None:
    """Refuse 2D beside 3D."""
    if dims != fixed.spatial_dims:
        raise refusal(
            place,
            f"{fixed.spatial_dims}D, as the reference {fixed.key}",
            f"{dims}D",
            "give all images of a case as volumes, or all as 2D",
        )


def _map(
    case_id: str, name: str, source: Source | InMemory, image: LoadedImage, fixed: Image
) -> tuple[Image, list[str]]:
    """A mask or label map, which must lie on its image."""
    labels, messages = read_map(source, name, case_id=case_id)
    place = where(case_id, name, str(source))
    check_dims(labels.spatial_dims, fixed, place)
    native = image.image.in_axes_of(image.native_affine)
    messages += check_grid(native, labels.affine, labels.shape, place)
    check_overlap(_grid(image.image), _grid(labels), place, image.image.key)
    return labels, messages + check_marked(image.image, labels, place)


def read_points(case_id: str, key: str, source: Source | None, fixed: Image) -> Matrix:
    """Points with as many coordinates as the image has axes."""
    place = where(case_id, f"{key}_landmarks", str(source))
    points = read_landmarks(str(source), place=place)
    check_dims(points.shape[1], fixed, place)
    return points


def check_counts(files: CaseFiles, points: dict[str, Matrix]) -> None:
    """Refuse lists of points whose rows cannot be the same places."""
    if files.reference not in points:
        return
    count = len(points[files.reference])
    for key, marks in points.items():
        if len(marks) != count:
            raise refusal(
                where(files.id, f"{key}_landmarks", str(files.series[key].landmarks)),
                f"{count} points, as {files.reference}_landmarks",
                f"{len(marks)}",
                "give the same places in the same order",
            )


def _displacement(source: Source, fixed: Image, place: str) -> Tensor:
    """A true field on the reference's grid as its file has it."""
    field, affine = read_displacement_grid(source, place=place)
    check_field_grid(affine, tuple(field.shape[1:]), fixed, place)
    return field


def check_field_grid(affine: Matrix, shape: tuple[int, ...], fixed: Image, place: str) -> None:
    """Refuse a true field that does not lie on the reference's grid.

    Args:
        affine: of the field, RAS mm.
        shape: spatial shape of the field.
        fixed: the reference, in its file's axes.
        place: name of the field in messages.

    Raises:
        InputError: another shape or affine.
    """
    tolerance = 1e-3 * float(spacing_of(fixed.affine).min())
    if shape != fixed.shape or np.abs(affine - fixed.affine).max() > tolerance:
        raise refusal(
            place,
            f"a field on the grid of {fixed.key} (shape {fixed.shape})",
            f"another grid (shape {shape})",
            "resample the field to the reference",
        )


__all__ = [
    "LoadedImage",
    "Preprocessing",
    "cause_of",
    "check_counts",
    "check_dims",
    "check_field_grid",
    "load_case",
    "prepare_case",
    "prepare_image",
    "read_image",
    "read_points",
    "reading",
    "refusal_within",
]
