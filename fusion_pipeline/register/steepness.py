"""How sharply images determine a pose: how far its score falls when it is moved a little."""

import math

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import inverse_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register.point_score import Points, PointScore
from fusion_pipeline.register.pose_parameters import matrices_of, nearest_parameters
from fusion_pipeline.register.settings import POSE, RISK
from fusion_pipeline.register.views import make_view

_RIGID = 6  # parameters that turn and shift a volume, the first ones


def least_fall(
    images: tuple[Image, Image],
    fields_of_view: tuple[Tensor, Tensor],
    matrix: Matrix,
    *,
    spacing: float = 5.0,
) -> float:
    """How far the score of a pose falls, at least, when it is moved by 6 mm (or 6.9 degrees).

    It is moved either way along each of its rigid parameters. A right pose lies on a sharp peak; a
    wrong one mostly on a slope or a plateau, where another pose scores nearly as well, or better.

    Args:
        images: the reference and the moving image, volumes.
        fields_of_view: `views.masked_field_of_view` of both.
        matrix: ``(4, 4)`` moving_from_fixed.
        spacing: voxel size of the coarse views in mm, as in `pose.find_pose`.

    Returns:
        Nats; below 0 where a moved pose scores better; NaN of a map that mirrors.
    """
    if np.linalg.det(matrix[:-1, :-1]) <= 0:
        return math.nan
    level = POSE.middle
    views = [
        make_view(image, view, spacing=level.size * spacing, blur_mm=level.blur * spacing)
        for image, view in zip(images, fields_of_view, strict=True)
    ]
    if views[1].tissue_extent < views[0].tissue_extent:
        views, matrix = views[::-1], inverse_affine(matrix)
    points = Points(views[0], level.points, seed=1, blind=True)
    score = PointScore(points, views[1], pose=matrix, room_mm=POSE.room_mm)
    here = nearest_parameters(matrix, score.centre, strain=True)
    steps = RISK.moved_mm * torch.eye(here.shape[1])[:_RIGID]
    with torch.no_grad():
        scores = score(matrices_of(torch.cat([here, here + steps, here - steps])))
    return float(scores[0] - scores[1:].max())


__all__ = ["least_fall"]
