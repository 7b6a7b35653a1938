"""NIfTI by nibabel; NRRD and MetaImage by ITK: native grid, exact affine, RAS+ mm."""

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError

from fusion_pipeline.data.checks import Array, RawImage, slope_notes
from fusion_pipeline.data.image import InputError
from fusion_pipeline.data.itk_text import ItkText, itk_fields, read_itk_text
from fusion_pipeline.data.nifti_header import (
    NIFTI2_BYTES,
    believed_mm,
    header_size,
    is_packed,
    nifti_affine,
    opened,
    plane_affine,
    size_notes,
    value_notes,
)
from fusion_pipeline.data.refusals import (
    MEMORY_ADVICE,
    READ_ERRORS,
    is_memory_error,
    muted,
    one_line,
    quiet,
    refusal,
)
from fusion_pipeline.data.sources import itk_affine
from fusion_pipeline.data.stored_voxels import (
    check_no_more,
    check_type,
    drained,
    in_c_order,
    read_voxels,
)
from fusion_pipeline.geometry import lps_from_ras
from fusion_pipeline.geometry.affines import Matrix

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_ITK_IO = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
ITK_SUFFIXES = tuple(_ITK_IO)

UNITS_PREFIX = "units="  # how `write_image` notes the units in the NIfTI header's `descrip`
_OFFSET_ADVICE = "correct it in the header (352 in NIfTI-1, 544 in NIfTI-2)"
_BY_ITK = re.compile(r"ERROR: \w+\(0x\w+\): (.*)", re.DOTALL)


def read_nifti(path: Path, place: str) -> RawImage:
    """Read a NIfTI-1 or NIfTI-2 scalar image of 2 or 3 axes (a trailing axis of 1 is dropped).

    Raises:
        InputError: not such a file, or not such an image.
    """
    with quiet():
        image = _open_nifti(path, place)
        if is_packed(path):  # read to its end, where its checksum is
            raw, extra = _unpacked_values(path, type(image), place)
        else:
            raw, extra = nifti_values(image, place), path.stat().st_size - _end(image)
        check_no_more(extra, raw.array.shape, image.get_data_dtype().itemsize, place)
        raw.warnings.extend(size_notes(path, raw.array.ndim, place))
        return raw


def _unpacked_values(path: Path, kind: type[nib.Nifti1Pair], place: str) -> tuple[RawImage, int]:
    """What a gzip file holds, and how many bytes are behind its voxels."""
    try:
        with opened(path) as file:
            raw = nifti_values(kind.from_stream(file), place)
            return raw, drained(file)
    except READ_ERRORS as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(place, "a whole NIfTI file", error) from error


def _end(image: nib.Nifti1Pair) -> int:
    """The byte behind the voxels."""
    size = math.prod(image.shape) * image.get_data_dtype().itemsize
    return int(image.dataobj.offset) + int(size)


def nifti_values(image: nib.Nifti1Pair, place: str) -> RawImage:
    """What `read_nifti` gives, of an image that nibabel has opened.

    Raises:
        InputError: not such an image.
    """
    with quiet():
        _check_scalar(image.get_data_dtype(), place)
        shape = _spatial_shape(tuple(image.shape), place)
        affine, messages = nifti_affine(image.header, shape, place)
        try:
            with np.errstate(all="ignore"):
                array = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(shape)
        except READ_ERRORS as error:
            raise _unreadable(place, "a whole NIfTI file", error) from error
    if _is_unscaled(image):
        check_type(array, image.get_data_dtype(), place)
    messages += value_notes(image, place)
    if len(shape) == 2:
        affine = plane_affine(affine, place)
    return RawImage(in_c_order(array), affine, _noted_units(image.header), warnings=messages)


def _is_unscaled(image: nib.Nifti1Pair) -> bool:
    """The values are those that are stored."""
    scale = getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)
    return scale == (1.0, 0.0)


def read_itk(path: Path, place: str) -> RawImage:
    """Read an NRRD or MetaImage scalar image of 2 or 3 axes, by MONAI's ``ITKReader``.

    ``itk`` is imported here, on the first such file: that costs more than all other imports.

    Raises:
        InputError: not such a file, or not such an image.
    """
    with quiet():
        header = _read_by_monai(path, place)
    array = header["array"]
    text = read_itk_text(path, array.ndim, place, header["fields"])
    shape = _spatial_shape(array.shape, place)
    affine = np.asarray(header["affine"], dtype=np.float64)
    affine, messages = _itk_affine_in_mm(affine, text, shape, place)
    messages += header["notes"]
    values = in_c_order(array.reshape(shape))
    if (text.slope, text.offset) != (1.0, 0.0):
        values = values * np.float32(text.slope) + np.float32(text.offset)
    messages += slope_notes(text.slope, place)
    return RawImage(values, affine, warnings=messages, dicom_modality=text.modality)


