"""The rigid and affine search between two images from many starts, and the polish of its result."""

import math
from dataclasses import dataclass, replace

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
    parameters_of,
    pose_parameters,
    recentred,
    world_matrix,
)
from fusion_pipeline.register.settings import POLISH, POSE
from fusion_pipeline.register.views import View, has_emission


@dataclass(frozen=True)
class Pose:
    """What the search found.

    Attributes:
        rigid: ``(d + 1, d + 1)`` moving_from_fixed, world to world, without stretch.
        matrix: the same with stretch and shear, where they were asked for; else ``rigid``.
        start: score of the initial alignment.
        rigid_score: score of ``rigid``.
        score: score of ``matrix``.
        distance_penalty: of ``rigid``, nats, for its distance from the initial alignment, or from
            the transform that was given where that is nearer.
        given_score: score of the transform that was given; NaN without one.
        rivals: all poses that climbed on the middle level, the best first.
    """

    rigid: Matrix
    matrix: Matrix
    start: float
    rigid_score: float
    score: float
    distance_penalty: float
    given_score: float = math.nan
    rivals: tuple["Rival", ...] = ()


@dataclass(frozen=True)
class Rival:
    """A pose that climbed from a start of its own.

    Attributes:
        matrix: ``(d + 1, d + 1)`` moving_from_fixed.
        score: on the middle level, less its distance penalty, nats.
    """

    matrix: Matrix
    score: float


def find_pose(
    fixed: Image,
    moving: Image,
    fields_of_view: tuple[Tensor, Tensor],
    *,
    affine: bool,
    given: Matrix | None = None,
    starts: int = 600,
    spacing: float = POSE.spacing_mm,
    made: MadeViews | None = None,
) -> Pose:
    """Search the rigid (then affine) map between two images from many starts.

    Hundreds of poses around the initial alignment, and around the centres of mass laid on each
    other, are scored on coarse views. The best climb there and on finer views, the initial
    alignment always among them; the winner last under a prior on the initial alignment's error.

    Args:
        fixed: the reference.
        moving: the image to be placed.
        fields_of_view: `views.masked_field_of_view` of both.
        affine: whether the result may stretch and shear.
        given: ``(d + 1, d + 1)`` moving_from_fixed; a second initial alignment beside the headers':
            climbed from, and as likely as that.
        starts: poses scored at first.
        spacing: voxel size of the coarse views in mm.
        made: views of the images, where they were made already.

    Returns:
        The pose; whether it is better enough than the start, the caller decides.
    """
    coarse, middle, fine = _views_of((fixed, moving), fields_of_view, spacing, made or MadeViews())
    backward = coarse[1].tissue_extent < coarse[0].tissue_extent
    if backward:
        coarse, middle, fine = (views[::-1] for views in (coarse, middle, fine))
        given = None if given is None else inverse_affine(given)
    volumes, beside_emission = fixed.spatial_dims == 3, has_emission(fixed, moving)
    # descriptors that are blind to noise: of volumes only, since generated pictures are placed
    # worse by them; on the finest level beside emission images only, which are noisy there as well
    levels = ((middle, volumes, POSE.middle), (fine, volumes and beside_emission, POSE.fine))
    # a slice's emission image has few edges, so that descriptors say little of where it lies
    nats = POSE.structure_emission_2d if beside_emission and not volumes else None
    points = Points(coarse[0], POSE.coarse_points, seed=0, blind=volumes, structure_nats=nats)
    score = PointScore(points, coarse[1])
    found = [(pose[None], score) for pose in _best_of_many(score, starts, given)]
    rivals: list[Rival] = []
    for views, blind, level in levels:
        points = Points(views[0], level.points, seed=1, blind=blind, structure_nats=nats)
        climbed = [
            _climb_anew(points, views[1], pose, score.centre, steps=20, rate=level.rate)
            for pose, score in found
        ]
        climbed.sort(
            key=lambda one: float(one[1] - _distance_penalty(one[0], _given_at(one[2], given))),
            reverse=True,
        )
        found = [(pose, score) for pose, _, score in climbed[: level.kept]]
        rivals = rivals or [_rival(*one, given, backward=backward) for one in climbed]
    prior = _prior(beside_emission=beside_emission, volumes=volumes)
    pose = _finished(*found[0], fine[1], given, prior=prior, affine=affine)
    pose = replace(pose, rivals=tuple(rivals))
    if not backward:
        return pose
    return replace(pose, rigid=inverse_affine(pose.rigid), matrix=inverse_affine(pose.matrix))


