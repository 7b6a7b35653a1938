"""Files out: NIfTI (sform and qform), ITK displacement fields, PNG; each whole or not at all."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from isal import igzip
from torch import Tensor

from fusion_pipeline.data.checks import SHEARED
from fusion_pipeline.data.image import Image, InputError
from fusion_pipeline.data.pictures import PICTURE_SUFFIXES, write_picture
from fusion_pipeline.data.refusals import one_line, quiet, refusal
from fusion_pipeline.data.volumes import NIFTI_SUFFIXES, UNITS_PREFIX
from fusion_pipeline.geometry import lps_from_ras, spacing_of
from fusion_pipeline.geometry.affines import Matrix

_VECTOR_INTENT = 1007  # NIFTI_INTENT_VECTOR
_SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Write aside, then rename: ``path`` appears only when whole.

    Yields:
        A hidden name in the same folder, with the same suffix, to write to.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    aside = path.with_name(f".{path.name.split('.')[0]}-{secrets.token_hex(4)}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def check_output_folder(path: str | Path) -> Path:
    """Refuse an output folder that cannot be written; leave nothing behind.

    Raises:
        InputError: a file stands in its place, or it cannot be written.
    """
    path = Path(path)
    place = f"output folder {path}"
    existing = path.absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise refusal(place, "a folder", f"the file {existing}", "choose another folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        came = f"one that cannot be written ({one_line(error.strerror or error)})"
        raise refusal(place, "a writable folder", came, "choose another folder") from error
    return path


def write_image(image: Image, path: str | Path, *, unit_range: bool = False) -> None:
    """Write an image: float32 NIfTI, or PNG in 2D, by the suffix of ``path``.

    Args:
        image: written as it is; units are noted in the NIfTI header. A PNG takes ``image.colour``
            if there is one, else the array.
        path: ``….nii.gz``, ``….nii`` or ``….png``.
        unit_range: PNG only: the array holds 0..1 (harmonized, fused) and is scaled to 0..255;
            else its values are grey levels.

    Raises:
        InputError: the file cannot be written.
        ValueError: another suffix, or a PNG of a volume.
    """
    path = Path(path)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        _write_png(image, path, unit_range)
        return
    array = image.array[0].detach().cpu().numpy().astype(np.float32, copy=False)
    _write_nifti(array, image.affine, path, description=f"{UNITS_PREFIX}{image.units}")


def write_colour(image: Image, path: str | Path) -> None:
    """Write ``image.colour`` as NIfTI of RGB voxels (datatype 128), or PNG, by the suffix.

    Args:
        image: with a ``colour`` ``(3, *S)`` 0..255.
        path: ``….nii.gz``, ``….nii`` or ``….png``.

    Raises:
        InputError: the file cannot be written.
        ValueError: an image without colour, another suffix, or a PNG of a volume.
    """
    if image.colour is None:
        raise ValueError(f"expected an image in colour for {path}, got one in grey")
    path = Path(path)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        _write_png(image, path, unit_range=False)
        return
    levels = image.colour.detach().cpu()
    if levels.is_floating_point():
        levels = levels.clamp(0, 255).round().to(torch.uint8)
    pixels = np.ascontiguousarray(np.moveaxis(levels.numpy(), 0, -1))
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    _write_nifti(pixels.view(rgb)[..., 0], image.affine, path)


def write_labels(labels: Image, path: str | Path) -> None:
    """Write an integer map as NIfTI (or PNG) in the smallest fitting type.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() in PICTURE_SUFFIXES:
        _write_png(labels, path, unit_range=False)
        return
    values = np.rint(labels.array[0].detach().cpu().numpy()).astype(np.int64)
    kinds: tuple[npt.DTypeLike, ...] = (np.uint8, np.int16, np.int32)
    kind = next(
        (k for k in kinds if values.min() >= np.iinfo(k).min and values.max() <= np.iinfo(k).max),
        np.float32,
    )
    _write_nifti(values.astype(kind), labels.affine, path)


