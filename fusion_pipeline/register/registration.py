"""What the register stage hands on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image, TransformKind
from fusion_pipeline.geometry import apply_affine, inverse_affine, sample
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

    def _dense(
        self, fixed: Image, target_from_moving: Matrix, minus: Matrix | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """``target_from_moving @ φ(x)``, less ``minus @ x``, at the voxels of an image.

        Args:
            fixed: the image.
            target_from_moving: ``(d + 1, d + 1)``, from the moving world in mm.
            minus: ``(d + 1, d + 1)``, from the fixed world in mm; nothing by default.

        Yields:
            Start, stop and values ``(d, stop - start, *S[1:])`` float32 of runs along the first
            axis, so that memory stays bounded.
        """
        shape, d = fixed.shape, fixed.spatial_dims
        target_from_fixed = target_from_moving @ self.moving_from_fixed
        affine = (target_from_fixed - (0 if minus is None else minus)) @ fixed.affine
        turn = torch.from_numpy(target_from_fixed[:d, :d]).float()
        lattice_from_voxels = inverse_affine(self.working_affine) @ fixed.affine
        deformed = bool(self.ddf_mm.any())
        thickness = max(1, _SLAB_VOXELS // max(1, int(np.prod(shape[1:]))))
        for start in range(0, shape[0], thickness):
            stop = min(start + thickness, shape[0])
            run = (stop - start, *shape[1:])
            out = _affine_grid(affine, run, start)
            if deformed:
                points = _affine_grid(lattice_from_voxels, run, start).movedim(0, -1)
                shift = sample(self.ddf_mm[None].float(), points[None])[0]
                out += torch.einsum("ij,j...->i...", turn, shift)
            yield start, stop, out

    def displacement_mm(self, fixed: Image) -> Tensor:
        """The whole mapping as a displacement on the fixed image's native grid.

        Args:
            fixed: the reference image.

        Returns:
            ``(d, *S)`` float32, RAS mm: ``φ(x) − x``.
        """
        out = torch.empty((fixed.spatial_dims, *fixed.shape))
        identity = np.eye(fixed.spatial_dims + 1)
        for start, stop, moved in self._dense(fixed, identity, minus=identity):
            out[:, start:stop] = moved
        return out

    def warp(self, moving: Image, fixed: Image, *, nearest: bool = False) -> Image:
        """Bring the moving image to the fixed image's native grid, in one interpolation.

        Args:
            moving: the image in its original units.
            fixed: the image whose grid is wanted.
            nearest: for labels and masks.

        Returns:
            The moving image with the fixed image's shape and affine; ``moving.fill_value`` outside.
        """
        array = torch.empty((1, *fixed.shape))
        colour = None if moving.colour is None else torch.empty((3, *fixed.shape))
        for start, stop, voxels in self._dense(fixed, inverse_affine(moving.affine)):
            points = voxels.movedim(0, -1)[None]
            for source, target in ((moving.array, array), (moving.colour, colour)):
                if source is not None and target is not None:
                    target[:, start:stop] = sample(
                        source[None].float(),
                        points,
                        mode="nearest" if nearest else "bilinear",
                        fill=moving.fill_value,
                    )[0]
        return moving.with_array(array, affine=fixed.affine, colour=colour)


def _affine_grid(matrix: Matrix, shape: Sequence[int], start: int) -> Tensor:
    """An affine of the voxels of a lattice, ``(d, *shape)`` float32, the first axis from ``start``.

    The terms of the axes are made in float64 and added in float32.
    """
    d = len(shape)
    rows = []
    for row in matrix[:d]:
        total = torch.zeros(shape)
        for axis, n in enumerate(shape):
            along = row[axis] * (np.arange(n) + (start if axis == 0 else 0))
            if axis == 0:
                along = along + row[d]
            total += (
                torch.from_numpy(along).float().view([-1 if a == axis else 1 for a in range(d)])
            )
        rows.append(total)
    return torch.stack(rows)
