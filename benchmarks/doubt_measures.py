"""What might say that a registration is wrong, beyond what its evidence holds: for `doubt_rows`."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine, compose, integrate, resize
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register import pose as pose_search
from fusion_pipeline.register import stage, standing
from fusion_pipeline.register.aligned_pair import AlignedPair, ImagePair
from fusion_pipeline.register.chosen_pose import choose_pose
from fusion_pipeline.register.evidence import Registration
from fusion_pipeline.register.point_score import Points, PointScore
from fusion_pipeline.register.pose_parameters import (
    matrices_of,
    nearest_parameters,
    world_matrix,
)
from fusion_pipeline.register.settings import POSE
from fusion_pipeline.register.sharpness import falls_around
from fusion_pipeline.register.views import make_view

_MOVES_MM = (3.0, 6.0, 12.0)  # mm (or 3.4, 6.9, 13.8°) that the result is moved by
_RERUNS = 6
_RERUN_MM = 12.0
Row = dict[str, Any]


class Watching:
    """Keeps what a registration was put together from.

    Attributes:
        start: the pair in its initial alignment.
        end: what the error was estimated on.
        posed: images and fields of view of the pose search.
    """

    def __init__(self) -> None:
        self.start: ImagePair | None = None
        self.end: AlignedPair | None = None
        self.posed: tuple[Image, Image, tuple[Tensor, Tensor]] | None = None
        put_together, choose = stage.registration_of, choose_pose

        def registration_of(start: ImagePair, end: AlignedPair, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - handed on
            self.start, self.end = start, options["estimated_on"]
            return put_together(start, end, *args, **options)

        def chosen(fixed: Image, moving: Image, fields: Any, **options: Any) -> Any:  # noqa: ANN401
            self.posed = (fixed, moving, fields)
            return choose(fixed, moving, fields, **options)

        for module in (stage, standing):
            module.registration_of = registration_of  # type: ignore[attr-defined]
        stage.choose_pose = chosen  # type: ignore[attr-defined]

    def measured(self, result: Registration, points: np.ndarray) -> Row:
        """All of it."""
        row: Row = {}
        if self.posed is not None:
            row |= around(*self.posed, result.map.moving_from_fixed, points)
        if self.start is not None and self.end is not None:
            row["start_estimate_mm"] = self.start.undeformed.error_mm
            row |= residual(self.end)
        return row


def around(
    fixed: Image,
    moving: Image,
    fields_of_view: tuple[Tensor, Tensor],
    matrix: Matrix,
    points: np.ndarray,
) -> Row:
    """How the score falls when the result is moved, and where climbs from moved results end.

    Args:
        fixed: the reference.
        moving: the other image.
        fields_of_view: of both.
        matrix: moving_from_fixed of the result.
        points: ``(n, 3)`` mm of the reference's body.
    """
    falls = {
        f"fall_{mm:.0f}": falls_around((fixed, moving), fields_of_view, matrix, move_mm=mm)
        for mm in _MOVES_MM
    }
    level = POSE.middle
    views = [
        make_view(
            image, view, spacing=level.size * POSE.spacing_mm, blur_mm=level.blur * POSE.spacing_mm
        )
        for image, view in zip((fixed, moving), fields_of_view, strict=True)
    ]
    if views[1].tissue_extent < views[0].tissue_extent:
        views, matrix = views[::-1], np.linalg.inv(matrix)
        points = apply_affine(np.linalg.inv(matrix), points)
    drawn = Points(views[0], level.points, seed=1, blind=True)
    score = PointScore(drawn, views[1], pose=matrix, room_mm=POSE.room_mm)
    here = nearest_parameters(matrix, score.centre, strain=True)
    with torch.no_grad():
        value = float(score(matrices_of(here))[0])
    rng = torch.Generator().manual_seed(0)
    away = torch.randn(_RERUNS, 6, generator=rng)
    away = torch.nn.functional.pad(away / away.norm(dim=1, keepdim=True) * _RERUN_MM, (0, 6))
    climbed, values = pose_search._climb(score, here + away, steps=15, rate=1.5)
    posed = apply_affine(matrix, points)
    ends = [
        float(
            np.linalg.norm(
                apply_affine(world_matrix(one[None], score.centre), points) - posed, axis=1
            ).mean()
        )
        for one in climbed
    ]
    row: Row = {"score_here": value, "rerun_mm": np.round(ends, 2).tolist()}
    row["rerun_gain"] = (values - value).detach().numpy().round(4).tolist()
    return row | {name: one.numpy().round(4).tolist() for name, one in falls.items()}


def residual(pair: AlignedPair) -> Row:
    """What the network would still move, in parts: all of it as one, as one affine map, the rest.

    Args:
        pair: that the error was estimated on.
    """
    network = pair.fixed.network
    features = pair.fixed.features, pair.warped.features
    shape = pair.fixed.arrays.image.shape[2:]
    nodes = [slice(n // 2 + 1) for n in shape]
    with torch.no_grad():
        forth, back = (
            integrate(network.match(*both)[0], network.integration_steps)[:, :, *nodes]
            for both in (features, features[::-1])
        )
        closed = compose(forth, back)
    size = [2 * (n // 2) + 1 for n in shape]
    where = pair.compared_region()[0, 0] > 0
    row: Row = {}
    at = where.nonzero()[::7]
    if len(at) < 50:
        return row
    design = torch.cat([at.float(), torch.ones(len(at), 1)], 1)
    design = (design - design.mean(0)) / design.std(0).clamp_min(1e-3)
    design[:, -1] = 1.0
    for name, field in (("forth", forth), ("back", back), ("closed", closed)):
        whole = resize(field, size)[0].permute(1, 2, 3, 0) * 2 * pair.spacing
        moves = whole[tuple(slice(n) for n in shape)][tuple(at.T)]
        row[f"{name}_mm"] = float(moves.norm(dim=1).mean())
        row[f"{name}_mean_mm"] = float(moves.mean(0).norm())
        fit = design @ torch.linalg.lstsq(design, moves).solution
        row[f"{name}_affine_mm"] = float(fit.norm(dim=1).mean())
        row[f"{name}_rest_mm"] = float((moves - fit).norm(dim=1).mean())
    return row