def _finished(
    rigid: Tensor,
    score: PointScore,
    target: View,
    given: Matrix | None,
    *,
    prior: float,
    affine: bool,
) -> Pose:
    """The best pose of the finest level after its last climbs, with the scores to compare it with.

    Args:
        rigid: ``(1, n)``.
        score: that it was climbed by.
        target: of the finest level.
        given: a transform that was given.
        prior: weight of the prior, nats.
        affine: whether the result may stretch and shear.
    """
    near = _given_at(score, given)
    rigid, values = _climb(score, rigid, steps=30, rate=0.6, prior=prior, given=near)
    rigid_score = float(values)
    best = rigid
    if affine:
        starts = [rigid]
        if given is not None:  # its stretch is further off than a climb reaches
            starts.append(nearest_parameters(given, score.centre, strain=True))
        climbs = [
            _climb(score, pose, steps=40, rate=0.4, strain=True, prior=prior, given=near)
            for pose in starts
        ]
        best, values = max(climbs, key=lambda one: float(one[1]))
    with torch.no_grad():
        initial = PointScore(score.points, target, room_mm=POSE.room_mm)
        start = float(initial(matrices_of(torch.zeros_like(rigid)))[0])
    return Pose(
        rigid=world_matrix(rigid, score.centre),
        matrix=world_matrix(best, score.centre),
        start=start,
        rigid_score=rigid_score,
        score=float(values),
        distance_penalty=float(_distance_penalty(rigid, near)),
        given_score=_score_of(score.points, target, given),
    )


def _score_of(points: Points, target: View, given: Matrix | None) -> float:
    """The score of the transform that was given; NaN without one."""
    if given is None:
        return math.nan
    score = PointScore(points, target, pose=given, room_mm=POSE.room_mm)
    with torch.no_grad():
        pose = nearest_parameters(given, score.centre, strain=True)
        return float(score(matrices_of(pose))[0])


def _rival(
    pose: Tensor, value: Tensor, score: PointScore, given: Matrix | None, *, backward: bool
) -> Rival:
    """A climbed pose as a map of the fixed image's world."""
    matrix = world_matrix(pose, score.centre)
    value = value - _distance_penalty(pose, _given_at(score, given))
    return Rival(inverse_affine(matrix) if backward else matrix, float(value))


def _given_at(score: PointScore, given: Matrix | None) -> Tensor | None:
    """The transform that was given as a rigid pose about the score's centre."""
    return None if given is None else nearest_parameters(given, score.centre)


def _prior(*, beside_emission: bool, volumes: bool) -> float:
    """Weight of the prior on the initial alignment, nats."""
    if not beside_emission:
        return POSE.prior_nats
    return POSE.prior_nats_emission if volumes else POSE.prior_nats_emission_2d


def _views_of(
    images: tuple[Image, Image],
    fields_of_view: tuple[Tensor, Tensor],
    spacing: float,
    made: MadeViews,
) -> tuple[list[View], ...]:
    """Both images on the coarse, the middle and the fine level."""
    levels = [(POSE.coarse_size, POSE.coarse_blur)]
    levels += [(level.size, level.blur) for level in (POSE.middle, POSE.fine)]
    views = [
        [
            made.view(image, view, spacing=size * spacing, blur_mm=blur * spacing)
            for image, view in zip(images, fields_of_view, strict=True)
        ]
        for size, blur in levels
    ]
    if images[0].spatial_dims == 2 and has_emission(*images):
        # that the scalp takes up nothing is most of what a slice of a PET or SPECT says
        views = [[replace(view, dark_is_doubtful=False) for view in level] for level in views]
    return tuple(views)


def _best_of_many(score: PointScore, starts: int, given: Matrix | None) -> Tensor:
    """The poses that go on from the coarse level, after a climb of the best starts.

    The first is the climb from the initial alignment, the second that from a given transform.
    """
    near = _given_at(score, given)
    always = 1 if near is None else 2
    with torch.no_grad():
        poses = _start_poses(score, starts)
        if near is not None:
            poses = torch.cat([poses[:1], near, poses[1:]])
        values = torch.cat([score(matrices_of(part)) for part in poses.split(100)])
    worth = values - _distance_penalty(poses, near)
    poses = poses[_distinct(poses, worth, POSE.climbing, always)]
    poses, values = _climb(score, poses, steps=16, rate=2.5)
    worth = values - _distance_penalty(poses, near)
    best = _distinct(poses, worth, POSE.climbing_on, always)
    return poses[best[: POSE.climbing_on]]


def polished(
    fixed: Image,
    moving: Image,
    fields_of_view: tuple[Tensor, Tensor],
    matrix: Matrix,
    made: MadeViews | None = None,
) -> Matrix:
    """A rigid pose that is about right, placed more exactly: sharper views, more points, no prior.

    Args:
        fixed: the reference.
        moving: the image that was placed.
        fields_of_view: `views.masked_field_of_view` of both.
        matrix: ``(4, 4)`` moving_from_fixed, rigid.
        made: views of the images, where they were made already.

    Returns:
        ``(4, 4)`` moving_from_fixed, rigid.
    """
    view = (made or MadeViews()).view
    views = [
        view(image, k, spacing=POLISH.spacing_mm, blur_mm=POLISH.blur_mm)
        for image, k in zip((fixed, moving), fields_of_view, strict=True)
    ]
    backward = views[1].tissue_extent < views[0].tissue_extent
    if backward:
        views, matrix = views[::-1], inverse_affine(matrix)
    beside_emission = has_emission(fixed, moving)
    count, weight = POLISH.points, POLISH.structure
    if beside_emission:
        count, weight = POLISH.points_emission, POLISH.structure_emission
    points = Points(views[0], count, seed=2, structure_nats=weight)
    score = PointScore(points, views[1], pose=matrix, room_mm=POSE.room_mm)
    pose, _ = _climb(score, parameters_of(matrix, score.centre), steps=20, rate=0.3)
    out = world_matrix(pose, score.centre)
    return inverse_affine(out) if backward else out


