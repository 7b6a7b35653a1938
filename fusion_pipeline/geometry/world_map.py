"""`WorldMap`: from the fixed image's world to a moving image's, an affine after a deformation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.geometry.affines import Matrix, apply_affine, inverse_affine
from fusion_pipeline.geometry.parts import PART_VOXELS
from fusion_pipeline.geometry.sampling import Mode, sample, sample_along_axes

# of the iteration that inverts: slopes of the deformation up to 1.85 converge, without it below 1
_DAMPING = 0.7  # share of each step; 2 / 0.7 - 1 = 1.85
_ITERATIONS = 200  # a contraction of 0.95 a step, near that limit, falls from 3 mm below 1e-4 mm
_FINEST_INVERSE = 3  # nodes for one of the deformation's: 27 times the time and memory
_CHECKED_POINTS = 10_000
_INVERTED_MM = 1e-4  # a hundredth of the finest voxel that is read


@dataclass(frozen=True)
class WorldMap:
    """The mapping from the fixed image's world to a moving image's world.

    ``φ(x) = moving_from_fixed @ (x + d(x))``: the deformation comes first, the affine after it.

    Convention:
        - direction: pull-back; a point of the fixed world goes to the point of the moving world
          whose intensity belongs there
        - unit: world mm, RAS+
        - outside: beyond its lattice the deformation goes on with the value of its border

    Attributes:
        moving_from_fixed: ``(d + 1, d + 1)`` world to world, rigid or affine.
        ddf_mm: ``(d, *W)`` deformation d on the working lattice, mm; zeros where there is none.
        working_affine: ``(d + 1, d + 1)`` world_from_voxel of the working lattice.
    """

    moving_from_fixed: Matrix
    ddf_mm: Tensor
    working_affine: Matrix

    @classmethod
    def identity(cls, spatial_dims: int) -> "WorldMap":
        """The map that moves nothing.

        Args:
            spatial_dims: 2 or 3.

        >>> WorldMap.identity(2).points([3.0, 4.0]).tolist()
        [3.0, 4.0]
        """
        eye = np.eye(spatial_dims + 1)
        return cls(eye, torch.zeros(spatial_dims, *[2] * spatial_dims), eye)

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.moving_from_fixed) - 1

    def points(self, fixed_points: Sequence[float] | Matrix) -> Matrix:
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

    def inverse_points(self, moving_points: Sequence[float] | Matrix) -> Matrix:
        """Map points of the moving world to the fixed world, each by iteration: no lattice between.

        Args:
            moving_points: ``(..., d)`` RAS mm.

        Returns:
            ``(..., d)`` RAS mm, float64. The deformation must not fold.
        """
        points = np.asarray(moving_points, dtype=np.float64)
        before = apply_affine(inverse_affine(self.moving_from_fixed), points)
        if not bool(self.ddf_mm.any()):
            return before
        voxels = apply_affine(inverse_affine(self.working_affine), before)
        d = self.spatial_dims
        nodes = torch.from_numpy(voxels.reshape(-1, d)).float()
        back = _inverted(self._voxel_ddf(), nodes, self._voxel_mm()).double().numpy()
        return before + (back @ self.working_affine[:d, :d].T).reshape(before.shape)

    def displacement_mm(self, fixed_affine: Matrix, fixed_shape: Sequence[int]) -> Tensor:
        """The whole mapping as a displacement on a grid of the fixed world.

        Args:
            fixed_affine: ``(d + 1, d + 1)`` world_from_voxel of the grid.
            fixed_shape: its spatial shape.

        Returns:
            ``(d, *fixed_shape)`` float32, RAS mm: ``φ(x) − x``.
        """
        out = torch.empty((len(fixed_shape), *fixed_shape))
        identity = np.eye(len(fixed_shape) + 1)
        slabs = self._slabs(fixed_affine, fixed_shape, identity, minus=identity)
        for start, stop, displacement in slabs:
            out[:, start:stop] = displacement
        return out

    def warp(
        self,
        array: Tensor,
        moving_affine: Matrix,
        fixed_affine: Matrix,
        fixed_shape: Sequence[int],
        *,
        fill: float = 0.0,
        mode: Mode = "bilinear",
    ) -> Tensor:
        """Bring an image of the moving world to a grid of the fixed one, in one interpolation.

        Args:
            array: ``(C, *S)``.
            moving_affine: ``(d + 1, d + 1)`` world_from_voxel of ``array``.
            fixed_affine: ``(d + 1, d + 1)`` world_from_voxel of the grid that is wanted.
            fixed_shape: its spatial shape.
            fill: value outside the moving image.
            mode: linear, or nearest (labels).

        Returns:
            ``(C, *fixed_shape)`` float32, on the device of ``array``, which computes it.
        """
        out = torch.empty((len(array), *fixed_shape), device=array.device)
        voxel_from_world = inverse_affine(moving_affine)
        there = replace(self, ddf_mm=self.ddf_mm.to(array.device))
        for start, stop, voxels in there._slabs(fixed_affine, fixed_shape, voxel_from_world):
            points = voxels.movedim(0, -1)[None]
            out[:, start:stop] = sample(array[None].float(), points, mode=mode, fill=fill)[0]
        return out

    def inverse(self, tolerance_mm: float = 0.05) -> "WorldMap":
        """The map back, from the moving world to the fixed one.

        With ``A`` the affine, ``φ⁻¹(y) = A⁻¹ (y + e(y))``. The deformation ``e`` is found by
        damped fixed-point iteration on a lattice that also holds what the deformation moves over
        the rim. The deformation must not fold.

        Args:
            tolerance_mm: nodes lie closer, up to three for one of the deformation's, until points
                half-way between them come back within this.

        Returns:
            A map whose working lattice lies in the moving world, linear between its nodes.

        References:
            Chen et al., "A simple fixed-point approach to invert a deformation field", Med Phys
            2008.
        """
        if not bool(self.ddf_mm.any()):
            nothing = torch.zeros(self.spatial_dims, *[2] * self.spatial_dims)
            lattice = self.moving_from_fixed @ self.working_affine
            return WorldMap(inverse_affine(self.moving_from_fixed), nothing, lattice)
        points = self._between_nodes()
        there = self.points(points)
        found = None
        for nodes_per_voxel in range(1, _FINEST_INVERSE + 1):
            back, found = self._inverse(nodes_per_voxel, found)
            if np.linalg.norm(back.points(there) - points, axis=1).max() <= tolerance_mm:
                break
        return back

    def _inverse(self, nodes_per_voxel: int, coarser: Tensor | None) -> tuple["WorldMap", Tensor]:
        """The map back on a lattice with so many nodes for one of the deformation's.

        Args:
            nodes_per_voxel: along each axis.
            coarser: ``(*T, d)``, what was found with one node fewer; it begins there, or at zero.

        Returns:
            The map, and ``e`` on its lattice, ``(*T, d)`` in voxels of the deformation.
        """
        d, n = self.spatial_dims, nodes_per_voxel
        moving_lattice = self.moving_from_fixed @ self.working_affine
        ddf = self._voxel_ddf()
        reach = np.ceil(ddf.abs().flatten(1).amax(1).numpy()).astype(int)
        voxel_from_finer = np.diag([*[1 / n] * d, 1.0])
        voxel_from_finer[:d, d] = -reach
        sides = zip(ddf.shape[1:], reach, strict=True)
        shape = [n * (side - 1 + 2 * r) + 1 for side, r in sides]
        nodes = _affine_grid(voxel_from_finer, shape, 0, ddf.device).movedim(0, -1)
        begun = None
        if coarser is not None:
            at = [np.arange(side) * ((n - 1) / n) for side in shape]
            begun = sample_along_axes(coarser.movedim(-1, 0), at).movedim(0, -1).contiguous()
        back = _inverted(ddf, nodes, self._voxel_mm(), begun)
        turn = torch.from_numpy(moving_lattice[:d, :d]).float()
        world_map = WorldMap(
            inverse_affine(self.moving_from_fixed),
            torch.einsum("ij,...j->i...", turn, back),
            moving_lattice @ voxel_from_finer,
        )
        return world_map, back

    def _between_nodes(self) -> Matrix:
        """Points in the middle of cells of the lattice, at most some 10,000, RAS mm."""
        counts = [max(1, n - 1) for n in self.ddf_mm.shape[1:]]
        step = max(1, round((np.prod(counts) / _CHECKED_POINTS) ** (1 / self.spatial_dims)))
        axes = [np.arange(0, n, step) + 0.5 for n in counts]
        cells = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, self.spatial_dims)
        return apply_affine(self.working_affine, cells)

    def _voxel_ddf(self) -> Tensor:
        """The deformation in voxels of its lattice, ``(d, *W)``."""
        d = self.spatial_dims
        linear = torch.from_numpy(inverse_affine(self.working_affine)[:d, :d]).float()
        return torch.einsum("ij,j...->i...", linear, self.ddf_mm.float().cpu())

    def _voxel_mm(self) -> float:
        """The longest step that one voxel of the lattice makes."""
        d = self.spatial_dims
        return float(np.linalg.norm(self.working_affine[:d, :d], 2))

    def _slabs(
        self,
        fixed_affine: Matrix,
        shape: Sequence[int],
        target_from_moving: Matrix,
        minus: Matrix | None = None,
    ) -> Iterator[tuple[int, int, Tensor]]:
        """``target_from_moving @ φ(x)``, less ``minus @ x``, at the voxels of a grid.

        Args:
            fixed_affine: world_from_voxel of the grid.
            shape: its spatial shape.
            target_from_moving: ``(d + 1, d + 1)``, from the moving world in mm.
            minus: ``(d + 1, d + 1)``, from the fixed world in mm; nothing by default.

        Yields:
            Start, stop and values ``(d, stop - start, *S[1:])`` float32 of runs along the first
            axis, so that memory stays bounded; on the device of ``ddf_mm``.
        """
        d, device = len(shape), self.ddf_mm.device
        target_from_fixed = target_from_moving @ self.moving_from_fixed
        affine = (target_from_fixed - (0 if minus is None else minus)) @ fixed_affine
        turn = torch.from_numpy(target_from_fixed[:d, :d]).float().to(device)
        turned = torch.einsum("ij,j...->i...", turn, self.ddf_mm.float())
        lattice_from_voxels = inverse_affine(self.working_affine) @ fixed_affine
        axes = _axes_along(lattice_from_voxels, shape)
        deformed = bool(self.ddf_mm.any())
        thickness = max(1, PART_VOXELS // max(1, int(np.prod(shape[1:]))))
        for start in range(0, shape[0], thickness):
            stop = min(start + thickness, shape[0])
            run = (stop - start, *shape[1:])
            out = _affine_grid(affine, run, start, device)
            if deformed and axes is not None:
                along = _positions(lattice_from_voxels, axes, run, start)
                out += sample_along_axes(turned.permute(0, *[1 + a for a in axes]), along)
            elif deformed:
                points = _affine_grid(lattice_from_voxels, run, start, device).movedim(0, -1)
                out += sample(turned[None], points[None])[0]
            yield start, stop, out


def _axes_along(matrix: Matrix, shape: Sequence[int]) -> list[int] | None:
    """The axis of a lattice along which each axis of a grid runs, in either direction.

    Args:
        matrix: ``(d + 1, d + 1)`` voxels of the grid to voxels of the lattice.
        shape: spatial shape of the grid.

    Returns:
        None where one runs across, by more than float32 tells of a voxel's place.
    """
    linear = matrix[: len(shape), : len(shape)]
    axes = np.abs(linear).argmax(0)
    across = np.abs(linear)
    across[axes, np.arange(len(shape))] = 0
    far = float((across @ np.asarray(shape, float)).max())
    if len(set(axes)) < len(shape) or far >= np.finfo(np.float32).eps * max(shape):
        return None
    return [int(axis) for axis in axes]


def _positions(
    matrix: Matrix, axes: Sequence[int], shape: Sequence[int], start: int
) -> list[Matrix]:
    """Along each axis of a grid, voxels of the lattice's ``(n,)``; the first from ``start``."""
    return [
        matrix[axis, a] * (np.arange(n) + (start if a == 0 else 0)) + matrix[axis, -1]
        for a, (axis, n) in enumerate(zip(axes, shape, strict=True))
    ]


