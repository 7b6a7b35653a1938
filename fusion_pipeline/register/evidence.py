"""What the register stage hands on: the map, and the evidence for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from fusion_pipeline.data import Identity, Image, TransformKind, write_displacement
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.geometry.affines import Matrix


@dataclass(frozen=True)
class GivenStart:
    """An initial transform that was given, beside what the registration made of it.

    Attributes:
        moving_from_fixed: ``(d + 1, d + 1)`` as given, RAS mm.
        from_headers_mm: how far it moves the reference's box from the initial alignment, on
            average.
        from_result_mm: how far the pose of the result lies from it, likewise.
    """

    moving_from_fixed: Matrix
    from_headers_mm: float
    from_result_mm: float


@dataclass(frozen=True)
class Evidence:
    """What speaks for a map, and against it.

    Attributes:
        transform: how far the registration went: none, rigid, affine or deformable.
        ok: False when the result is probably wrong.
        reason: why it is not ok, or what was not done and why; may be empty.
        aligned_already: nothing was moved because the images are aligned as they came.
        similarity_before: name → value: ``nmi`` (1..2, higher is better), ``mind`` (0..1, lower is
            better) and ``overlap``, the share (0..1) of the reference's body where both images are
            data: there the other two are measured.
        similarity_after: the same names.
        folded_fraction: share of voxels with a Jacobian determinant ≤ 0.
        error_mm: estimated mean remaining error in mm; NaN when there is no estimate.
        over_5_mm: probability (0..1) that it exceeds 5 mm, see `risk.probability_over_5_mm`; NaN in
            2D and where there is no estimate.
        error_map_mm: ``(*W)`` the estimate per voxel of the map's working lattice, or None.
        details: other numbers for the report.
        given_start: the initial transform that was given; None without one.
    """

    transform: TransformKind
    ok: bool = True
    reason: str = ""
    aligned_already: bool = False
    similarity_before: Mapping[str, float] = field(default_factory=dict)
    similarity_after: Mapping[str, float] = field(default_factory=dict)
    folded_fraction: float = 0.0
    error_mm: float = float("nan")
    over_5_mm: float = float("nan")
    error_map_mm: Tensor | None = None
    details: Mapping[str, float | str] = field(default_factory=dict)
    given_start: GivenStart | None = None


@dataclass(frozen=True)
class Registration:
    """A registered pair: where each point went, and what speaks for it.

    Attributes:
        map: from the reference's world to the moving image's world.
        evidence: similarities, the estimated error, and whether the map is to be trusted.
    """

    map: WorldMap
    evidence: Evidence

    @property
    def ok(self) -> bool:
        """False when the result is probably wrong."""
        return self.evidence.ok

    @property
    def reason(self) -> str:
        """Why it is not ok, or what was not done and why."""
        return self.evidence.reason

    @property
    def transform(self) -> TransformKind:
        """How far the registration went: none, rigid, affine or deformable."""
        return self.evidence.transform

    def displacement_mm(self, fixed: Image) -> Tensor:
        """The whole mapping as a displacement on the fixed image's native grid.

        Args:
            fixed: the reference image.

        Returns:
            ``(d, *S)`` float32, RAS mm: ``φ(x) − x``.
        """
        return self.map.displacement_mm(fixed.affine, fixed.shape)

    def warp(self, moving: Image, fixed: Image, *, nearest: bool = False) -> Image:
        """Bring the moving image to the fixed image's native grid, in one interpolation.

        Args:
            moving: the image in its original units.
            fixed: the image whose grid is wanted.
            nearest: for labels and masks.

        Returns:
            The moving image with the fixed image's shape, affine and frame of reference;
            ``moving.fill_value`` outside.
        """
        moved = warped(self.map, moving, fixed.affine, fixed.shape, nearest=nearest)
        return replace(moved, identity=_in_space_of(fixed, moving.identity))

    def save(self, path: str | Path, fixed: Image) -> None:
        """Write the map as a displacement field that ITK, Slicer and ANTs open.

        Args:
            path: ends in ``.nii`` or ``.nii.gz``.
            fixed: the reference image, on whose grid the field lies.
        """
        write_displacement(self.displacement_mm(fixed), fixed.affine, Path(path))


def _in_space_of(fixed: Image, identity: Identity | None) -> Identity | None:
    """The same patient in the reference's frame."""
    if identity is None:
        return None
    return replace(identity, frame_of_reference=fixed.frame_of_reference)


def warped(
    world_map: WorldMap,
    moving: Image,
    affine: Matrix,
    shape: Sequence[int],
    *,
    nearest: bool = False,
) -> Image:
    """An image on a grid of the fixed world, its colour with it, in one interpolation.

    Args:
        world_map: from the fixed world to the image's.
        moving: the image in its original units.
        affine: ``(d + 1, d + 1)`` world_from_voxel of the grid.
        shape: spatial shape of the grid.
        nearest: for labels and masks.

    Returns:
        The image on the grid; ``moving.fill_value`` outside.
    """
    grey, colour = moving.array, moving.colour
    values = world_map.warp(
        grey if colour is None else torch.cat([grey.float(), colour.float()]),
        moving.affine,
        affine,
        shape,
        fill=moving.fill_value,
        mode="nearest" if nearest else "bilinear",
    )
    return moving.with_array(
        values[:1], affine=affine, colour=None if colour is None else values[1:]
    )
