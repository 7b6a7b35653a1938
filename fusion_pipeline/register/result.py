"""Put the parts of a registration together, and doubt them where there is reason to."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image, TransformKind
from fusion_pipeline.geometry import WorldMap, ddf_mm_from_ddf, jacobian_determinant
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register.evidence import Evidence, Registration
from fusion_pipeline.register.trial import Pair, Trial
from fusion_pipeline.transforms import BodyMask

_LEAST_OVERLAP = 0.1
_DOUBTFUL_MM = 4.0  # of 55 training results 17 are beyond, 14 of them more than 5 mm off


def result(
    start: Pair,
    end: Trial,
    matrix: Matrix,
    kept: TransformKind,
    reason: str,
    details: Mapping[str, float],
    *,
    seen: Trial,
    body_mm: float,
) -> Registration:
    """Put the parts together and doubt them where there is reason to.

    Args:
        start: the images by their headers, on the working lattice.
        end: the result; its ``ddf`` ``(1, d, *S)`` in voxels of that lattice, or None.
        matrix: ``(d + 1, d + 1)`` moving_from_fixed, RAS mm.
        kept: how far the registration went.
        reason: why it did not go further, or nothing.
        details: numbers for the report.
        seen: what the error is estimated on: ``end``, or what it was before it was polished.
        body_mm: how much body the moving image shows, see `body_mm3`.
    """
    lattice = start.lattice
    d = len(lattice.shape)
    field = torch.zeros((1, d, *lattice.shape)) if end.ddf is None else end.ddf
    before, after = start.undeformed.similarity, end.similarity
    fixed_mm = float(end.fixed.shown.body.sum()) * lattice.spacing**d
    doubt = _doubt(before, after, seen.error_mm, after["overlap"] * max(1.0, fixed_mm / body_mm))
    ddf_mm = ddf_mm_from_ddf(field, torch.from_numpy(lattice.affine))[0]
    evidence = Evidence(
        transform=kept,
        ok=not doubt,
        reason="; ".join(part for part in (doubt, reason) if part),
        similarity_before=before,
        similarity_after=after,
        folded_fraction=float((jacobian_determinant(field) <= 0).float().mean()),
        error_mm=seen.error_mm,
        error_map_mm=seen.error_map_mm,
        details={**details, "working_spacing_mm": lattice.spacing},
    )
    return Registration(WorldMap(matrix, ddf_mm, lattice.affine), evidence)


def body_mm3(image: Image, known: Tensor) -> float:
    """How much body an image shows, in mm³ (mm² in 2D), at least one voxel."""
    body = BodyMask(image.modality)(image.array, image.spacing.tolist()) & (known > 0.5)
    return max(1.0, float(body.sum())) * float(np.prod(image.spacing))


def _doubt(
    before: Mapping[str, float], after: Mapping[str, float], error_mm: float, shared: float
) -> str:
    """Why the result is probably wrong, or nothing.

    Args:
        before: similarity of the headers' pose.
        after: similarity of the result.
        error_mm: the network's estimate.
        shared: how much of the smaller body both images show.
    """
    if shared < _LEAST_OVERLAP:
        return f"the images share only {shared:.0%} of the smaller body"
    if after["nmi"] < before["nmi"] and after["mind"] > before["mind"]:
        return "the images are less alike than before"
    if error_mm > _DOUBTFUL_MM:
        return f"the network would move the result by another {error_mm:.0f} mm: look at it"
    return ""
