"""Where an image comes from: a path, one series of a DICOM folder, or an image in memory."""

import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from torch import Tensor

from fusion_pipeline.data.image import IDENTITY_NAMES, InputError, meta_tensor
from fusion_pipeline.geometry import lps_from_ras
from fusion_pipeline.geometry.affines import Matrix

_SEPARATOR = "::"
# what a program may say of an image in memory
_META = ("modality", "units", "filename_or_obj", *IDENTITY_NAMES)
# the same in the metadata of SimpleITK, which names DICOM's attributes by their tags
_ITK_DICOM = {
    "modality": "0008|0060",
    "units": "0054|1001",
    "patient_id": "0010|0020",
    "patient_name": "0010|0010",
    "patient_sex": "0010|0040",
    "patient_birth_date": "0010|0030",
    "study_uid": "0020|000d",
    "frame_of_reference": "0020|0052",
}
_DICOM_UNITS = {"GML": "SUV", "BQML": "Bq/ml", "CNTS": "counts"}
_DICOM_MODALITY = {"CT": "ct", "MR": "mr", "PT": "pet"}  # NM is SPECT or PET


@dataclass(frozen=True)
class Source:
    """A file, or a DICOM folder of which one series and acquisition may be named.

    Attributes:
        path: of the file or folder, as the user wrote it or resolved.
        series: SeriesInstanceUID; empty: the folder's only series.
        selectors: which acquisition of the series, such as ``("echo", "90")``.
    """

    path: str
    series: str = ""
    selectors: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str | PathLike[str], folder: str | PathLike[str] = "") -> "Source":
        """A source from text: ``path``, ``folder::SeriesInstanceUID``, ``folder::echo=90`` or both.

        A path that is there may have ``::`` in its name.

        Args:
            text: as a user writes it.
            folder: what a relative path counts from.

        >>> Source.parse("study::1.2.3").series
        '1.2.3'
        >>> Source.parse("study::1.2.3::echo=90::time=2").selectors
        (('echo', '90'), ('time', '2'))
        """
        path, parts = _split(str(text), str(folder))
        pairs = [part.partition("=") for part in parts]
        series = _SEPARATOR.join(name for name, sign, _ in pairs if not sign)
        return cls(path, series, tuple((name, value) for name, sign, value in pairs if sign))

    @property
    def is_dicom_choice(self) -> bool:
        """Names a series or an acquisition, which only DICOM has."""
        return bool(self.series or self.selectors)

    def __str__(self) -> str:
        """As a user writes it."""
        chosen = [f"{name}={value}" for name, value in self.selectors]
        return _SEPARATOR.join([self.path, *([self.series] if self.series else []), *chosen])


def _split(text: str, folder: str) -> tuple[str, list[str]]:
    """The longest beginning that is a path, and what follows it."""
    parts = text.split(_SEPARATOR)
    for end in range(len(parts), 1, -1):
        path = _SEPARATOR.join(parts[:end])
        full = os.path.join(folder, os.path.expanduser(path))  # noqa: PTH111, PTH118 - never raises
        if os.path.exists(full):  # noqa: PTH110 - nor does this
            return path, parts[end:]
    return parts[0], parts[1:]


@dataclass(frozen=True)
class InMemory:
    """An image that a program hands over.

    Attributes:
        content: a MetaTensor, a nibabel image, a SimpleITK image, ``(array, affine)``, or
            ``(array, affine, meta)``.
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
    if isinstance(value, tuple | list):
        pair = len(value) == 2 or (len(value) == 3 and isinstance(value[2], Mapping))
        return pair and not isinstance(value[0], str | PathLike)
    return isinstance(value, Tensor | np.ndarray | nib.spatialimages.SpatialImage | sitk.Image)


def as_meta_tensor(content: Any) -> MetaTensor:  # noqa: ANN401 - any kind of image
    """An image in memory as MONAI has it.

    Convention:
        - the affine is world_from_voxel in RAS+ mm; a SimpleITK image's LPS is turned into it
        - the array's axes run in the order of the affine's columns (MONAI, nibabel); SimpleITK's
          ``(x, y, z)`` are these axes
        - ``units`` (one of `UNITS`), ``modality`` (one of `MODALITIES`) and the attributes of
          `Identity` are taken from a MetaTensor's ``meta``, from the mapping after the affine, and
          from SimpleITK's metadata, by these names or by DICOM's tags (``0054|1001``,
          ``0008|0060``, ``0020|0052``, ``0010|0020`` and so on)

    Args:
        content: a MetaTensor ``(1, *S)`` or ``(*S)``, a nibabel image, a SimpleITK image,
            ``(array, affine)`` or ``(array, affine, meta)``.

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
        array = sitk.GetArrayFromImage(content).T
        return _checked(array, itk_affine(content), _itk_meta(content))
    if isinstance(content, tuple | list) and is_in_memory(content):
        return _checked(*content)
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
    return np.asarray(lps_from_ras(d) @ lps)


