"""What the register stage hands on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image, TransformKind
from fusion_pipeline.geometry import apply_affine, identity_points, inverse_affine, sample
from fusion_pipeline.geometry.affines import Matrix

_SLAB_VOXELS = 4_000_000


@dataclass(frozen=True)
class Registration:
    """The mapping from the reference's world to a moving image's world.

    ``φ(x) = moving_from_fixed @ (x + d(x))``: the deformation comes first, the affine after it.

    Convention:
        - direction: pull-back; a point of the fixed world goes to the point of the moving world
          whose intensity belongs there
        - unit: world mm, RAS+

    Attributes:
        moving_from_fixed: ``(d + 1, d + 1)`` world to world, rigid or affine.
        ddf_mm: ``(d, *W)`` deformation d on the working lattice; zeros where none was kept.
        working_affine: ``(d + 1, d + 1)`` world_from_voxel of the working lattice.
        transform: how far the registration went: none, rigid, affine or deformable.
        ok: False when the result is probably wrong.
        reason: why it is not ok, or what was kept back and why; may be empty.
        similarity_before: name → value: ``nmi`` (1..2, higher is better), ``mind`` (0..1, lower is
            better) and ``overlap``, the share (0..1) of the reference's body where both images are
            data: there the other two are measured.
        similarity_after: the same names.
        folded_fraction: share of voxels with a Jacobian determinant ≤ 0.
        error_mm: estimated mean remaining error in mm; NaN when there is no estimate.
        error_map_mm: ``(*W)`` the same per voxel of the working lattice, or None.
        details: other numbers worth keeping in the report.
    """

    moving_from_fixed: Matrix
    ddf_mm: Tensor
    working_affine: Matrix
    transform: TransformKind
    ok: bool = True
    reason: str = ""
    similarity_before: Mapping[str, float] = field(default_factory=dict)
    similarity_after: Mapping[str, float] = field(default_factory=dict)
    folded_fraction: float = 0.0
    error_mm: float = float("nan")
    error_map_mm: Tensor | None = None
    details: Mapping[str, float | str] = field(default_factory=dict)

    def moving_points(self, fixed_points: Sequence[float] | Matrix) -> Matrix:
        """Map points of the fixed world to the moving world.

        Args:
            fixed_points: ``(..., d)`` RAS mm.

        Returns:
            ``(..., d)`` RAS mm, float64.
        """
        points = np.asarray(fixed_points, dtype=np.float64)
        voxels = apply_affine(inverse_affine(self.working_affine), points)
        d = points.shape[-1]
        flat = torch.from_numpy(voxels.reshape(1, -1, d)).float()
        shift = sample(self.ddf_mm[None].float(), flat)[0].T.double().numpy()
        return apply_affine(self.moving_from_fixed, points + shift.reshape(points.shape))

    def displacement_mm(self, fixed: Image) -> Tensor:
        """The whole mapping as a displacement on the fixed image's native grid.

        Args:
            fixed: the reference image.

        Returns:
            ``(d, *S)`` float32, RAS mm: ``φ(x) − x``.
        """
        out = torch.empty((fixed.spatial_dims, *fixed.shape))
        for start, stop, world in _slabs(fixed):
            out[:, start:stop] = torch.from_numpy(self.moving_points(world) - world).movedim(-1, 0)
        return out

    def warp(self, moving: Image, fixed: Image, *, nearest: bool = False) -> Image:
        """Bring the moving image to the fixed image's native grid, in one interpolation.

        Args:
            moving: the image in its original units.
            fixed: the image whose grid is wanted.
            nearest: for labels and masks.

        Returns:
            The moving image with the fixed image's shape and affine; ``moving.outside`` outside.
        """
        array = torch.empty((1, *fixed.shape))
        colour = None if moving.colour is None else torch.empty((3, *fixed.shape))
        moving_from_world = inverse_affine(moving.affine)
        for start, stop, world in _slabs(fixed):
            voxels = apply_affine(moving_from_world, self.moving_points(world))
            points = torch.from_numpy(voxels)[None]
            for source, target in ((moving.array, array), (moving.colour, colour)):
                if source is not None and target is not None:
                    target[:, start:stop] = sample(
                        source[None].float(),
                        points,
                        mode="nearest" if nearest else "bilinear",
                        fill=moving.outside,
                    )[0]
        return moving.with_array(array, affine=fixed.affine, colour=colour)


def _slabs(fixed: Image) -> Iterator[tuple[int, int, Matrix]]:
    """Runs of the first axis with their world coordinates, so that memory stays bounded."""
    thickness = max(1, _SLAB_VOXELS // max(1, int(np.prod(fixed.shape[1:]))))
    for start in range(0, fixed.shape[0], thickness):
        stop = min(start + thickness, fixed.shape[0])
        voxels = identity_points((stop - start, *fixed.shape[1:]), dtype=torch.float64).numpy()
        voxels[..., 0] += start
        yield start, stop, apply_affine(fixed.affine, voxels)