def _itk_affine_in_mm(
    affine: Matrix, text: ItkText, shape: tuple[int, ...], place: str
) -> tuple[Matrix, list[str]]:
    """An ITK image's affine in mm, of as many axes as are left, and what is to be said of it."""
    spatial = [*range(min(3, len(affine) - 1)), -1]  # an axis of time or volumes is beyond
    affine = affine[np.ix_(spatial, spatial)]
    matrix, scaled = believed_mm(affine, text.scaled(affine), text.unit, place)
    messages = [*text.messages, *scaled]
    if len(shape) == len(matrix) - 1:
        return matrix, messages
    return plane_affine(matrix, place), messages


def _read_by_monai(path: Path, place: str) -> dict[str, Any]:
    """MONAI's header of the file, and the values under ``array``.

    Most voxels are read and checked here; ITK reads the rest.
    """
    try:
        with muted():
            import itk
            from monai.data import ITKReader

            # ITK itself knows names in lower case only
            imageio = getattr(itk, _ITK_IO[path.suffix.lower()]).New(FileName=str(path))
            imageio.ReadImageInformation()
            fields, start = itk_fields(path)
            _check_one_component(imageio, place)
            d = imageio.GetNumberOfDimensions()
            shape = tuple(imageio.GetDimensions(axis) for axis in range(d))
            stored = read_voxels(path, fields, start, shape, _itk_dtype(imageio, fields), place)
            if stored is None:
                reader = ITKReader()
                array, header = reader.get_data(reader.read(str(path), imageio=imageio))
            else:
                array, header = stored.array, {"affine": _itk_io_affine(imageio, d)}
    except InputError:
        raise
    except READ_ERRORS as error:
        raise _unreadable(place, "an NRRD or MetaImage file", error) from error
    notes = [] if stored is None else stored.notes
    return {**header, "array": array, "fields": fields, "notes": notes}


def _check_one_component(imageio: Any, place: str) -> None:  # noqa: ANN401 - of itk, untyped
    """Refuse vectors, colour and complex voxels."""
    components = imageio.GetNumberOfComponents()
    pixel = imageio.GetPixelTypeAsString(imageio.GetPixelType())
    if components == 1 and pixel == "scalar":
        return
    kind = imageio.GetComponentTypeAsString(imageio.GetComponentType())
    came = f"{components} components of {kind}" if components > 1 else f"a {pixel} of one {kind}"
    raise refusal(place, "one real value per voxel", came, "convert it to a scalar image")


def _itk_dtype(imageio: Any, fields: Mapping[str, str]) -> np.dtype[Any]:  # noqa: ANN401
    """Of a voxel as an NRRD or a MetaImage stores it."""
    kind = imageio.GetComponentTypeAsString(imageio.GetComponentType())
    letter = "f" if kind in ("float", "double") else "u" if kind.startswith("unsigned") else "i"
    names = ("endian", "binarydatabyteordermsb", "elementbyteordermsb")
    order = next((fields[name].lower() for name in names if name in fields), "")
    big = order.startswith(("b", "t", "1"))  # big, True
    return np.dtype(f"{'>' if big else '<'}{letter}{imageio.GetComponentSize()}")


def _itk_io_affine(imageio: Any, d: int) -> Matrix:  # noqa: ANN401
    """World_from_voxel ``(d + 1, d + 1)``, RAS, of a header that ITK has read."""
    lps = np.eye(d + 1)
    for axis in range(d):
        lps[:d, axis] = np.asarray(imageio.GetDirection(axis)) * imageio.GetSpacing(axis)
        lps[axis, d] = imageio.GetOrigin(axis)
    return lps_from_ras(d) @ lps


def read_vectors(path: Path, place: str) -> tuple[Array, Matrix]:
    """Read an ITK displacement field.

    Returns:
        Vectors ``(d, *S)`` in RAS mm and the grid's affine.

    Raises:
        InputError: not an image of d-vectors on d axes.
    """
    with quiet():
        vectors, affine = (
            _nifti_vectors(path, place)
            if path.name.lower().endswith(NIFTI_SUFFIXES)
            else _itk_vectors(path, place)
        )
    d = vectors.shape[0]
    signs = lps_from_ras(d).diagonal()[:d].astype(np.float32)
    return in_c_order(vectors * signs.reshape(d, *[1] * d)), affine


@dataclass(frozen=True)
class VolumeHeader:
    """What a header says.

    Attributes:
        affine: ``(d + 1, d + 1)`` float64, world_from_voxel, RAS+ mm.
        shape: spatial shape.
        components: values per voxel.
        bytes: of the whole file, unpacked; 0 where the header does not tell.
    """

    affine: Matrix
    shape: tuple[int, ...]
    components: int = 1
    bytes: int = 0


