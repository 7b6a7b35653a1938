"""The pose that the stage goes on from: the one that the search found, or the initial alignment."""

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from fusion_pipeline.data import Image, TransformKind
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register.made_views import MadeViews
from fusion_pipeline.register.pose import find_pose
from fusion_pipeline.register.settings import DECISION


@dataclass(frozen=True)
class ChosenPose:
    """The pose to go on from.

    Attributes:
        matrix: moving_from_fixed.
        kind: ``rigid`` or ``affine``; ``none``: the initial alignment, from the image headers.
        details: scores, for the report.
        undisputed: whether it is far better than the initial alignment.
        best: the best pose that was searched, whether it is gone on from or not.
        searched: whether poses were searched, so that to move nothing is a result.
    """

    matrix: Matrix
    kind: TransformKind
    details: dict[str, float]
    undisputed: bool = False
    best: Matrix | None = None
    searched: bool = True

    def refused(self) -> "ChosenPose":
        """The initial alignment, with the same details."""
        return replace(self, matrix=np.eye(len(self.matrix)), kind="none", undisputed=False)


def choose_pose(
    fixed: Image,
    moving: Image,
    fields_of_view: tuple[Tensor, Tensor],
    *,
    affine: bool,
    stretch_gain: float,
    given: Matrix | None = None,
    made: MadeViews | None = None,
) -> ChosenPose:
    """The pose whose score is clearly above the initial alignment's, or that.

    Args:
        fixed: the reference.
        moving: the image to be placed.
        fields_of_view: `views.masked_field_of_view` of both.
        affine: whether the result may stretch and shear.
        stretch_gain: an affine pose is taken where its score is so many times a rigid one's.
        given: moving_from_fixed that is tried beside the initial alignment.
        made: views of the images, where they were made already.
    """
    pose = find_pose(fixed, moving, fields_of_view, affine=affine, given=given, made=made)
    details = {
        "pose_score_start": pose.start,
        "pose_score_rigid": pose.rigid_score,
        "pose_score": pose.score,
    }
    if given is not None:
        details["pose_score_given"] = pose.given_score
    stretched = affine and pose.score > pose.rigid_score * stretch_gain
    matrix, score = (pose.matrix, pose.score) if stretched else (pose.rigid, pose.rigid_score)
    moved = mean_move(fixed, matrix)
    needed = DECISION.pose_gain_nats + pose.distance_penalty
    if moved < DECISION.small_move_mm:
        needed = min(needed, DECISION.small_gain * pose.start)
    far_better = max(DECISION.undisputed * pose.start, pose.start + DECISION.undisputed_nats)
    kind: TransformKind = "affine" if stretched else "rigid"
    best = ChosenPose(matrix, kind, details, score >= far_better, matrix)
    return best.refused() if score - pose.start < needed else best


def mean_move(fixed: Image, matrix: Matrix) -> float:
    """Mean distance in mm that the fixed image's own box is moved, over a lattice of its points."""
    axes = [np.linspace(0, n - 1, 5) for n in fixed.shape]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, fixed.spatial_dims)
    world = apply_affine(fixed.affine, voxels)
    return float(np.linalg.norm(apply_affine(matrix, world) - world, axis=1).mean())
