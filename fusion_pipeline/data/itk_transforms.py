"""A map of worlds as an ITK composite transform: 3D Slicer, ANTs and SimpleITK open it."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from fusion_pipeline.data.refusals import READ_ERRORS, one_line, refusal
from fusion_pipeline.data.sources import itk_affine
from fusion_pipeline.data.writing import written_whole
from fusion_pipeline.geometry import WorldMap, lps_from_ras
from fusion_pipeline.geometry.affines import Matrix

TRANSFORM_SUFFIX = ".h5"


def write_transform(world_map: WorldMap, path: str | Path) -> None:
    """Write a map as ITK does: points of the fixed image to points of the moving one, LPS mm.

    The file holds an affine and, before it, the displacement field of the working lattice.
    SimpleITK's ``Resample(moving, fixed, transform)`` with it gives the registered image.

    Convention:
        - beyond its lattice ITK's displacement field is zero; ours goes on with its border
        - displacements are rounded to 1/1024 of the lattice's spacing, which packs well

    Args:
        world_map: an affine after a deformation.
        path: ends in ``.h5``.

    Raises:
        InputError: the file cannot be written.
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix != TRANSFORM_SUFFIX:
        raise ValueError(f"expected a path ending in {TRANSFORM_SUFFIX}, got {path}")
    composite = sitk.CompositeTransform(world_map.spatial_dims)
    # ITK applies what was added last first
    composite.AddTransform(_affine(world_map.moving_from_fixed))
    if bool(world_map.ddf_mm.any()):
        composite.AddTransform(_displacement(world_map))
    with written_whole(path) as whole:
        plain = whole.with_suffix(".plain" + TRANSFORM_SUFFIX)
        try:
            sitk.WriteTransform(composite, str(plain))
            _pack(plain, whole)
        finally:
            plain.unlink(missing_ok=True)


def read_transform(path: str | Path, *, place: str = "") -> WorldMap:
    """The map that `write_transform` wrote, or any affine or rigid transform of ITK.

    Args:
        path: ``.h5``, or for an affine also ``.tfm``, ``.txt`` or ``.mat``.
        place: its name in messages.

    Raises:
        InputError: no transform, or one of another structure.
    """
    place = place or f"transform ({path})"
    if not Path(path).is_file():  # HDF5 would write a page of its own
        raise refusal(place, "an ITK transform", "no such file", "check the path")
    try:
        transform = sitk.ReadTransform(str(path))
    except READ_ERRORS as error:
        raise refusal(place, "an ITK transform", one_line(error), "check the file") from error
    d = transform.GetDimension()
    parts = _parts(transform)
    deformation = None
    if parts and parts[-1].GetTransformEnum() == sitk.sitkDisplacementField:
        deformation = sitk.DisplacementFieldTransform(parts.pop())
    if not all(part.IsLinear() for part in parts):
        came = " after ".join(part.GetName() for part in _parts(transform))
        advice = "resample it to a displacement field first"
        raise refusal(place, "affines after at most one displacement field", came, advice)
    matrix = np.eye(d + 1)
    for part in reversed(parts):
        matrix = _matrix(part) @ matrix
    flip = lps_from_ras(d)
    moving_from_fixed = flip @ matrix @ flip
    if deformation is None:
        nothing = torch.zeros(d, *[2] * d)
        return WorldMap(moving_from_fixed, nothing, np.eye(d + 1))
    field = deformation.GetDisplacementField()
    return WorldMap(moving_from_fixed, _vectors(field), itk_affine(field))


def _parts(transform: sitk.Transform) -> list[sitk.Transform]:
    """The transforms of a composite in the order in which they were added."""
    if transform.GetTransformEnum() != sitk.sitkComposite:
        return [transform]
    composite = sitk.CompositeTransform(transform)
    parts = [composite.GetNthTransform(k) for k in range(composite.GetNumberOfTransforms())]
    return [part for one in parts for part in _parts(one)]


def _matrix(linear: sitk.Transform) -> Matrix:
    """Of any linear transform, by what it does to points."""
    d = linear.GetDimension()
    origin = np.array(linear.TransformPoint([0.0] * d))
    matrix = np.eye(d + 1)
    for axis, unit in enumerate(np.eye(d).tolist()):
        matrix[:d, axis] = np.array(linear.TransformPoint(unit)) - origin
    matrix[:d, d] = origin
    return matrix


def _affine(moving_from_fixed: Matrix) -> sitk.AffineTransform:
    """The affine in LPS mm."""
    d = len(moving_from_fixed) - 1
    flip = lps_from_ras(d)
    matrix = flip @ moving_from_fixed @ flip
    affine = sitk.AffineTransform(d)
    affine.SetMatrix(matrix[:d, :d].ravel().tolist())
    affine.SetTranslation(matrix[:d, d].tolist())
    return affine


def _displacement(world_map: WorldMap) -> sitk.DisplacementFieldTransform:
    """The deformation as ITK has it."""
    d = world_map.spatial_dims
    world = lps_from_ras(d) @ world_map.working_affine
    spacing = np.linalg.norm(world[:d, :d], axis=0)
    step = float(spacing.min()) / 1024
    vectors = np.round(world_map.ddf_mm.double().cpu().numpy() / step) * step
    vectors *= lps_from_ras(d).diagonal()[:d].reshape(d, *[1] * d)
    # SimpleITK's arrays run (k, j, i)
    image = sitk.GetImageFromArray(np.ascontiguousarray(vectors.T), isVector=True)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(world[:d, d].tolist())
    image.SetDirection((world[:d, :d] / spacing).ravel().tolist())
    return sitk.DisplacementFieldTransform(image)


def _vectors(field: sitk.Image) -> Tensor:
    """``(d, *S)`` float32 RAS mm."""
    d = field.GetDimension()
    vectors = sitk.GetArrayFromImage(field).T
    signs = lps_from_ras(d).diagonal()[:d].reshape(d, *[1] * d)
    return torch.from_numpy(np.ascontiguousarray(vectors * signs, dtype=np.float32))


def _pack(plain: Path, packed: Path) -> None:
    """The same HDF5 file with its long arrays compressed, which SimpleITK's writer cannot."""
    with h5py.File(plain) as source, h5py.File(packed, "w") as target:

        def copy(name: str, item: Any) -> None:  # noqa: ANN401 - a group or a dataset
            if isinstance(item, h5py.Group):
                target.require_group(name)
                return
            long = item.ndim == 1 and item.dtype.kind == "f"
            settings = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            # made anew, not copied: without times, so that equal results have equal bytes
            target.create_dataset(
                name, data=item[()], dtype=item.dtype, **(settings if long else {})
            )

        source.visititems(copy)


__all__ = ["TRANSFORM_SUFFIX", "read_transform", "write_transform"]
