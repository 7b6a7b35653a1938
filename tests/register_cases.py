"""Pairs with a known rigid map, and SimpleITK's view of our images and fields."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import SimpleITK as sitk
import torch

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import (
    apply_affine,
    identity_points,
    inverse_affine,
    resample,
    rigid_matrix,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.synthesis import synthetic_patient

LPS = {2: np.diag([-1.0, -1.0, 1.0]), 3: np.diag([-1.0, -1.0, 1.0, 1.0])}


@dataclass(frozen=True)
class KnownPair:
    """Two images of one patient and the map between them.

    Attributes:
        fixed: CT.
        moving: another modality, on a lattice of its own.
        truth: moving_from_fixed, world to world.
        points: ``(n, d)`` world mm in the fixed body.
    """

    fixed: Image
    moving: Image
    truth: Matrix
    points: Matrix

    def error(self, moved: Matrix) -> float:
        """Mean distance in mm of mapped points to where they belong."""
        true = apply_affine(self.truth, self.points)
        return float(np.linalg.norm(moved - true, axis=-1).mean())

    @property
    def error_before(self) -> float:
        """Of doing nothing."""
        return self.error(self.points)

    @property
    def coarser_voxel(self) -> float:
        """Mean voxel size of the coarser image in mm."""
        sizes = [np.prod(i.spacing) ** (1 / i.spatial_dims) for i in (self.fixed, self.moving)]
        return float(max(sizes))


@cache  # a volume takes more than a second
def rigid_pair(
    seed: int = 3, *, d: int = 3, key: str = "mr", degrees: float = 10.0, mm: float = 12.0
) -> KnownPair:
    """A patient whose second image was moved by one rotation and one shift; leave it as it is."""
    patient = synthetic_patient(seed, spatial_dims=d, size="small")
    fixed, aligned = patient.case.fixed, patient.aligned[key]
    centre = apply_affine(fixed.affine, (np.asarray(fixed.shape) - 1) / 2)
    axis = np.array([0.48, -0.6, 0.64]) if d == 3 else np.array([1.0])
    push = np.array([0.6, -0.64, 0.48]) if d == 3 else np.array([0.8, -0.6])
    truth = rigid_matrix((degrees * axis).tolist(), (mm * push).tolist(), centre.tolist())
    if d == 3:  # oblique, flipped, anisotropic
        turn = rigid_matrix([6.0, -4.0, 9.0], [0.0] * 3, centre.tolist())
        affine = turn @ fixed.affine @ np.diag([-1.0, 1.1, 0.9, 1.0])
        shape = tuple(round(n * s) for n, s in zip(fixed.shape, (1.0, 0.95, 1.1), strict=True))
        affine[:3, 3] += centre - apply_affine(affine, (np.asarray(shape) - 1) / 2)
    else:
        affine, shape = fixed.affine, (fixed.shape[0] + 5, fixed.shape[1] - 4)
    voxels = torch.from_numpy(inverse_affine(aligned.affine) @ inverse_affine(truth) @ affine)
    values = resample(aligned.array[None], voxels, shape, fill=aligned.fill_value)[0]
    spread = float(values.max() - values.min())
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
    moving = Image((values + 0.01 * spread * noise).float(), affine, key, aligned.units)
    return KnownPair(fixed, moving, truth, np.asarray(patient.case.series["ct"].landmarks))


def itk_image(values: Matrix, affine: Matrix, *, vector: bool = False) -> sitk.Image:
    """Our ``(*S)`` (or RAS vectors ``(*S, d)``) on a RAS lattice as ITK's, in LPS."""
    d = len(affine) - 1
    lps = LPS[d] @ affine
    spacing = np.linalg.norm(lps[:d, :d], axis=0)
    if vector:
        values = values @ LPS[d][:d, :d]
    axes = [*reversed(range(d)), *([d] if vector else [])]
    out = sitk.GetImageFromArray(np.ascontiguousarray(values.transpose(axes)), isVector=vector)
    out.SetSpacing(spacing.tolist())
    out.SetDirection((lps[:d, :d] / spacing).flatten().tolist())
    out.SetOrigin(lps[:d, d].tolist())
    return out


def itk_field(ddf_mm: torch.Tensor, affine: Matrix) -> sitk.DisplacementFieldTransform:
    """Our ``(d, *S)`` RAS mm as ITK's transform."""
    vectors = ddf_mm.movedim(0, -1).double().numpy()
    return sitk.DisplacementFieldTransform(itk_image(vectors, affine, vector=True))


def itk_affine(matrix: Matrix) -> sitk.AffineTransform:
    """Our world-to-world matrix (RAS) as ITK's transform (LPS)."""
    d = len(matrix) - 1
    lps = LPS[d] @ matrix @ LPS[d]
    out = sitk.AffineTransform(d)
    out.SetMatrix(lps[:d, :d].flatten().tolist())
    out.SetTranslation(lps[:d, d].tolist())
    return out


def moved_blobs(spatial_dims):
    """A smooth image and the same content elsewhere, in another contrast; the true map."""
    shape = (44, 50) if spatial_dims == 2 else (30, 34, 28)
    spacing = [2.0, 2.6] if spatial_dims == 2 else [2.5, 3.0, 2.8]
    d = spatial_dims
    affine = np.diag([-spacing[0], *spacing[1:], 1.0])
    affine = rigid_matrix([25.0] if d == 2 else [10.0, -20.0, 30.0], [0.0] * d, [0.0] * d) @ affine
    affine[:d, d] = [30.0, -12.0, 8.0][:d]
    points = apply_affine(affine, identity_points(shape).numpy())
    middle = points.reshape(-1, d).mean(0)
    turn = rigid_matrix([6.0] * (1 if d == 2 else 3), [4.0, -3.0, 2.0][:d], middle)
    rng = np.random.default_rng(1)
    blobs = middle + rng.uniform(-28, 28, (14, d))
    height, width = rng.uniform(0.4, 1.0, 14), rng.uniform(5, 11, 14)

    def content(world):
        distance = ((world[..., None, :] - blobs) ** 2).sum(-1)
        return (height * np.exp(-distance / (2 * width**2))).sum(-1)

    fixed = torch.from_numpy(content(points)).float()[None]
    moving = torch.from_numpy(content(apply_affine(np.linalg.inv(turn), points))).float()[None]
    return Image(fixed, affine, "ct"), Image(1 - moving.sqrt(), affine, "mr"), turn
