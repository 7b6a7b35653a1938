"""What the stages hand to each other: images with affines, and the case that holds them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import nibabel as nib
import numpy as np
from torch import Tensor

from fusion_pipeline.geometry import spacing_of
from fusion_pipeline.geometry.affines import Matrix

Modality = Literal["ct", "mr", "pet", "spect"]
MODALITIES: tuple[Modality, ...] = ("ct", "mr", "pet", "spect")
TransformKind = Literal["none", "rigid", "affine", "deformable"]
TRANSFORMS: tuple[TransformKind, ...] = ("none", "rigid", "affine", "deformable")


def modality_of(key: str) -> Modality:
    """The modality that an image key names: ``mr_t1`` → ``mr``.

    Raises:
        ValueError: the key does not begin with a known modality.
    """
    for modality in MODALITIES:
        if key == modality or key.startswith(modality + "_"):
            return modality
    raise ValueError(f"expected a key of {', '.join(MODALITIES)} (mr_t1 and the like), got {key!r}")


@dataclass(frozen=True)
class Image:
    """An image in the world.

    Attributes:
        array: ``(1, *S)`` float32, in the units that ``units`` names; d = 2 or 3 spatial axes.
        affine: ``(d + 1, d + 1)`` float64, world_from_voxel, RAS+ mm. A 2D picture has
            ``diag(-1, -1, 1)``: its column and row are ITK's x and y.
        key: image key of the case, such as ``ct`` or ``mr_t1``.
        units: ``HU``, ``SUV``, ``Bq/ml``, ``counts`` or ``a.u.``.
        path: the file or folder it came from, for messages; empty when generated.
        colour: ``(3, *S)`` 0..255, only of a colour picture (``array`` is then its luma, Rec. 601).
    """

    array: Tensor
    affine: Matrix
    key: str
    units: str = "a.u."
    path: str = ""
    colour: Tensor | None = None

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
    def outside(self) -> float:
        """The value outside the field of view: −1000 HU for CT, else 0.

        0 as well for a CT that is not in HU, whose air is about 0, such as a picture.
        """
        return -1000.0 if self.modality == "ct" and not is_not_in_hu(self.array) else 0.0

    def with_array(self, array: Tensor, **changes: object) -> "Image":
        """The same image with other values (and other attributes where named)."""
        return replace(self, array=array, **changes)  # type: ignore[arg-type]

    def in_canonical_axes(self) -> "Image":
        """The same image with its axes flipped and swapped to lie nearest to R, A and S (R, A).

        No value is interpolated: each voxel keeps its place in the world.
        """
        turn = nib.orientations.io_orientation(self.affine)
        order = [int(axis) for axis in np.argsort(turn[:, 0])]
        flips = [1 + k for k, axis in enumerate(order) if turn[axis, 1] < 0]

        def turned(array: Tensor) -> Tensor:
            return array.permute(0, *[1 + axis for axis in order]).flip(flips).contiguous()

        affine = self.affine @ nib.orientations.inv_ornt_aff(turn, self.shape)
        colour = None if self.colour is None else turned(self.colour)
        return replace(self, array=turned(self.array), affine=affine, colour=colour)


@dataclass(frozen=True)
class Case:
    """One patient: the images and what is known about them.

    Attributes:
        id: name of the case, and of its output folder.
        reference: key of the fixed image.
        images: two or more, the reference first, then as the user listed them.
        transforms: per moving key, how far the registration may go.
        masks: per key, where to look (integer images on the grid of their file).
        labels: per key, integer label maps.
        landmarks: per key, ``(n, d)`` points in RAS mm.
        displacements: per moving key, a true field ``(d, *S)`` in RAS mm on the reference grid.
        target: class of the case, for the diagnostic study.
        warnings: sentences about what was repaired or guessed.
    """

    id: str
    reference: str
    images: Mapping[str, Image]
    transforms: Mapping[str, TransformKind]
    masks: Mapping[str, Image] = field(default_factory=dict)
    labels: Mapping[str, Image] = field(default_factory=dict)
    landmarks: Mapping[str, Matrix] = field(default_factory=dict)
    displacements: Mapping[str, Tensor] = field(default_factory=dict)
    target: str | int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def fixed(self) -> Image:
        """The reference image."""
        return self.images[self.reference]

    @property
    def moving(self) -> Mapping[str, Image]:
        """All images but the reference, in order."""
        return {key: image for key, image in self.images.items() if key != self.reference}


def is_not_in_hu(ct: Tensor) -> bool:
    """Whether a CT's air seems to be 0: stored values, a window scaled to 0..1, or air masked."""
    values = ct.detach().cpu().numpy()  # a whole-body CT is not copied for this
    return bool(np.min(values, initial=np.inf, where=np.isfinite(values)) >= 0)


class InputError(ValueError):
    """The user's input cannot be used; the message is the one line that tells what to do."""


class NoOverlapError(InputError):
    """Two images of a case share no space in the world."""


__all__ = [
    "MODALITIES",
    "TRANSFORMS",
    "Case",
    "Image",
    "InputError",
    "Modality",
    "NoOverlapError",
    "TransformKind",
    "is_not_in_hu",
    "modality_of",
]
