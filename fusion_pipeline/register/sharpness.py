"""How sharply the score of a pose stands out: little around a wrong one, far around a right one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import inverse_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register.made_views import MadeViews
from fusion_pipeline.register.point_score import Points, PointScore
from fusion_pipeline.register.pose_parameters import (
    matrices_of,
    nearest_parameters,
    pose_parameters,
)
from fusion_pipeline.register.settings import POSE


def falls_around(
    images: Sequence[Image],
    fields_of_view: Sequence[Tensor],
    matrix: Matrix,
    *,
    move_mm: float = 6.0,
    made: MadeViews | None = None,
) -> Tensor:
    """How far the score falls where a pose is moved along each of its parameters.

    Args:
        images: the reference and the moving image, volumes.
        fields_of_view: `views.masked_field_of_view` of both.
        matrix: ``(4, 4)`` moving_from_fixed.
        move_mm: how far; of 6 mm the turns are 6.9°.
        made: views of the images, where they were made already.

    Returns:
        ``(12,)`` nats: turned and shifted, either way; negative where it rises.
    """
    level = POSE.middle
    view = (made or MadeViews()).view
    both = [
        view(image, one, spacing=level.size * POSE.spacing_mm, blur_mm=level.blur * POSE.spacing_mm)
        for image, one in zip(images, fields_of_view, strict=True)
    ]
    if both[1].tissue_extent < both[0].tissue_extent:
        both, matrix = both[::-1], inverse_affine(matrix)
    points = Points(both[0], level.points, seed=1, blind=True)
    score = PointScore(points, both[1], pose=matrix, room_mm=POSE.room_mm)
    here = nearest_parameters(matrix, score.centre, strain=True)
    turns, _ = pose_parameters(3)
    moved = torch.zeros(2 * (turns + 3), here.shape[1])
    for k in range(turns + 3):
        moved[2 * k, k], moved[2 * k + 1, k] = move_mm, -move_mm
    with torch.no_grad():
        return score(matrices_of(here))[0] - score(matrices_of(here + moved))


__all__ = ["falls_around"]
