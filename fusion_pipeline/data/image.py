"""What the stages hand to each other: images with affines, and the case that holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from fusion_pipeline.geometry import spacing_of
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.modalities import Modality, modality_of
from fusion_pipeline.transforms.modality import looks_like_hu

UNITS = ("HU", "SUV", "Bq/ml", "counts", "a.u.")
_SAME_GRID_MM = 1e-9  # mm; rounding of float64 affines, far below any voxel
TransformKind = Literal["none", "rigid", "affine", "deformable"]
TRANSFORMS: tuple[TransformKind, ...] = ("none", "rigid", "affine", "deformable")


@dataclass(frozen=True)
class Identity:
    """Whom an image shows and in which space, by its DICOM header; empty where that is silent.

    It serves to compare the images of a case. Only DICOM output writes it, and ``repr`` hides the
    patient.

    Attributes:
        patient_id: PatientID.
        patient_name: PatientName.
        patient_sex: PatientSex.
        patient_birth_date: PatientBirthDate, ``YYYYMMDD``.
        study_uid: StudyInstanceUID.
        frame_of_reference: FrameOfReferenceUID.
    """

    patient_id: str = field(default="", repr=False)
    patient_name: str = field(default="", repr=False)
    patient_sex: str = field(default="", repr=False)
    patient_birth_date: str = field(default="", repr=False)
    study_uid: str = field(default="", repr=False)
    frame_of_reference: str = ""

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "Identity | None":
        """What a MetaTensor's meta says under the names of the attributes; None if nothing."""
        said = {name: str(meta.get(name) or "").strip() for name in IDENTITY_NAMES}
        return cls(**said) if any(said.values()) else None

    def as_meta(self) -> dict[str, str]:
        """The attributes by name, for a MetaTensor's meta while an image is being read."""
        return {name: getattr(self, name) for name in IDENTITY_NAMES}


IDENTITY_NAMES = tuple(one.name for one in fields(Identity))


@dataclass(frozen=True)
class Image:
    """An image in the world.

    Attributes:
        array: ``(1, *S)`` float32, in the units that ``units`` names; d = 2 or 3 spatial axes.
        affine: ``(d + 1, d + 1)`` float64, world_from_voxel, RAS+ mm. A 2D picture has
            ``diag(-1, -1, 1)``: its column and row are ITK's x and y.
        key: image key of the case, such as ``ct`` or ``mr_t1``.
        units: ``HU``, ``SUV``, ``Bq/ml``, ``counts``, ``harmonized`` or ``a.u.``; decided when a
            file is read, or, where none are given, here: ``HU`` for a CT with air near -1000 and
            tissue near 0.
        path: the file or folder it came from, for messages; empty when generated.
        colour: ``(3, *S)`` 0..255, float or uint8, only of a colour picture (``array`` is then its
            luma, Rec. 601).
        identity: whom it shows and in which space; None for formats that do not say so.
        darkest: value outside the field of view, where it is not that of the units.
    """

    array: Tensor
    affine: Matrix
    key: str
    units: str = ""
    path: str = ""
    colour: Tensor | None = None
    identity: Identity | None = None
    darkest: float | None = None

    def __post_init__(self) -> None:
        """Decide the units where none are given."""
        if not self.units:
            ct = _modality_or_key(self.key) == "ct"
            object.__setattr__(self, "units", "HU" if ct and looks_like_hu(self.array) else "a.u.")

    @property
    def modality(self) -> Modality:
        """``ct``, ``mr``, ``pet`` or ``spect``."""
        return modality_of(self.key)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape."""
        return tuple(self.array.shape[1:])

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.array.ndim - 1

    @property
    def spacing(self) -> Matrix:
        """Voxel size along each axis in mm."""
        return spacing_of(self.affine)

    @property
    def frame_of_reference(self) -> str:
        """DICOM's FrameOfReferenceUID; empty where none is known."""
        return "" if self.identity is None else self.identity.frame_of_reference

    @property
    def is_picture(self) -> bool:
        """It came from a PNG, and what is made of it is written as one."""
        return self.path.lower().endswith(".png")

    @property
    def fill_value(self) -> float:
        """The value outside the field of view: -1000 for an image in HU, mostly 0 for others."""
        return fill_value_of(self.units) if self.darkest is None else self.darkest

    def with_array(self, array: Tensor, **changes: object) -> "Image":
        """The same image with other values (and other attributes where named)."""
        if "units" in changes:  # other units have another value outside
            changes = {"darkest": None, **changes}
        return replace(self, array=array, **changes)  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> "Image":
        """The same image with its values on a device; itself if they lie there."""
        array = self.array.to(device)
        if array is self.array:
            return self
        colour = None if self.colour is None else self.colour.to(device)
        return replace(self, array=array, colour=colour)

    def in_canonical_axes(self) -> "Image":
        """The same image with its axes flipped and swapped to lie nearest to R, A and S (R, A).

        No value is interpolated: each voxel keeps its place in the world.
        """
        turn = nib.orientations.io_orientation(self.affine)
        return self._turned(turn)

    def in_axes_of(self, affine: Matrix) -> "Image":
        """The same image with its axes flipped and swapped to run along those of another affine.

        The way back from `in_canonical_axes`, exact as well.

        Args:
            affine: ``(d + 1, d + 1)`` world_from_voxel; its axes lie nearest to other world axes
                each, as those of any image do.
        """
        here, there = (nib.orientations.io_orientation(a) for a in (self.affine, affine))
        turned = self._turned(nib.orientations.ornt_transform(here, there))
        # the same grid, but for the rounding of the way forth and back
        same = np.allclose(turned.affine, affine, rtol=0, atol=_SAME_GRID_MM)
        return replace(turned, affine=affine) if same else turned

    def _turned(self, turn: Matrix) -> "Image":
        """The same image after a signed permutation of its axes, as nibabel writes it."""
        if np.array_equal(turn[:, 0], np.arange(len(turn))) and bool((turn[:, 1] > 0).all()):
            return self
        affine = self.affine @ nib.orientations.inv_ornt_aff(turn, self.shape)
        colour = None if self.colour is None else reoriented(self.colour, turn)
        return replace(self, array=reoriented(self.array, turn), affine=affine, colour=colour)

    def as_meta_tensor(self) -> MetaTensor:
        """The image as MONAI has it; the values are shared, not copied.

        Returns:
            ``(1, *S)``, or ``(3, *S)`` for a colour picture, with ``affine`` and in ``meta``:
            ``modality``, ``units``, ``fill_value``, ``frame_of_reference``, ``space``; nothing of
            the patient.
        """
        values = self.array if self.colour is None else self.colour
        return meta_tensor(
            values,
            self.affine,
            modality=_modality_or_key(self.key),
            units=self.units,
            fill_value=self.fill_value,
            frame_of_reference=self.frame_of_reference,
            filename_or_obj=self.path,
        )


