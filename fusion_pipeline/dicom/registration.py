"""A registration as DICOM has it: a Spatial Registration, or a Deformable Spatial Registration."""

from collections.abc import Sequence

import numpy as np
import torch
from pydicom import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import DeformableSpatialRegistrationStorage, SpatialRegistrationStorage
from pydicom.valuerep import format_number_as_ds
from torch import Tensor

from fusion_pipeline.dicom.study import SeriesOf, Study, add_references, instance_reference
from fusion_pipeline.geometry import (
    WorldMap,
    apply_affine,
    inverse_affine,
    lps_from_ras,
    spacing_of,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.sampling import sample

_RIGHT = 1e-9  # cosine; lattices of slices along their normal are right-angled to rounding
_RIGID = 1e-6  # of a matrix; rotations that were multiplied in float64 differ by less


def registration_object(
    world_map: WorldMap, key: str, study: Study, series: SeriesOf, summary: str
) -> Dataset:
    """The object that says how the moving image lies in the reference's frame of reference.

    Convention:
        - Spatial Registration: a matrix from the moving image's LPS mm to the reference's
        - Deformable Spatial Registration: from the reference's points to the moving image's,
          ``post @ (x + d(x))``; d is 0 beyond its grid, where ours goes on with its border

    Args:
        world_map: from the reference's world to the moving image's.
        key: of the moving image.
        study: what all objects share.
        series: of modality REG.
        summary: how it was registered, in words.
    """
    deformed = bool(world_map.ddf_mm.any())
    sop_class = DeformableSpatialRegistrationStorage if deformed else SpatialRegistrationStorage
    ds = study.dataset(sop_class, series)
    ds.ContentLabel, ds.ContentDescription = "REGISTRATION", summary[:64]
    ds.ContentCreatorName = ""
    named: list[Dataset] = []
    for one in (study.reference, key):
        named += study.headers[one] if study.has_sources(one) else []
    if deformed:
        ds.DeformableRegistrationSequence = Items([_deformable(world_map, key, study)])
    else:
        flip = lps_from_ras(3)
        fixed_from_moving = flip @ inverse_affine(world_map.moving_from_fixed) @ flip
        items = [(study.reference, np.eye(4)), (key, fixed_from_moving)]
        ds.RegistrationSequence = Items([_matrix_item(one, m, study) for one, m in items])
    add_references(ds, named)
    return ds


def _images(key: str, study: Study) -> Items | None:
    """The instances of an image."""
    headers: Sequence[Dataset] = study.headers[key] if study.has_sources(key) else []
    return Items([instance_reference(one) for one in headers]) if headers else None


def _matrix_item(key: str, matrix: Matrix, study: Study) -> Dataset:
    """An item of RegistrationSequence: an image and the matrix that brings it over."""
    item, registration = Dataset(), Dataset()
    item.FrameOfReferenceUID = study.frame_of_reference(key)
    if (images := _images(key, study)) is not None:
        item.ReferencedImageSequence = images
    registration.RegistrationTypeCodeSequence = Items([])
    registration.MatrixSequence = Items([_matrix(matrix)])
    item.MatrixRegistrationSequence = Items([registration])
    return item


def _matrix(matrix: Matrix) -> Dataset:
    """A matrix and its kind."""
    item = Dataset()
    item.FrameOfReferenceTransformationMatrix = [
        format_number_as_ds(value) for value in matrix.ravel().tolist()
    ]
    turn = matrix[:3, :3]
    rigid = np.abs(turn @ turn.T - np.eye(3)).max() < _RIGID and np.linalg.det(turn) > 0
    item.FrameOfReferenceTransformationMatrixType = "RIGID" if rigid else "AFFINE"
    return item


def _deformable(world_map: WorldMap, key: str, study: Study) -> Dataset:
    """An item of DeformableRegistrationSequence."""
    flip = lps_from_ras(3)
    item = Dataset()
    item.SourceFrameOfReferenceUID = study.frame_of_reference(key)
    if (images := _images(key, study)) is not None:
        item.ReferencedImageSequence = images
    item.RegistrationTypeCodeSequence = Items([])
    item.PreDeformationMatrixRegistrationSequence = Items([_matrix(np.eye(4))])
    moving_from_fixed = flip @ world_map.moving_from_fixed @ flip
    item.PostDeformationMatrixRegistrationSequence = Items([_matrix(moving_from_fixed)])
    item.DeformableRegistrationGridSequence = Items([_grid(world_map)])
    return item


def _grid(world_map: WorldMap) -> Dataset:
    """The displacements, LPS mm, on a right-handed grid of right angles."""
    affine, ddf = _right_angled(world_map)
    if np.linalg.det(lps_from_ras(3)[:3, :3] @ affine[:3, :3]) < 0:
        mirror = np.eye(4)
        mirror[0, 0], mirror[0, 3] = -1, ddf.shape[1] - 1
        affine, ddf = affine @ mirror, ddf.flip(1)
    lps = lps_from_ras(3) @ affine
    spacing = spacing_of(lps)
    item = Dataset()
    cosines = (lps[:3, :2] / spacing[:2]).T.ravel()
    item.ImageOrientationPatient = [format_number_as_ds(value) for value in cosines.tolist()]
    item.ImagePositionPatient = [format_number_as_ds(value) for value in lps[:3, 3].tolist()]
    item.GridDimensions = list(ddf.shape[1:])
    item.GridResolution = spacing.tolist()
    vectors = ddf.double().cpu().numpy() * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    # x runs fastest, and each node has its three numbers together
    item.VectorGridData = vectors.transpose(3, 2, 1, 0).astype("<f4").tobytes()
    return item


def _right_angled(world_map: WorldMap) -> tuple[Matrix, Tensor]:
    """The working lattice, or where it is sheared (a tilted stack) one of right angles over it."""
    affine, ddf = world_map.working_affine, world_map.ddf_mm
    spacing = spacing_of(affine)
    axes = affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() < _RIGHT:
        return affine, ddf
    turn, triangle = np.linalg.qr(axes)
    turn = turn * np.sign(np.diag(triangle))
    last = np.array(ddf.shape[1:]) - 1
    corners = np.stack(np.meshgrid(*[(0, n) for n in last], indexing="ij"), -1).reshape(-1, 3)
    heights = apply_affine(affine, corners) @ turn
    low, high = heights.min(0), heights.max(0)
    shape = np.ceil((high - low) / spacing - 1e-6).astype(int) + 1
    lattice = np.eye(4)
    lattice[:3, :3], lattice[:3, 3] = turn * spacing, turn @ low
    nodes = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    voxels = apply_affine(inverse_affine(affine) @ lattice, nodes)
    return lattice, sample(ddf[None].float().cpu(), torch.from_numpy(voxels)[None].float())[0]


__all__ = ["registration_object"]