def read_nifti_header(path: Path, place: str, *, vectors: bool = False) -> VolumeHeader:
    """Read the header of a NIfTI file alone.

    Args:
        path: the file.
        place: its name in messages.
        vectors: a displacement field is expected; else one real value per voxel.

    Raises:
        InputError: not such a file, or not such an image.
    """
    with quiet():
        image = _open_nifti(path, place)
        _check_scalar(image.get_data_dtype(), place)
        whole = tuple(int(n) for n in image.shape)
        shape = _field_shape(whole, place) if vectors else _spatial_shape(whole, place)
        affine, _ = nifti_affine(image.header, shape, place)
        if len(shape) == 2:
            affine = plane_affine(affine, place)
        return VolumeHeader(affine, shape, bytes=_end(image))


def read_itk_header(path: Path, place: str, *, vectors: bool = False) -> VolumeHeader:
    """Read the header of an NRRD or MetaImage file (or another of ITK's) alone.

    Args:
        path: the file.
        place: its name in messages.
        vectors: a displacement field is expected.

    Raises:
        InputError: not such a file, or not such an image.
    """
    with quiet():
        reader = _itk_reader(path)
        try:
            with muted():
                reader.ReadImageInformation()
            fields, _ = itk_fields(path)
        except READ_ERRORS as error:
            raise _unreadable(place, "an NRRD or MetaImage file", error) from error
    d, components = reader.GetDimension(), reader.GetNumberOfComponents()
    if vectors and components != d:
        raise _no_field(place, f"{components} components on {d} axes")
    lps = np.eye(d + 1)
    lps[:d, :d] = np.reshape(reader.GetDirection(), (d, d)) * np.asarray(reader.GetSpacing())
    lps[:d, d] = reader.GetOrigin()
    shape = _spatial_shape(reader.GetSize(), place)
    text = read_itk_text(path, d, place, fields)
    affine, _ = _itk_affine_in_mm(lps_from_ras(d) @ lps, text, shape, place)
    return VolumeHeader(affine, shape, components)


def header_dims(path: Path, place: str) -> int:
    """Number of spatial axes, 2 or 3, from the header alone."""
    with quiet():
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            return len(_spatial_shape(tuple(_open_nifti(path, place).shape), place))
        reader = _itk_reader(path)
        try:
            with muted():
                reader.ReadImageInformation()
        except READ_ERRORS as error:
            raise _unreadable(place, "an NRRD or MetaImage file", error) from error
        return len(_spatial_shape(reader.GetSize(), place))


def _open_nifti(path: Path, place: str) -> nib.Nifti1Pair:
    """Open a NIfTI file, its data still on disk; gzip or not by its first bytes."""
    try:
        size = header_size(path)
        if size == 0 or is_packed(path) == path.name.lower().endswith(".gz"):
            image = nib.load(path)
        else:
            kind = nib.Nifti2Image if size == NIFTI2_BYTES else nib.Nifti1Image
            with opened(path) as file:
                image = kind.from_stream(io.BytesIO(file.read()))
    except READ_ERRORS as error:
        raise _unreadable(place, "a NIfTI file", error) from error
    if not isinstance(image, nib.Nifti1Pair):
        raise refusal(place, "a NIfTI file", type(image).__name__, "convert it to NIfTI")
    if isinstance(image, nib.Nifti1Image) and image.dataobj.offset < size:
        came = f"a vox_offset of {image.dataobj.offset}"  # nibabel would read the header as voxels
        raise refusal(place, f"voxels after the {size} bytes of the header", came, _OFFSET_ADVICE)
    return image


def _check_scalar(dtype: np.dtype[Any], place: str) -> None:
    """Refuse colour and complex voxels."""
    if dtype.fields or dtype.kind not in "iuf":
        kind = "RGB" if dtype.fields else str(dtype)
        raise refusal(
            place, "one real value per voxel", f"{kind} voxels", "convert it to a scalar image"
        )


def _spatial_shape(shape: tuple[int, ...], place: str) -> tuple[int, ...]:
    """Drop trailing axes of 1: one slice is a 2D image; refuse what is not 2D or 3D."""
    spatial = shape
    while len(spatial) > 2 and spatial[-1] == 1:
        spatial = spatial[:-1]
    if min(spatial) < 1:
        came = f"the shape {'x'.join(map(str, shape))}"
        raise refusal(place, "sizes above 0 in the header", came, "correct its header")
    if len(spatial) not in (2, 3):
        came = f"{len(spatial)} axes, shape {'x'.join(map(str, shape))}"
        raise refusal(place, "a 3D volume (or a 2D image)", came, "extract one volume of it")
    return tuple(int(n) for n in spatial)


