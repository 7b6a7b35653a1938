"""Put the parts of a registration together, and doubt them where there is reason to."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Prepared
from fusion_pipeline.geometry import WorldMap, ddf_mm_from_ddf, jacobian_determinant
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register.aligned_pair import AlignedPair, ImagePair
from fusion_pipeline.register.chosen_pose import ChosenPose
from fusion_pipeline.register.evidence import Evidence, Registration
from fusion_pipeline.register.lattice import Lattice
from fusion_pipeline.register.risk import probability_over_5_mm
from fusion_pipeline.register.settings import DECISION, RISK


@dataclass(frozen=True)
class Shown:
    """What the doubts have to know of the images.

    Attributes:
        body_mm: how much body the moving image shows, see `body_mm3`.
        falls: how far the score of a pose falls around it, `sharpness.falls_around`; None for
            pictures.
    """

    body_mm: float
    falls: Callable[[Matrix], Tensor] | None = None


def registration_of(
    start: ImagePair,
    end: AlignedPair,
    chosen: ChosenPose,
    *,
    reason: str = "",
    doubt: str = "",
    estimated_on: AlignedPair,
    shown: Shown,
    aligned_already: bool = False,
) -> Registration:
    """Put the parts together and doubt them where there is reason to.

    Args:
        start: the images in their initial alignment, on the working lattice.
        end: the result; its ``ddf`` ``(1, d, *S)`` in voxels of that lattice, or None.
        chosen: the affine part, how far the registration went, and numbers for the report.
        reason: why it did not go further, or nothing.
        doubt: why the result is probably wrong, or nothing; `doubt_about` may add to it.
        estimated_on: what the error is estimated on: ``end``, or what it was before its polish.
        shown: what the doubts have to know of the images.
        aligned_already: whether nothing was moved because the images are aligned as they came.
    """
    lattice = start.lattice
    d = len(lattice.shape)
    field = _field(end, lattice)
    before, after = start.undeformed.similarity, end.similarity
    fixed_mm = float(end.fixed.arrays.body.sum()) * lattice.spacing**d
    shared = after["overlap"] * max(1.0, fixed_mm / shown.body_mm)
    # fitted to volumes: an error in a slice is in the pixels of a picture as often as in mm
    risk, details = math.nan, dict(chosen.details)
    if shown.falls is not None:
        fall = float(shown.falls(chosen.matrix).quantile(0.5))
        stays = chosen.searched and chosen.kind == "none" and end.ddf is None
        risk = probability_over_5_mm(estimated_on.error_mm, fall, stays=stays)
        details["pose_score_fall"] = fall
    doubts = [doubt, doubt_about(before, after, estimated_on.error_mm, shared, risk)]
    evidence = Evidence(
        transform=chosen.kind,
        ok=not any(doubts),
        reason="; ".join(part for part in (*doubts, reason) if part),
        aligned_already=aligned_already,
        similarity_before=before,
        similarity_after=after,
        folded_fraction=float((jacobian_determinant(field) <= 0).float().mean()),
        error_mm=estimated_on.error_mm,
        over_5_mm=risk,
        error_map_mm=estimated_on.error_map_mm.cpu(),
        details={**details, "working_spacing_mm": lattice.spacing},
    )
    return Registration(world_map(chosen.matrix, end, lattice), evidence)


def world_map(matrix: Matrix, end: AlignedPair, lattice: Lattice) -> WorldMap:
    """The whole map of a pair: its deformation, then its pose.

    Args:
        matrix: ``(d + 1, d + 1)`` moving_from_fixed of the pose.
        end: the pair after its deformation, if there is one.
        lattice: that it is sampled on.
    """
    ddf_mm = ddf_mm_from_ddf(_field(end, lattice), torch.from_numpy(lattice.affine))[0]
    return WorldMap(matrix, ddf_mm.cpu(), lattice.affine)


def _field(end: AlignedPair, lattice: Lattice) -> Tensor:
    """Its deformation ``(1, d, *S)`` in voxels of the lattice; zeros where there is none."""
    if end.ddf is not None:
        return end.ddf
    return end.fixed.arrays.image.new_zeros(1, lattice.dims, *lattice.shape)


def body_mm3(given: Prepared, field_of_view: Tensor) -> float:
    """How much body an image shows, in mm³ (mm² in 2D), at least one voxel."""
    body = given.body & (field_of_view > 0.5)
    return max(1.0, float(body.sum())) * float(np.prod(given.image.spacing))


def doubt_about(
    before: Mapping[str, float],
    after: Mapping[str, float],
    error_mm: float,
    shared: float,
    over_5_mm: float = math.nan,
) -> str:
    """Why a result is probably wrong; empty where nothing speaks against it.

    Args:
        before: similarity of the initial alignment.
        after: similarity of the result.
        error_mm: the network's estimate.
        shared: how much of the smaller body both images show.
        over_5_mm: probability of an error over 5 mm; NaN where there is none.
    """
    if shared < DECISION.least_overlap:
        return f"the images share only {shared:.0%} of the smaller body"
    if after["nmi"] < before["nmi"] and after["mind"] > before["mind"]:
        return "the images are less similar than before"
    if error_mm > DECISION.doubtful_mm:
        return f"the network would move the result by another {error_mm:.0f} mm: look at it"
    if over_5_mm > RISK.limit:
        return f"it is off by more than 5 mm with a probability of {over_5_mm:.0%}: look at it"
    return ""
