"""MONAI image readers that refuse what cannot be used, and the loader that chooses between them."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai import transforms
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from torch import Tensor

from fusion_pipeline.data.checks import RawImage
from fusion_pipeline.data.dicom import read_series
from fusion_pipeline.data.dicom_files import is_dicom
from fusion_pipeline.data.image import Identity, meta_tensor
from fusion_pipeline.data.pictures import PICTURE_SUFFIXES, read_picture
from fusion_pipeline.data.refusals import quiet, refusal
from fusion_pipeline.data.side_file import with_side_file
from fusion_pipeline.data.sources import InMemory, Source, as_meta_tensor, is_in_memory
from fusion_pipeline.data.volumes import (
    ITK_SUFFIXES,
    NIFTI_SUFFIXES,
    nifti_values,
    read_itk,
    read_nifti,
)

_FORMATS = "NIfTI, NRRD, MetaImage, a DICOM folder or PNG"
Names = Sequence[PathLike[str] | str] | PathLike[str] | str


class CheckedReader(ImageReader):
    """What the readers of all formats share: one file in, an array with its facts out.

    Convention:
        - ``array`` ``(1, *S)`` float32 (``(3, *S)`` a colour picture), the file's own axes in the
          order of the affine's columns
        - ``meta["affine"]`` is world_from_voxel, ``(d + 1, d + 1)`` float64, RAS+ mm

    Raises:
        InputError: from `read`, where a file is missing, damaged or no such image; the message
            begins with the path in brackets.
    """

    def verify_suffix(self, filename: Names) -> bool:
        """Whether this reader is the one for a file, by its name or its first bytes."""
        return self._accepts(Source.parse(_only(filename)))

    def read(self, data: Names, **kwargs: Any) -> RawImage:  # noqa: ANN401 - MONAI's signature
        """Read one file, with its header."""
        source = Source.parse(_only(data))
        return self._read(source, f"({source})")

    def get_data(self, img: RawImage) -> tuple[np.ndarray, dict[str, Any]]:
        """The values and plain facts about them."""
        array = img.array[None] if img.colour is None else img.colour
        suv = {} if img.suv is None else img.suv._asdict()
        return array, {
            "affine": img.affine,
            "original_affine": img.affine.copy(),
            "spatial_shape": np.asarray(array.shape[1:]),
            "space": "RAS",
            "original_channel_dim": 0,
            "units": img.units,
            **(img.identity or Identity()).as_meta(),
            "dicom_modality": img.dicom_modality,
            "warnings": list(img.warnings),
            **({} if img.padding is None else {"padding": img.padding}),
            **{f"suv_{name}": value for name, value in suv.items()},
        }

    @abstractmethod
    def _accepts(self, source: Source) -> bool:
        """Whether the reader is made for it."""

    @abstractmethod
    def _read(self, source: Source, place: str) -> RawImage:
        """Read it."""


class NiftiReader(CheckedReader):
    """NIfTI-1 and NIfTI-2 by nibabel; the sform wins over the qform, lengths in mm.

    Modality and units are those of a JSON file beside it, as BIDS and dcm2niix write it.
    """

    def _accepts(self, source: Source) -> bool:
        return source.path.lower().endswith(NIFTI_SUFFIXES) and not source.is_dicom_choice

    def _read(self, source: Source, place: str) -> RawImage:
        path = Path(source.path)
        return with_side_file(read_nifti(path, place), path)


class ITKFormatReader(CheckedReader):
    """NRRD and MetaImage by the package ``itk``, which is loaded only when such a file comes."""

    def _accepts(self, source: Source) -> bool:
        return source.path.lower().endswith(ITK_SUFFIXES) and not source.is_dicom_choice

    def _read(self, source: Source, place: str) -> RawImage:
        return read_itk(Path(source.path), place)


class PictureReader(CheckedReader):
    """PNG by Pillow: column is x, row is y, a pixel counts as 1 mm."""

    def _accepts(self, source: Source) -> bool:
        return source.path.lower().endswith(PICTURE_SUFFIXES) and not source.is_dicom_choice

    def _read(self, source: Source, place: str) -> RawImage:
        return read_picture(Path(source.path), place)


class DicomSeriesReader(CheckedReader):
    """A DICOM folder or file; ``folder::SeriesInstanceUID::echo=90`` picks of several."""

    def _accepts(self, source: Source) -> bool:
        path = Path(source.path)
        return source.is_dicom_choice or path.is_dir() or is_dicom(path)

    def _read(self, source: Source, place: str) -> RawImage:
        return read_series(source, place)


class _Unreadable(CheckedReader):
    """What none of the others takes: says what could be read."""

    def _accepts(self, source: Source) -> bool:
        return True

    def _read(self, source: Source, place: str) -> RawImage:
        came = f"a file named {Path(source.path).name}"
        raise refusal(place, _FORMATS, came, "convert the image to one of these")


class _Missing(CheckedReader):
    """A path where nothing is."""

    def _accepts(self, source: Source) -> bool:
        return not source.path or not Path(source.path).exists()

    def _read(self, source: Source, place: str) -> RawImage:
        raise refusal(place, "an image file or a DICOM folder", "no such file", "check the path")


# the first that accepts a file reads it
READERS: tuple[CheckedReader, ...] = (
    _Missing(),
    DicomSeriesReader(),
    NiftiReader(),
    ITKFormatReader(),
    PictureReader(),
    _Unreadable(),
)


class LoadImaged(transforms.LoadImaged):
    """MONAI's ``LoadImaged`` with the readers of this package; what is an image already stays.

    Args:
        keys: paths, or images in memory (see `sources.as_meta_tensor`).
        reader: another reader of MONAI's, in place of ours.
        ensure_channel_first: as in MONAI; the stages need it.
        allow_missing_keys: skip keys that a dictionary does not have.
        kwargs: further arguments of MONAI's class.
    """

    def __init__(
        self,
        keys: KeysCollection,
        reader: type[ImageReader] | ImageReader | str | None = None,
        ensure_channel_first: bool = True,
        allow_missing_keys: bool = False,
        **kwargs: Any,  # noqa: ANN401 - handed on
    ) -> None:
        with quiet():  # MONAI's own readers warn of what is not installed
            super().__init__(
                keys,
                reader=reader,
                ensure_channel_first=ensure_channel_first,
                allow_missing_keys=allow_missing_keys,
                **{"expanduser": False, **kwargs},  # the datalist has done it
            )
        if reader is None:
            for one in reversed(READERS):  # MONAI asks the last first
                self.register(one)

    def __call__(
        self, data: Mapping[Hashable, Any], reader: ImageReader | None = None
    ) -> dict[Hashable, Any]:
        """Load each key."""
        out = dict(data)
        for key in self.key_iterator(out):
            given = out[key].content if isinstance(out[key], InMemory) else out[key]
            if isinstance(given, nib.Nifti1Pair):
                out[key] = _of_nibabel(given)
            elif isinstance(given, Tensor) or is_in_memory(given):
                out[key] = as_meta_tensor(given)
            else:
                out[key] = self._loader(str(given), reader)
        return out


def _of_nibabel(image: nib.Nifti1Pair) -> MetaTensor:
    """A NIfTI image that nibabel has opened, by the rules of `NiftiReader`."""
    values, meta = NiftiReader().get_data(nifti_values(image, "(nibabel image in memory)"))
    return meta_tensor(torch.from_numpy(values), meta.pop("affine"), **meta)


def read_raw(source: Source, place: str) -> RawImage:
    """Read a file by the reader that accepts it.

    Raises:
        InputError: it cannot be used.
    """
    reader = next(one for one in READERS if one._accepts(source))
    return reader._read(source, place)


def _only(names: Names) -> str:
    """The one file name that MONAI hands over."""
    if isinstance(names, str | PathLike):
        return str(names)
    if len(names) != 1:
        raise refusal(f"({names})", "one file or folder", f"{len(names)}", "give one series")
    return str(names[0])


__all__ = [
    "READERS",
    "CheckedReader",
    "DicomSeriesReader",
    "ITKFormatReader",
    "LoadImaged",
    "NiftiReader",
    "PictureReader",
    "read_raw",
]