def write_weights(weights: Tensor, affine: Matrix, path: str | Path) -> None:
    """Write the modalities' weights as 4D NIfTI ``(i, j, k, M)`` (k = 1 in 2D).

    Args:
        weights: ``(M, *S)``.
        affine: of the grid, RAS mm.
        path: NIfTI file.

    Raises:
        InputError: the file cannot be written.
    """
    array = weights.detach().cpu().numpy().astype(np.float32, copy=False)
    array = array if array.ndim == 4 else array[..., None]
    _write_nifti(np.moveaxis(array, 0, -1), affine, Path(path))


def write_displacement(ddf_mm: Tensor, affine: Matrix, path: str | Path) -> None:
    """Write a displacement field as ITK does.

    Convention:
        - in: RAS mm; in the file: LPS mm, ``(i, j, k, 1, 3)`` (2D: ``(i, j, 1, 1, 2)``)
        - vector intent 1007; SimpleITK, ANTs and 3D Slicer read it

    Args:
        ddf_mm: ``(d, *S)``.
        affine: of the grid, RAS mm.
        path: NIfTI file.

    Raises:
        InputError: the file cannot be written.
    """
    d = ddf_mm.shape[0]
    signs = lps_from_ras(d).diagonal()[:d].astype(np.float32).reshape(d, *[1] * d)
    array = ddf_mm.detach().cpu().numpy().astype(np.float32, copy=False)
    vectors = np.moveaxis(array * signs, 0, -1)
    shape = (*vectors.shape[:d], *[1] * (4 - d), d)
    _write_nifti(vectors.reshape(shape), affine, Path(path), intent=_VECTOR_INTENT)


def _write_png(image: Image, path: Path, unit_range: bool) -> None:
    """Grey or colour PNG."""
    if image.spatial_dims != 2:
        raise ValueError(f"expected a 2D image for {path.name}, got {image.spatial_dims}D")
    grey = (image.array * 255).clamp(0, 255) if unit_range else image.array
    with written_whole(path) as aside:
        write_picture(grey if image.colour is None else image.colour, aside)


def _write_nifti(
    array: npt.NDArray[np.generic],
    affine: Matrix,
    path: Path,
    *,
    intent: int = 0,
    description: str = "",
) -> None:
    """One NIfTI-1 file; the qform is set as well unless it could not say the same."""
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        raise ValueError(f"expected a path ending in .nii or .nii.gz, got {path}")
    world = _world_affine(affine)
    image = nib.Nifti1Image(array, None)
    image.header.set_data_dtype(array.dtype)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("latin-1", "replace")[:79]
    image.header["intent_code"] = intent
    axes = world[:3, :3] / spacing_of(world)
    orthogonal = np.abs(axes.T @ axes - np.eye(3)).max() < SHEARED
    image.header.set_sform(world, code=_SCANNER)
    image.header.set_qform(world, code=_SCANNER if orthogonal else 0)
    with quiet(), written_whole(path) as aside:
        out = nib.Nifti1Image(array, None, image.header)
        with aside.open("wb") as plain, _packed(plain, path) as stream:
            out.to_stream(stream)


def _packed(file: IO[bytes], path: Path) -> AbstractContextManager[IO[bytes]]:
    """The file to write to, packed where its name says so; the same input gives the same bytes."""
    if path.suffix.lower() != ".gz":
        return nullcontext(file)
    return cast(
        "AbstractContextManager[IO[bytes]]", igzip.IGzipFile("", "wb", fileobj=file, mtime=0)
    )


def _world_affine(affine: Matrix) -> Matrix:
    """The 4 x 4 affine of a NIfTI header: a 2D grid lies in the plane z = 0."""
    if affine.shape == (4, 4):
        return affine
    world = np.eye(4)
    world[np.ix_([0, 1, 3], [0, 1, 3])] = affine
    return world


def _unwritable(path: Path, error: OSError) -> InputError:
    """The refusal of an output file."""
    came = f"an error ({one_line(error.strerror or error)})"
    advice = "check permissions and free space"
    return refusal(f"output {path}", "a file that can be written", came, advice)


__all__ = [
    "check_output_folder",
    "write_displacement",
    "write_image",
    "write_labels",
    "write_weights",
    "written_whole",
]
