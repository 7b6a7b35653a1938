"""The rigid and affine search between two images from many starts, and the polish of its result."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import inverse_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register.point_score import Points, PointScore
from fusion_pipeline.register.pose_parameters import (
    matrices_of,
    parameters_of,
    pose_parameters,
    recentred,
    world_matrix,
)
from fusion_pipeline.register.settings import POLISH, POSE
from fusion_pipeline.register.views import View, has_emission, make_view


@dataclass(frozen=True)
class Pose:
    """What the search found.

    Attributes:
        rigid: ``(d + 1, d + 1)`` moving_from_fixed, world to world, without stretch.
        matrix: the same with stretch and shear, where they were asked for; else ``rigid``.
        start: score of the initial alignment.
        rigid_score: score of ``rigid``.
        score: score of ``matrix``.
        distance_penalty: of ``rigid``, nats, for its distance from the initial alignment.
        rivals: all poses that climbed on the middle level, the best first.
    """

    rigid: Matrix
    matrix: Matrix
    start: float
    rigid_score: float
    score: float
    distance_penalty: float
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
    starts: int = 600,
    spacing: float = 5.0,
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
        starts: poses scored at first.
        spacing: voxel size of the coarse views in mm.

    Returns:
        The pose; whether it is better enough than the start, the caller decides.
    """
    coarse, middle, fine = _views_of((fixed, moving), fields_of_view, spacing)
    backward = coarse[1].tissue_extent < coarse[0].tissue_extent
    if backward:
        coarse, middle, fine = (views[::-1] for views in (coarse, middle, fine))
    # descriptors that are blind to noise: of volumes only, since generated pictures are placed
    # worse by them; on the finest level beside emission images only, which are noisy there as well
    volumes = fixed.spatial_dims == 3
    beside_emission = has_emission(fixed, moving)
    # a slice's emission image has few edges, so that descriptors say little of where it lies
    nats = POSE.structure_emission_2d if beside_emission and not volumes else None
    points = Points(coarse[0], POSE.coarse_points, seed=0, blind=volumes, structure_nats=nats)
    score = PointScore(points, coarse[1])
    found = [(pose[None], score) for pose in _best_of_many(score, starts)]
    on_fine = volumes and beside_emission
    rivals: list[Rival] = []
    for views, blind, level in ((middle, volumes, POSE.middle), (fine, on_fine, POSE.fine)):
        points = Points(views[0], level.points, seed=1, blind=blind, structure_nats=nats)
        climbed = [
            _climb_anew(points, views[1], pose, score.centre, steps=20, rate=level.rate)
            for pose, score in found
        ]
        climbed.sort(key=lambda one: float(one[1] - _distance_penalty(one[0])), reverse=True)
        found = [(pose, score) for pose, _, score in climbed[: level.kept]]
        rivals = rivals or [_rival(*one, backward=backward) for one in climbed]
    rigid, _, score = climbed[0]
    prior = _prior(beside_emission=beside_emission, volumes=volumes)
    rigid, values = _climb(score, rigid, steps=30, rate=0.6, prior=prior)
    rigid_score = float(values)
    best = rigid
    if affine:
        best, values = _climb(score, rigid, steps=40, rate=0.4, strain=True, prior=prior)
    with torch.no_grad():
        initial = PointScore(points, fine[1], room_mm=POSE.room_mm)
        start = float(initial(matrices_of(torch.zeros_like(rigid)))[0])
    matrices = [world_matrix(pose, score.centre) for pose in (rigid, best)]
    if backward:
        matrices = [inverse_affine(m) for m in matrices]
    far = float(_distance_penalty(rigid))
    return Pose(matrices[0], matrices[1], start, rigid_score, float(values), far, tuple(rivals))


def _rival(pose: Tensor, value: Tensor, score: PointScore, *, backward: bool) -> Rival:
    """A climbed pose as a map of the fixed image's world."""
    matrix = world_matrix(pose, score.centre)
    value = value - _distance_penalty(pose)
    return Rival(inverse_affine(matrix) if backward else matrix, float(value))


def _prior(*, beside_emission: bool, volumes: bool) -> float:
    """Weight of the prior on the initial alignment, nats."""
    if not beside_emission:
        return POSE.prior_nats
    return POSE.prior_nats_emission if volumes else POSE.prior_nats_emission_2d


def _views_of(
    images: tuple[Image, Image], fields_of_view: tuple[Tensor, Tensor], spacing: float
) -> tuple[list[View], ...]:
    """Both images on the coarse, the middle and the fine level."""
    levels = [(POSE.coarse_size, POSE.coarse_blur)]
    levels += [(level.size, level.blur) for level in (POSE.middle, POSE.fine)]
    views = [
        [
            make_view(image, view, spacing=size * spacing, blur_mm=blur * spacing)
            for image, view in zip(images, fields_of_view, strict=True)
        ]
        for size, blur in levels
    ]
    if images[0].spatial_dims == 2 and has_emission(*images):
        # that the scalp takes up nothing is most of what a slice of a PET or SPECT says
        views = [[replace(view, dark_is_doubtful=False) for view in level] for level in views]
    return tuple(views)


def _best_of_many(score: PointScore, starts: int) -> Tensor:
    """The poses that go on from the coarse level, after a climb of the best starts."""
    with torch.no_grad():
        poses = _start_poses(score, starts)
        values = torch.cat([score(matrices_of(part)) for part in poses.split(100)])
    poses = poses[_distinct(poses, values - _distance_penalty(poses), POSE.climbing)]
    poses, values = _climb(score, poses, steps=16, rate=2.5)
    best = _distinct(poses, values - _distance_penalty(poses), POSE.climbing_on)
    return poses[best[: POSE.climbing_on]]


def polished(
    fixed: Image, moving: Image, fields_of_view: tuple[Tensor, Tensor], matrix: Matrix
) -> Matrix:
    """A rigid pose that is about right, placed more exactly: sharper views, more points, no prior.

    Args:
        fixed: the reference.
        moving: the image that was placed.
        fields_of_view: `views.masked_field_of_view` of both.
        matrix: ``(4, 4)`` moving_from_fixed, rigid.

    Returns:
        ``(4, 4)`` moving_from_fixed, rigid.
    """
    views = [
        make_view(image, k, spacing=POLISH.spacing_mm, blur_mm=POLISH.blur_mm)
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


def _distance_penalty(poses: Tensor) -> Tensor:
    """The penalty of each pose's distance from the initial alignment, ``(P,)`` nats."""
    return POSE.distance_penalty * poses.norm(dim=1)


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


def _distinct(poses: Tensor, values: Tensor, count: int) -> list[int]:
    """The best poses that are not near each other, and the initial alignment (number 0)."""
    kept: list[int] = []
    for k in values.argsort(descending=True).tolist():
        if all(float((poses[k] - poses[j]).norm()) > POSE.distinct_mm for j in kept):
            kept.append(k)
        if len(kept) == count:
            break
    return [0, *[k for k in kept if k != 0]]


def _climb(
    score: PointScore,
    poses: Tensor,
    *,
    steps: int,
    rate: float,
    strain: bool = False,
    prior: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Gradient ascent of all poses at once; each keeps the best pose on its way.

    Args:
        score: what to climb.
        poses: where to begin, ``(P, n)``.
        steps: how often to step.
        rate: the first step, in the parameters' mm.
        strain: let the poses stretch and shear, under a penalty.
        prior: weight of the prior on the initial alignment, nats.

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