def _of_meta_tensor(content: MetaTensor) -> MetaTensor:
    """Channel first, RAS, with what its meta says; a MetaTensor knows its affine."""
    values = content.as_tensor().detach().cpu()
    d = _spatial_dims(content)
    values = values[None] if values.ndim == d else values
    if values.ndim != d + 1 or len(values) not in ((1, 3) if d == 2 else (1,)):
        raise InputError(
            f"expected one channel on {d} spatial axes (three channels for colour in 2D), got a "
            f"MetaTensor of shape {tuple(content.shape)}; pick one channel"
        )
    affine = _fitted(content.affine.detach().cpu().numpy(), d)
    if str(content.meta.get("space", "")).upper().endswith("LPS"):
        affine = lps_from_ras(d) @ affine
    return meta_tensor(values.float(), affine, **_chosen(content.meta))


def _chosen(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What counts of an image's meta."""
    return {name: meta[name] for name in _META if name in meta}


def _itk_meta(image: sitk.Image) -> dict[str, str]:
    """The same of SimpleITK's metadata, DICOM's words turned into ours."""
    read = {key: image.GetMetaData(key).strip() for key in image.GetMetaDataKeys()}
    words = {"units": _DICOM_UNITS, "modality": _DICOM_MODALITY}
    dicom = {
        name: words[name].get(read[tag], "") if name in words else read[tag]
        for name, tag in _ITK_DICOM.items()
        if tag in read
    }
    return {name: text for name, text in {**dicom, **_chosen(read)}.items() if text}


def _spatial_dims(content: MetaTensor) -> int:
    """2 or 3; MONAI keeps 4 x 4 affines for 2D images as well."""
    if "spatial_shape" in content.meta:
        return len(content.meta["spatial_shape"])
    if content.ndim == 3 and len(content.affine) == 4:
        return 2 if len(content) in (1, 3) else 3
    return min(content.ndim, len(content.affine) - 1)


def _checked(
    array: Any,  # noqa: ANN401 - array-likes
    affine: Any,  # noqa: ANN401
    meta: Mapping[str, Any] | None = None,
) -> MetaTensor:
    """One channel with an affine that fits it."""
    try:
        given = array.detach().cpu() if isinstance(array, Tensor) else array
        values = torch.from_numpy(np.ascontiguousarray(np.asarray(given), dtype=np.float32))
        matrix = np.asarray(affine, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"expected (array, affine) of numbers, got {type(array).__name__} and "
            f"{type(affine).__name__} ({error}); give the affine as a matrix in RAS mm"
        ) from error
    d = values.ndim
    if d not in (2, 3) or matrix.shape not in ((d + 1, d + 1), (4, 4)):
        raise InputError(
            f"expected an array of 2 or 3 axes and an affine of one more, got shapes "
            f"{tuple(values.shape)} and {matrix.shape}; give one volume and its affine in RAS mm"
        )
    return meta_tensor(values[None], _fitted(matrix, d), **_chosen(meta or {}))


def _fitted(affine: Matrix, d: int) -> Matrix:
    """The affine of ``d`` axes: of a 2D image that lies in the world's x-y plane, 3 x 3."""
    matrix = np.asarray(affine, dtype=np.float64)
    if d == 3 or matrix.shape == (3, 3):
        return matrix
    if np.abs(matrix[2, :2]).max() > 1e-3 * np.abs(matrix[:2, :2]).max():
        raise InputError(
            "expected a 2D image in the world's x-y plane, got one in another; give the volume"
        )
    return np.asarray(matrix[np.ix_([0, 1, 3], [0, 1, 3])])


__all__ = ["InMemory", "Source", "as_meta_tensor", "is_in_memory", "itk_affine"]