def _start_poses(score: PointScore, count: int) -> Tensor:
    """Random poses, denser near the middle: half around the initial alignment."""
    d = len(score.centre)
    turns, strains = pose_parameters(d)
    generator = torch.Generator().manual_seed(0)
    extent = float(score.points.positions.abs().max()) * 2
    poses = torch.zeros(count, turns + d + strains)
    turn, shift = (
        math.radians(POSE.start_turn_deg) * POSE.mm_per_radian,
        min(POSE.start_shift_mm, 0.4 * extent),
    )
    reach = torch.tensor([turn] * turns + [shift] * d)
    unit = torch.rand(count, turns + d, generator=generator) * 2 - 1
    poses[:, : turns + d] = unit * reach * torch.rand(count, 1, generator=generator).sqrt()
    between = score.target_centre - score.centre
    poses[count // 2 :, turns : turns + d] += between
    poses[:2] = 0.0
    poses[1, turns : turns + d] = between
    return poses


def _distance_penalty(poses: Tensor, given: Tensor | None) -> Tensor:
    """The penalty of each pose's distance from the initial alignment, ``(P,)`` nats.

    Args:
        poses: ``(P, n)``.
        given: ``(1, n)`` a transform that was given: where it is nearer, the distance from it.
    """
    distance = poses.norm(dim=1)
    if given is not None:
        distance = torch.minimum(distance, (poses - given).norm(dim=1))
    return POSE.distance_penalty * distance


def _climb_anew(
    points: Points, target: View, pose: Tensor, centre: Tensor, *, steps: int, rate: float
) -> tuple[Tensor, Tensor, PointScore]:
    """Climb from one pose on other views, the target's structure described from that pose.

    Returns:
        The pose, its score ``(1,)``, and what scored it.
    """
    matrix = world_matrix(pose, centre)
    score = PointScore(points, target, pose=matrix, room_mm=POSE.room_mm)
    poses, values = _climb(score, recentred(pose, centre, score.centre), steps=steps, rate=rate)
    return poses, values, score


def _distinct(poses: Tensor, values: Tensor, count: int, always: int) -> list[int]:
    """The best poses that are not near each other, after the first ones, which stay in any case."""
    kept: list[int] = []
    for k in values.argsort(descending=True).tolist():
        if all(float((poses[k] - poses[j]).norm()) > POSE.distinct_mm for j in kept):
            kept.append(k)
        if len(kept) == count:
            break
    return [*range(always), *[k for k in kept if k >= always]]


def _climb(
    score: PointScore,
    poses: Tensor,
    *,
    steps: int,
    rate: float,
    strain: bool = False,
    prior: float = 0.0,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient ascent of all poses at once; each keeps the best pose on its way.

    Args:
        score: what to climb.
        poses: where to begin, ``(P, n)``.
        steps: how often to step.
        rate: the first step, in the parameters' mm.
        strain: let the poses stretch and shear, under a penalty.
        prior: weight of the prior on the initial alignment, nats.
        given: ``(1, n)`` a transform that was given, as likely as the initial alignment.

    Returns:
        The poses, and their scores without the prior, ``(P,)``.
    """
    d = len(score.centre)
    strains = pose_parameters(d)[1]
    weight = POSE.strain_penalty_2d if d == 2 else POSE.strain_penalty_3d
    current = poses.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([current], lr=rate)
    best, best_values = poses.clone(), torch.full((len(poses),), -math.inf)
    scores = best_values
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.zero_grad()
        values = score(matrices_of(current))
        if strain:
            amount = current[:, -strains:] / POSE.mm_per_radian
            values = values - weight * amount.square().sum(1)
        squared = current.square().sum(1)
        if given is not None:
            squared = torch.minimum(squared, (current - given).square().sum(1))
        unlikely = prior * squared / (squared + POSE.prior_mm**2)
        values = values - unlikely
        (-values.sum()).backward()
        if not strain and current.grad is not None:
            current.grad[:, -strains:] = 0.0
        with torch.no_grad():
            better = values > best_values
            best[better] = current[better]
            best_values = torch.where(better, values, best_values)
            scores = torch.where(better, values + unlikely, scores)
        optimizer.step()
    return best, scores
