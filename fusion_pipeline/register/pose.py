"""The rigid and affine stage: information and self-similarity at points, from many starts.

Plain mutual information over a shrinking overlap runs away on partial fields of view. Five things
stop it here: points come from the image that shows less tissue, so that the overlap cannot shrink
by sliding it off; the information is corrected for the number of points that carry it; lost overlap
costs; pairs of one image's air with the other's tissue count little, since such air may be padding;
and the structure around the points has to agree as well (MIND-SSC), which a muscle laid on another
muscle does not show.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import PointReader, apply_affine, inverse_affine, sample
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import dilated
from fusion_pipeline.losses import mind_ssc
from fusion_pipeline.register.views import View, emission, make_view

_BINS = 24
_SMOOTHED_BINS = 0.6 * _BINS  # bins that are independent after the histogram is smoothed
_MARGIN_MM = 10.0  # points lie in the tissue and so far around it
_AIR_ON_TISSUE = 0.1
_MM_PER_RADIAN = 50.0  # makes a step of the optimiser alike for angles and shifts
# nats per squared strain; of a volume less is seen, and strain takes up what does not fit
_STRAIN_PENALTY = {2: 1.0, 3: 10.0}
# Nats that a unit of the descriptors' distance is worth: of descriptors that are blind to noise and
# therefore further alike, and of the usual ones.
_STRUCTURE = {True: 10.0, False: 6.0}
_NOISE_FLOOR = 0.1
_FAR_COSTS = 0.003  # nats per mm (or 1.1°): of two equal places the headers' is likelier
# What it is worth, in nats, to be as near to the headers as they are usually right, rather than
# anywhere: λ p² / (p² + s²) (Geman and McClure). It decides where the score is flat, and pulls
# large moves less. A scanner that takes PET or SPECT takes the CT too: there headers are likelier.
_HEADERS_NATS = {False: 0.06, True: 0.3}
_HEADERS_MM = 6.0
_ROOM_MM = 20.0  # how far around its points a target is kept, on the finer levels
# Polish: spacing and blur of its views in mm (of an emission image: its own, more), and points
# beside an emission image and else. Little blur places sharp images more exactly, from near by.
_POLISH_MM, _POLISH_BLUR_MM = 2.0, 0.6
_POLISH_POINTS = {True: 50_000, False: 20_000}
# beside an emission image structure tells more than information does
_POLISH_STRUCTURE = {True: 20.0, False: 6.0}


@dataclass(frozen=True)
class Pose:
    """What the search found.

    Attributes:
        rigid: ``(d + 1, d + 1)`` moving_from_fixed, world to world, without stretch.
        matrix: the same with stretch and shear, where they were asked for; else ``rigid``.
        start: score of the headers.
        rigid_score: score of ``rigid``.
        score: score of ``matrix``.
        far: what ``rigid`` costs for being far from the headers' pose, by the prior of the search.
    """

    rigid: Matrix
    matrix: Matrix
    start: float
    rigid_score: float
    score: float
    far: float


class Points:
    """Points in and near the tissue of one view, and what the view shows there.

    Args:
        source: view that the points are drawn from.
        count: number of points.
        seed: of the points.
        blind: compare structure that stands out of the noise only; finds the place from afar where
            a CT shows little but noise in a muscle, and places it less exactly.
        structure_nats: what a unit of the descriptors' distance is worth; None: as in the search.
    """

    def __init__(
        self,
        source: View,
        count: int,
        seed: int,
        *,
        blind: bool = False,
        structure_nats: float | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.source = source
        near = dilated(source.tissue, _MARGIN_MM / source.spacing) * (source.known > 0.5)
        where = (near[0, 0] > 0.5).nonzero()
        if len(where) == 0:
            where = torch.ones_like(near[0, 0]).nonzero()
        drawn = torch.randperm(len(where), generator=generator)[:count]
        # off the lattice: grid points that meet grid points make false peaks
        chosen = where[drawn] + torch.rand((len(drawn), where.shape[1]), generator=generator) - 0.5
        chosen = chosen[drawn.argsort()]  # neighbours are read from one place of the memory
        self.values = sample(source.values, chosen[None], fill=None)[0, 0].clamp(0, 1)
        self.weight = sample(source.known, chosen[None], fill=0.0)[0, 0]
        self.tissue = sample(source.tissue, chosen[None], mode="nearest", fill=0.0)[0, 0]
        self.blind = blind
        self.structure_nats = _STRUCTURE[blind] if structure_nats is None else structure_nats
        self.structure = PointReader(_structure(source, blind))(chosen)
        self.centre = source.centre()
        self.places = source.world(chosen) - self.centre


class PointScore:
    """How well the values and the structure at points of one view fit another, for many poses.

    Args:
        points: of the source.
        target: view that is read at the mapped points.
        pose: ``(d + 1, d + 1)`` target_from_source, world to world, about which the poses that are
            asked for lie. Descriptors of structure turn with the axes that they are made along:
            the target's are made along the source's, after this pose.
        room_mm: how far beyond the source the target is kept; None: all of it.
    """

    def __init__(
        self,
        points: Points,
        target: View,
        *,
        pose: Matrix | None = None,
        room_mm: float | None = None,
    ) -> None:
        d = points.places.shape[1]
        source = points.source
        target = target.along(source, np.eye(d + 1) if pose is None else pose, room_mm)
        described = _structure(target, points.blind)
        self.points = points
        self.source_doubt = float(source.dark_is_doubtful)
        self.target_doubt = float(target.dark_is_doubtful)
        self.target = PointReader(
            torch.cat([target.values, target.known, target.tissue, described], 1)
        )
        self.voxel_from_world = torch.from_numpy(inverse_affine(target.affine))
        self.target_centre = target.centre()
        self.unrelated = self._unrelated(described, target.tissue)

    @property
    def centre(self) -> Tensor:
        """World mm about which poses turn, ``(d,)``."""
        return self.points.centre

    def __call__(self, matrices: Tensor) -> Tensor:
        """Score poses; higher is better, about 0 for unrelated images.

        Args:
            matrices: ``(P, d, d + 1)``, ``y = M[:, :d] (x − c) + c + M[:, d]`` in mm, c the centre.

        Returns:
            ``(P,)`` nats.
        """
        seen = self.points
        d = seen.places.shape[1]
        world = torch.einsum("pab,nb->pna", matrices[:, :, :d], seen.places)
        world = world + (matrices[:, :, d] + seen.centre)[:, None]
        inverse = self.voxel_from_world
        voxels = world @ inverse[:d, :d].T.float() + inverse[:d, d].float()
        poses, count = voxels.shape[:2]
        read = self.target(voxels.reshape(poses * count, d)).reshape(poses, count, -1)
        value, known, tissue = read[..., :3].unbind(-1)
        size = torch.tensor(self.target.shape)
        # fades over half a voxel, so that the score has a slope where points leave the image
        within = ((voxels + 0.5).clamp(0, 1) * (size - 0.5 - voxels).clamp(0, 1)).prod(-1)
        weight = seen.weight * known * within
        doubtful = (1 - seen.tissue) * tissue * self.source_doubt
        doubtful = doubtful + seen.tissue * (1 - tissue) * self.target_doubt
        weight = weight * (1 - (1 - _AIR_ON_TISSUE) * doubtful)
        information = self._information(value.clamp(0, 1), weight)
        bias = 0.5 * _SMOOTHED_BINS**2 / weight.sum(1).clamp_min(1.0)
        overlap = (weight * seen.tissue).sum(1) / (seen.weight * seen.tissue).sum().clamp_min(1e-6)
        informed = (information - bias).clamp_min(0.0) * overlap.clamp(1e-3, 1.0)
        # what is seen nowhere is as unlike as any two places: losing overlap must not pay
        unlike = (read[..., 3:] - seen.structure).square().mean(-1)
        alike = (weight * (self.unrelated - unlike)).sum(1) / seen.weight.sum().clamp_min(1.0)
        return informed + seen.structure_nats * alike

    def _unrelated(self, described: Tensor, tissue: Tensor) -> Tensor:
        """Expected squared distance of the descriptors of places with nothing in common."""
        mine = self.points.structure.T
        inside = described[0, :, tissue[0, 0] > 0.5]
        if inside.shape[1] == 0:
            return mine.new_zeros(())
        spread = mine.var(1, correction=0) + inside.var(1, correction=0)
        return (spread + (mine.mean(1) - inside.mean(1)).square()).mean()

    def _information(self, value: Tensor, weight: Tensor) -> Tensor:
        """Mutual information in nats, ``(P,)``: linear shares in a smoothed joint histogram."""
        a, low_a = _shares(self.points.values[None])
        b, low_b = _shares(value)
        joint = value.new_zeros(len(value), _BINS * _BINS)
        for i in (0, 1):
            for j in (0, 1):
                share = weight * (a if i else 1 - a) * (b if j else 1 - b)
                joint = joint.scatter_add(1, (low_a + i) * _BINS + low_b + j, share)
        kernel = joint.new_tensor([0.25, 0.5, 0.25])
        kernel = (kernel[:, None] * kernel[None])[None, None]
        joint = F.conv2d(joint.reshape(-1, 1, _BINS, _BINS), kernel, padding=1)[:, 0]
        joint = joint / joint.sum((1, 2), keepdim=True).clamp_min(1e-6)
        return _entropy(joint.sum(1)) + _entropy(joint.sum(2)) - _entropy(joint.flatten(1))


def _shares(value: Tensor) -> tuple[Tensor, Tensor]:
    """How far between two bins a value lies, and the lower one."""
    place = value * (_BINS - 1)
    low = place.detach().floor().clamp(0, _BINS - 2)
    return place - low, low.long()


def _structure(view: View, blind: bool) -> Tensor:
    """MIND-SSC of what is known, ``(1, C, *S)``."""
    floor = _NOISE_FLOOR if blind else 1e-3
    return mind_ssc(view.values, mask=(view.known > 0.5).float(), floor=floor)


def _entropy(p: Tensor) -> Tensor:
    return -(p * (p + 1e-8).log()).sum(1)


def find_pose(
    fixed: Image,
    moving: Image,
    known: tuple[Tensor, Tensor],
    *,
    affine: bool,
    starts: int = 600,
    spacing: float = 5.0,
) -> Pose:
    """Search the rigid (then affine) map between two images from many starts.

    Hundreds of poses up to 35° and 45 mm around the headers, and around the centres of mass laid on
    each other, are scored on coarse views; the best few climb; the best of those climb on finer
    views. The headers' own pose is always among those that climb. At last the winner climbs under
    a prior on the headers' error (maximum a posteriori), which keeps it where the images cannot
    tell places apart.

    Args:
        fixed: the reference.
        moving: the image to be placed.
        known: `views.known_region` of both.
        affine: whether the result may stretch and shear.
        starts: poses scored at first.
        spacing: voxel size of the coarse views in mm.

    Returns:
        The pose; it is the caller's to decide whether it is better enough than the start.
    """
    coarse, middle, fine = (
        [
            make_view(image, k, spacing=size * spacing, blur_mm=blur * spacing)
            for image, k in zip((fixed, moving), known, strict=True)
        ]
        for size, blur in ((1.0, 0.8), (0.6, 0.4), (0.4, 0.25))
    )
    backward = coarse[1].tissue_extent < coarse[0].tissue_extent
    if backward:
        coarse, middle, fine = (views[::-1] for views in (coarse, middle, fine))
    # generated pictures are placed worse by it; emission images are noisy on the finest level too
    noisy = fixed.spatial_dims == 3
    nuclear = emission(fixed, moving)
    score = PointScore(Points(coarse[0], 6000, seed=0, blind=noisy), coarse[1])
    with torch.no_grad():
        poses = _start_poses(score, starts)
        values = torch.cat([score(_matrices(part)) for part in poses.split(100)])
    poses = poses[_distinct(poses, values - _far(poses), 24)]
    poses, values = _climb(score, poses, steps=16, rate=2.5)
    poses = poses[_distinct(poses, values - _far(poses), 9)[:9]]
    found = [(pose[None], score) for pose in poses]
    levels = (
        (middle, noisy, 8000, 1.0, 2),
        (fine, noisy and nuclear, 12000, 0.3, 1),
    )
    for views, blind, count, rate, kept in levels:
        points = Points(views[0], count, seed=1, blind=blind)
        climbed = [
            _climb_anew(points, views[1], pose, score.centre, steps=20, rate=rate)
            for pose, score in found
        ]
        climbed.sort(key=lambda one: float(one[1] - _far(one[0])), reverse=True)
        found = [(pose, score) for pose, _, score in climbed[:kept]]
    rigid, _, score = climbed[0]
    prior = _HEADERS_NATS[nuclear]
    rigid, values = _climb(score, rigid, steps=30, rate=0.6, prior=prior)
    rigid_score = float(values)
    best, best_score = rigid, rigid_score
    if affine:
        best, values = _climb(score, rigid, steps=40, rate=0.4, strain=True, prior=prior)
        best_score = float(values)
    with torch.no_grad():
        headers = PointScore(points, fine[1], room_mm=_ROOM_MM)
        start = float(headers(_matrices(torch.zeros_like(rigid)))[0])
    matrices = [_world_matrix(pose, score.centre) for pose in (rigid, best)]
    if backward:
        matrices = [inverse_affine(m) for m in matrices]
    return Pose(matrices[0], matrices[1], start, rigid_score, best_score, float(_far(rigid)))


def polished(fixed: Image, moving: Image, known: tuple[Tensor, Tensor], matrix: Matrix) -> Matrix:
    """A rigid pose that is about right, placed more exactly: sharper views, more points, no prior.

    Args:
        fixed: the reference.
        moving: the image that was placed.
        known: `views.known_region` of both.
        matrix: ``(4, 4)`` moving_from_fixed, rigid.

    Returns:
        ``(4, 4)`` moving_from_fixed, rigid.
    """
    views = [
        make_view(image, k, spacing=_POLISH_MM, blur_mm=_POLISH_BLUR_MM)
        for image, k in zip((fixed, moving), known, strict=True)
    ]
    backward = views[1].tissue_extent < views[0].tissue_extent
    if backward:
        views, matrix = views[::-1], inverse_affine(matrix)
    nuclear = emission(fixed, moving)
    worth = _POLISH_STRUCTURE[nuclear]
    points = Points(views[0], _POLISH_POINTS[nuclear], seed=2, structure_nats=worth)
    score = PointScore(points, views[1], pose=matrix, room_mm=_ROOM_MM)
    pose, _ = _climb(score, _parameters(matrix, score.centre), steps=20, rate=0.3)
    out = _world_matrix(pose, score.centre)
    return inverse_affine(out) if backward else out


def pose_parameters(d: int) -> tuple[int, int]:
    """How many numbers turn and strain: 1 and 3 in 2D, 3 and 6 in 3D; d more shift."""
    return d * (d - 1) // 2, d * (d + 1) // 2


def _start_poses(score: PointScore, count: int) -> Tensor:
    """Random poses, denser near the middle: half around the headers, half around the centres."""
    d = len(score.centre)
    turns, strains = pose_parameters(d)
    generator = torch.Generator().manual_seed(0)
    extent = float(score.points.places.abs().max()) * 2
    poses = torch.zeros(count, turns + d + strains)
    turn, shift = math.radians(35.0) * _MM_PER_RADIAN, min(45.0, 0.4 * extent)
    reach = torch.tensor([turn] * turns + [shift] * d)
    unit = torch.rand(count, turns + d, generator=generator) * 2 - 1
    poses[:, : turns + d] = unit * reach * torch.rand(count, 1, generator=generator).sqrt()
    between = score.target_centre - score.centre
    poses[count // 2 :, turns : turns + d] += between
    poses[:2] = 0.0
    poses[1, turns : turns + d] = between
    return poses


def _far(poses: Tensor) -> Tensor:
    """What a pose costs for being far from the headers', ``(P,)`` nats."""
    return _FAR_COSTS * poses.norm(dim=1)