def _noted_units(header: nib.Nifti1Header) -> str:
    """The units that our own writer notes in the header."""
    text = bytes(header["descrip"].tobytes()).split(b"\0")[0].decode("latin-1")
    return text.removeprefix(UNITS_PREFIX) if text.startswith(UNITS_PREFIX) else ""


def _read_sitk(path: Path, place: str) -> sitk.Image:
    """Read by SimpleITK."""
    try:
        with muted():
            return _itk_reader(path).Execute()
    except READ_ERRORS as error:
        raise _unreadable(place, "an NRRD or MetaImage file", error) from error


def _itk_reader(path: Path) -> sitk.ImageFileReader:
    """A reader of the format that the name says; ITK itself knows names in lower case only."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if path.suffix.lower() in _ITK_IO:
        reader.SetImageIO(_ITK_IO[path.suffix.lower()])
    return reader


def _nifti_vectors(path: Path, place: str) -> tuple[Array, Matrix]:
    """LPS vectors ``(d, *S)`` of a NIfTI file laid out as ITK does: ``(i, j, k, 1, d)``."""
    image = _open_nifti(path, place)
    grid = _field_shape(tuple(image.shape), place)
    d = len(grid)
    affine, _ = nifti_affine(image.header, grid, place)
    try:
        array = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(*grid, d)
    except READ_ERRORS as error:
        raise _unreadable(place, "a whole NIfTI file", error) from error
    return np.moveaxis(array, -1, 0), affine if d == 3 else plane_affine(affine, place)


def _field_shape(shape: tuple[int, ...], place: str) -> tuple[int, ...]:
    """Spatial shape of a displacement field laid out ``(i, j, k, 1, d)``."""
    d = shape[4] if len(shape) == 5 else 0
    if d not in (2, 3) or shape[3] != 1 or (d == 2 and shape[2] != 1):
        raise _no_field(place, f"shape {'x'.join(map(str, shape))}")
    return tuple(int(n) for n in shape[:d])


def _itk_vectors(path: Path, place: str) -> tuple[Array, Matrix]:
    """LPS vectors ``(d, *S)`` of any file that ITK reads as a vector image."""
    image = _read_sitk(path, place)
    d = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() != d:
        raise _no_field(place, f"{image.GetNumberOfComponentsPerPixel()} components on {d} axes")
    array = np.moveaxis(sitk.GetArrayFromImage(image), -1, 0)
    return array.transpose(0, *range(d, 0, -1)), itk_affine(image)


def _no_field(place: str, came: str) -> InputError:
    """The refusal of an image that is no displacement field."""
    return refusal(
        place,
        "a displacement field as ITK writes it (i, j, k, 1, 3 in NIfTI)",
        came,
        "write it with SimpleITK or ANTs",
    )


def _unreadable(place: str, expected: str, error: BaseException) -> InputError:
    """The refusal of a file that its library cannot read."""
    if isinstance(error, FileNotFoundError):
        return refusal(place, expected, "no such file", "check the path")
    if is_memory_error(error):
        came = "a header that asks for more memory than is free, and may be damaged"
        return refusal(place, expected, came, MEMORY_ADVICE)
    if "w2 should be positive" in str(error):  # nibabel, of b, c and d of the qform
        came = "a qform whose quaternion is no rotation, and no sform"
        return refusal(place, expected, came, "correct its header")
    came = f"one that cannot be read ({_reason(error)})"
    advice = "the file may be truncated or of another format"
    if isinstance(error, HeaderDataError):
        advice = "correct its header"
    return refusal(place, expected, came, advice)


def _reason(error: BaseException) -> str:
    """What a library says of a file, without names of its functions and addresses in memory.

    >>> _reason(RuntimeError("x.cxx:9: ITK ERROR: NrrdImageIO(0x5): [nrrd] _read: no endian"))
    'no endian'
    """
    by_itk = _BY_ITK.search(str(error))
    text = by_itk[1].rpartition("[nrrd] ")[2] if by_itk else str(error)
    text = re.sub(r"^(?:\s*_?[A-Za-z]\w*:\s)+", "", text)  # functions
    text = re.sub(r"^Error -\d+ ", "", text)  # isal's
    if "cannot be read" in text:  # MetaIO, with an errno of something else behind it
        text = "its voxels are missing or too few"
    return one_line(text) or type(error).__name__


__all__ = [
    "ITK_SUFFIXES",
    "NIFTI_SUFFIXES",
    "UNITS_PREFIX",
    "VolumeHeader",
    "header_dims",
    "nifti_values",
    "read_itk",
    "read_itk_header",
    "read_nifti",
    "read_nifti_header",
    "read_vectors",
]