def _inverted(ddf: Tensor, nodes: Tensor, mm: float, begun: Tensor | None = None) -> Tensor:
    """``e`` with ``e(z) = −ddf(z + e(z))`` at nodes ``(*T, d)``, all in voxels of ``ddf``.

    Args:
        ddf: ``(d, *W)``.
        nodes: ``z``.
        mm: the longest step that one voxel of ``ddf`` makes.
        begun: where the iteration starts, contiguous ``(*T, d)``, and is overwritten; at zero by
            default.
    """
    back = torch.zeros(nodes.shape) if begun is None else begun
    rows = (x.reshape(-1, ddf.ndim - 1).split(PART_VOXELS) for x in (nodes, back))
    for some, found in zip(*rows, strict=True):
        _invert_at(ddf, some, found, _INVERTED_MM / mm)
    return back


def _invert_at(ddf: Tensor, nodes: Tensor, back: Tensor, close: float) -> None:
    """The same at some nodes ``(n, d)``, into ``back``; each is done when a step is as small."""
    shape = 1, -1, *[1] * (nodes.shape[1] - 1), nodes.shape[1]
    left = torch.arange(len(nodes))
    at, e = nodes, back.clone()
    for _ in range(_ITERATIONS):
        shift = sample(ddf[None], (at + e).view(shape))
        wrong = e + shift.view(nodes.shape[1], -1).T
        e = e - _DAMPING * wrong
        moving = wrong.abs().amax(1) >= close
        count = int(moving.sum())
        if count < len(left):
            back[left] = e
            left, at, e = left[moving], at[moving], e[moving]
        if count == 0:
            break
    back[left] = e


def _affine_grid(matrix: Matrix, shape: Sequence[int], start: int, device: torch.device) -> Tensor:
    """An affine of the voxels of a lattice, ``(d, *shape)`` float32, the first axis from ``start``.

    The terms of the axes are made in float64 and added in float32.
    """
    d = len(shape)
    out = torch.empty((d, *shape), device=device)
    for row, total in zip(matrix[:d], out, strict=True):
        terms = []
        for axis, n in enumerate(shape):
            along = row[axis] * (np.arange(n) + (start if axis == 0 else 0))
            along = along + (row[d] if axis == 0 else 0)
            one = torch.from_numpy(along).float().to(device)
            terms.append(one.view([-1 if a == axis else 1 for a in range(d)]))
        # the longest sum last: one pass over the lattice
        torch.add(terms[0], sum(terms[1:]), out=total)
    return out
