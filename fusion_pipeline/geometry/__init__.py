"""Grids, fields and affines: torch and NumPy only, 2D and 3D, differentiable.

Conventions of the whole package (``docs/conventions.md``, pinned by ``tests/test_conventions.py``):
    - tensors are ``(B, C, i, j[, k])``; the first spatial axis is the first column of the affine
    - ``ddf``: dense displacement field in voxels, pull-back: ``warped(x) = moving(x + ddf(x))``
    - ``ddf_mm``: the same in world millimetres, RAS+
    - voxel centres lie at integer coordinates (``align_corners=True``)
    - outside an image, further than half a voxel from its outermost centres, is ``fill`` (as in
      ITK); fields go on beyond their lattice with the value of its border
    - matrices are named ``b_from_a``: ``x_b = b_from_a @ x_a``
"""

from fusion_pipeline.geometry.affines import (
    apply_affine,
    inverse_affine,
    lps_from_ras,
    rescaled_affine,
    rigid_matrix,
    spacing_of,
)
from fusion_pipeline.geometry.fields import (
    compose,
    ddf_from_ddf_mm,
    ddf_mm_from_ddf,
    integrate,
    invert,
    jacobian_determinant,
    resize_ddf,
    warp,
)
from fusion_pipeline.geometry.reader import PointReader
from fusion_pipeline.geometry.sampling import (
    identity_points,
    inside,
    resample,
    resize,
    sample,
)
from fusion_pipeline.geometry.world_map import WorldMap

__all__ = [
    "PointReader",
    "WorldMap",
    "apply_affine",
    "compose",
    "ddf_from_ddf_mm",
    "ddf_mm_from_ddf",
    "identity_points",
    "inside",
    "integrate",
    "inverse_affine",
    "invert",
    "jacobian_determinant",
    "lps_from_ras",
    "resample",
    "rescaled_affine",
    "resize",
    "resize_ddf",
    "rigid_matrix",
    "sample",
    "spacing_of",
    "warp",
]