def _climb_anew(
    points: Points, target: View, pose: Tensor, centre: Tensor, *, steps: int, rate: float
) -> tuple[Tensor, Tensor, PointScore]:
    """Climb from one pose on other views, the target's structure seen from that pose.

    Returns:
        The pose, its score ``(1,)``, and what scored it.
    """
    matrix = _world_matrix(pose, centre)
    score = PointScore(points, target, pose=matrix, room_mm=_ROOM_MM)
    poses, values = _climb(score, _recentred(pose, centre, score.centre), steps=steps, rate=rate)
    return poses, values, score


def _distinct(poses: Tensor, values: Tensor, count: int) -> list[int]:
    """The best poses that are not near each other, and the headers' own (number 0)."""
    kept: list[int] = []
    for k in values.argsort(descending=True).tolist():
        if all(float((poses[k] - poses[j]).norm()) > 8.0 for j in kept):
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
    """Gradient ascent of all poses at once; each keeps the best place it has been.

    Args:
        score: what to climb.
        poses: where to begin, ``(P, n)``.
        steps: how often to step.
        rate: the first step, in the parameters' mm.
        strain: let the poses stretch and shear, at a price.
        prior: what the headers' nearness is worth, nats.

    Returns:
        The poses, and their scores without the prior, ``(P,)``.
    """
    d = len(score.centre)
    strains = pose_parameters(d)[1]
    current = poses.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([current], lr=rate)
    best, best_values = poses.clone(), torch.full((len(poses),), -math.inf)
    scores = best_values
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.zero_grad()
        values = score(_matrices(current))
        if strain:
            amount = current[:, -strains:] / _MM_PER_RADIAN
            values = values - _STRAIN_PENALTY[d] * amount.square().sum(1)
        squared = current.square().sum(1)
        unlikely = prior * squared / (squared + _HEADERS_MM**2)
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