def meta_tensor(values: Tensor, affine: Matrix, **meta: Any) -> MetaTensor:  # noqa: ANN401 - meta
    """Values on a grid as MONAI has them, RAS+ mm.

    Args:
        values: ``(C, *S)``; shared, not copied.
        affine: ``(d + 1, d + 1)`` world_from_voxel.
        meta: plain values.
    """
    shape = np.asarray(values.shape[1:])
    geometry = {"space": "RAS", "original_channel_dim": 0, "spatial_shape": shape}
    world = torch.from_numpy(np.asarray(affine, dtype=np.float64))
    return MetaTensor(values, affine=world, meta={**geometry, "original_affine": affine, **meta})


def reoriented(array: Tensor, turn: Matrix) -> Tensor:
    """An array ``(C, *S)`` after a signed permutation of its spatial axes.

    Args:
        array: one or several channels.
        turn: ``(d, 2)`` as nibabel writes orientations: axis k of the array becomes axis
            ``turn[k, 0]``, flipped where ``turn[k, 1]`` is -1.
    """
    if np.array_equal(turn, [[axis, 1] for axis in range(len(turn))]):
        return array
    order = [int(axis) for axis in np.argsort(turn[:, 0])]
    flips = [1 + k for k, axis in enumerate(order) if turn[axis, 1] < 0]
    return array.permute(0, *[1 + axis for axis in order]).flip(flips).contiguous()


def along_axes_of(target: Matrix, array: Tensor, affine: Matrix) -> Tensor:
    """Channels on a grid, its axes flipped and swapped to run along those of another grid.

    Args:
        target: ``(d + 1, d + 1)`` whose axes are wanted.
        array: ``(C, *S)``.
        affine: ``(d + 1, d + 1)`` of the array.
    """
    here, there = (nib.orientations.io_orientation(a) for a in (affine, target))
    return reoriented(array, nib.orientations.ornt_transform(here, there))


def _modality_or_key(key: str) -> str:
    """The modality of an image key; other keys (``fused``) stand for themselves."""
    try:
        return modality_of(key)
    except ValueError:
        return key


