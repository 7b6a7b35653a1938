"""Where an image comes from: a path, one series of a DICOM folder, or an image in memory."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from torch import Tensor

from fusion_pipeline.data.image import InputError, meta_tensor
from fusion_pipeline.geometry.affines import Matrix

_SEPARATOR = "::"


@dataclass(frozen=True)
class Source:
    """A file, or a DICOM folder of which one series may be named.

    Attributes:
        path: of the file or folder, as the user wrote it or resolved.
        series: SeriesInstanceUID; empty: the folder's only series.
    """

    path: str
    series: str = ""

    @classmethod
    def parse(cls, text: str | PathLike[str]) -> "Source":
        """A source from text: ``path``, or ``folder::SeriesInstanceUID``.

        >>> Source.parse("study::1.2.3")
        Source(path='study', series='1.2.3')
        """
        path, _, series = str(text).partition(_SEPARATOR)
        return cls(path, series)

    def __str__(self) -> str:
        """As a user writes it."""
        return f"{self.path}{_SEPARATOR}{self.series}" if self.series else self.path


@dataclass(frozen=True)
class InMemory:
    """An image that a program hands over.

    Attributes:
        content: a MetaTensor, a nibabel image, a SimpleITK image, or ``(array, affine)``.
    """

    content: Any

    def __str__(self) -> str:
        """For messages."""
        return f"{type(self.content).__name__} in memory"


def is_in_memory(value: object) -> bool:
    """Whether a value is an image and no path.

    >>> is_in_memory("ct.nii.gz"), is_in_memory((np.zeros((3, 3)), np.eye(3)))
    (False, True)
    """
    pair = isinstance(value, tuple | list) and len(value) == 2 and not isinstance(value[0], str)
    return pair or isinstance(
        value, Tensor | np.ndarray | nib.spatialimages.SpatialImage | sitk.Image
    )


def as_meta_tensor(content: Any) -> MetaTensor:  # noqa: ANN401 - any kind of image
    """An image in memory as MONAI has it.

    Convention:
        - the affine is world_from_voxel in RAS+ mm; a SimpleITK image's LPS is turned into it
        - the array's axes run in the order of the affine's columns (MONAI, nibabel); SimpleITK's
          ``(x, y, z)`` are these axes

    Args:
        content: a MetaTensor ``(1, *S)`` or ``(*S)``, a nibabel image, a SimpleITK image, or
            ``(array, affine)``.

    Returns:
        ``(1, *S)`` float32 (``(3, *S)`` a colour MetaTensor in 2D).

    Raises:
        InputError: another kind of object, or an array without an affine.
    """
    if isinstance(content, MetaTensor):
        return _of_meta_tensor(content)
    if isinstance(content, nib.spatialimages.SpatialImage):
        affine = np.asarray(content.affine, dtype=np.float64)
        return _checked(content.get_fdata(dtype=np.float32), affine)
    if isinstance(content, sitk.Image):
        return _checked(sitk.GetArrayFromImage(content).T, itk_affine(content))
    if isinstance(content, tuple | list) and len(content) == 2:
        return _checked(content[0], content[1])
    raise InputError(
        "expected a path, a MetaTensor, a nibabel or SimpleITK image, or (array, affine), got a "
        f"{type(content).__name__} without an affine; give (array, affine), the affine in RAS mm"
    )


def itk_affine(image: sitk.Image) -> Matrix:
    """world_from_voxel of a SimpleITK image in RAS+ mm."""
    d = image.GetDimension()
    lps = np.eye(d + 1)
    lps[:d, :d] = np.reshape(image.GetDirection(), (d, d)) * np.asarray(image.GetSpacing())
    lps[:d, d] = image.GetOrigin()
    return np.asarray(np.diag([-1.0, -1.0, *[1.0] * (d - 1)]) @ lps)


def _of_meta_tensor(content: MetaTensor) -> MetaTensor:
    """Channel first, with what its meta says; a MetaTensor knows its affine."""
    values = content.as_tensor().detach().cpu()
    d = len(content.affine) - 1
    if values.ndim == d:
        values = values[None]
    known = ("modality", "units", "frame_of_reference", "filename_or_obj")
    meta = {name: content.meta[name] for name in known if name in content.meta}
    affine = content.affine.detach().cpu().numpy()
    if values.ndim == 3 and d == 3:  # MONAI keeps 4 x 4 for 2D images as well
        affine = affine[np.ix_([0, 1, 3], [0, 1, 3])]
    return meta_tensor(values.float(), np.asarray(affine, dtype=np.float64), **meta)


def _checked(array: Any, affine: Any) -> MetaTensor:  # noqa: ANN401 - array-likes
    """One channel with an affine that fits it."""
    values = torch.from_numpy(np.ascontiguousarray(np.asarray(array), dtype=np.float32))
    matrix = np.asarray(affine, dtype=np.float64)
    d = values.ndim
    if d == 2 and matrix.shape == (4, 4):
        matrix = matrix[np.ix_([0, 1, 3], [0, 1, 3])]
    if d not in (2, 3) or matrix.shape != (d + 1, d + 1):
        raise InputError(
            f"expected an array of 2 or 3 axes and an affine of one more, got shapes "
            f"{tuple(values.shape)} and {matrix.shape}; give one volume and its affine in RAS mm"
        )
    return meta_tensor(values[None], matrix)


__all__ = ["InMemory", "Source", "as_meta_tensor", "is_in_memory", "itk_affine"]