def _matrices(poses: Tensor) -> Tensor:
    """Parameters (turns, shifts, strains; all in mm-like units) to ``(P, d, d + 1)``."""
    d = 2 if poses.shape[1] == 6 else 3
    turns, _ = pose_parameters(d)
    angles = poses[:, :turns] / _MM_PER_RADIAN
    strain = poses[:, turns + d :] / _MM_PER_RADIAN
    rows, columns = torch.triu_indices(d, d, 1)
    skew = poses.new_zeros(len(poses), d, d)
    if d == 2:
        skew[:, 1, 0], skew[:, 0, 1] = angles[:, 0], -angles[:, 0]
    else:
        x, y, z = angles.unbind(1)
        for (a, b), angle in (((2, 1), x), ((0, 2), y), ((1, 0), z)):
            skew[:, a, b], skew[:, b, a] = angle, -angle
    symmetric = torch.diag_embed(strain[:, :d])
    symmetric[:, rows, columns] = symmetric[:, columns, rows] = strain[:, d:]
    linear = torch.linalg.matrix_exp(skew) @ torch.linalg.matrix_exp(symmetric)
    return torch.cat([linear, poses[:, turns : turns + d, None]], 2)


def _recentred(poses: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The same maps with another centre: only the shift changes."""
    d = len(old)
    turns, _ = pose_parameters(d)
    linear = _matrices(poses)[:, :, :d]
    out = poses.clone()
    out[:, turns : turns + d] += (linear @ (new - old)) - (new - old)
    return out


def _parameters(matrix: Matrix, centre: Tensor) -> Tensor:
    """The parameters ``(1, n)`` of a rigid 3D map: the inverse of `_world_matrix`."""
    c = centre.double().numpy()
    turn = Rotation.from_matrix(matrix[:3, :3]).as_rotvec() * _MM_PER_RADIAN
    shift = apply_affine(matrix, c) - c
    strains = np.zeros(pose_parameters(3)[1])
    return torch.from_numpy(np.concatenate([turn, shift, strains])[None]).float()


def _world_matrix(pose: Tensor, centre: Tensor) -> Matrix:
    """One pose as a homogeneous world matrix in float64."""
    m = _matrices(pose.double())[0].numpy()
    d = len(centre)
    c = centre.double().numpy()
    out = np.eye(d + 1)
    out[:d, :d] = m[:, :d]
    out[:d, d] = m[:, d] + c - m[:, :d] @ c
    return out