@dataclass(frozen=True)
class Prepared:
    """An image and what `preprocessing` found in it, once; all in canonical axes.

    Attributes:
        image: the values as given; results are made from them.
        working: what the networks look at: the image itself, or after denoising.
        field_of_view: ``(1, *S)`` bool, False in padding.
        body: ``(1, *S)`` bool, see `transforms.BodyMask`.
    """

    image: Image
    working: Image
    field_of_view: Tensor
    body: Tensor

    def to(self, device: torch.device | str) -> "Prepared":
        """The same with all values on a device; an image that is both is moved once."""
        image = self.image.to(device)
        working = image if self.working is self.image else self.working.to(device)
        return Prepared(image, working, self.field_of_view.to(device), self.body.to(device))


@dataclass(frozen=True)
class Series:
    """One image of a case and everything that is known about it.

    Attributes:
        image: the image as given.
        prepared: what `preprocessing` made of it; None before that.
        transform: how far the registration of a moving image may go.
        mask: where to look (an integer image on a grid of its own).
        labels: integer label map, on a grid of its own.
        landmarks: ``(n, d)`` points in RAS mm.
        displacement: a true field ``(d, *S)`` in RAS mm on the reference's grid.
        initial_transform: ``(d + 1, d + 1)`` moving_from_fixed, RAS mm, at which its registration
            may begin beside the headers.
        native_affine: the affine that its file has; None: that of the image.
    """

    image: Image
    prepared: Prepared | None = None
    transform: TransformKind = "deformable"
    mask: Image | None = None
    labels: Image | None = None
    landmarks: Matrix | None = None
    displacement: Tensor | None = None
    initial_transform: Matrix | None = None
    native_affine: Matrix | None = None


@dataclass(frozen=True)
class Case:
    """One patient: the images and what is known about them.

    Attributes:
        id: name of the case, and of its output folder.
        reference: key of the fixed image.
        series: two or more (one is enough to be harmonized), the reference first, then as the user
            listed them; once prepared, in canonical axes.
        native_affine: the affine of the reference as its file has it; results go back to its axes.
            None: that of the reference.
        target: class of the case, for the diagnostic study.
        warnings: sentences about what was repaired or guessed.
    """

    id: str
    reference: str
    series: Mapping[str, Series]
    native_affine: Matrix | None = None
    target: str | int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def images(self) -> Mapping[str, Image]:
        """The images as given, the reference first."""
        return {key: series.image for key, series in self.series.items()}

    @property
    def fixed(self) -> Image:
        """The reference image."""
        return self.series[self.reference].image

    @property
    def moving(self) -> Mapping[str, Image]:
        """All images but the reference, in order."""
        return {key: image for key, image in self.images.items() if key != self.reference}


def check_one_grid(images: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]) -> None:
    """Refuse images of different shapes, and one without a field of view of its shape.

    Args:
        images: by key.
        fields_of_view: per key ``(1, *S)``.

    Raises:
        ValueError: they do not lie on one grid.
    """
    shapes = {key: image.shape for key, image in images.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"expected images of one shape, the reference's, got {shapes}")
    for key, shape in shapes.items():
        field = fields_of_view.get(key)
        if field is None or tuple(field.shape) != (1, *shape):
            came = "nothing" if field is None else tuple(field.shape)
            raise ValueError(f"expected a field of view of {key}, {(1, *shape)}, got {came}")


def in_canonical_axes(
    images: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]
) -> tuple[dict[str, Image], dict[str, Tensor]]:
    """Images of one grid and their fields of view, their axes nearest to R, A and S.

    Args:
        images: by key; all turn as the first does.
        fields_of_view: per key ``(1, *S)``.
    """
    first = next(iter(images.values()))
    to = first.in_canonical_axes().affine
    turned = {key: replace(one, affine=first.affine).in_axes_of(to) for key, one in images.items()}
    fields = {key: along_axes_of(to, fields_of_view[key], first.affine) for key in images}
    return turned, fields


def fill_value_of(units: str) -> float:
    """What lies outside an image in these units: air in HU, nothing in all others.

    >>> fill_value_of("HU"), fill_value_of("SUV")
    (-1000.0, 0.0)
    """
    return -1000.0 if units == "HU" else 0.0


class InputError(ValueError):
    """The user's input cannot be used; the message is the one line that tells what to do."""


class NoOverlapError(InputError):
    """Two images of a case share no space in the world."""


__all__ = [
    "IDENTITY_NAMES",
    "TRANSFORMS",
    "UNITS",
    "Case",
    "Identity",
    "Image",
    "InputError",
    "NoOverlapError",
    "Prepared",
    "Series",
    "TransformKind",
    "along_axes_of",
    "check_one_grid",
    "fill_value_of",
    "in_canonical_axes",
    "meta_tensor",
    "reoriented",
]
