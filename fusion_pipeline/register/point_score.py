"""The score of a pose: information and self-similarity at points.

Plain mutual information over a shrinking overlap runs away on partial fields of view. Five things
stop it here: points come from the image that shows less tissue, so that the overlap cannot shrink
by sliding it off; the information is corrected for the number of points that carry it; lost overlap
lowers the score; pairs of one image's air with the other's tissue count little, since such air may
be padding; and the structure around the points has to agree as well (MIND-SSC), which a muscle laid
on another muscle does not show.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.geometry import PointReader, inverse_affine, sample
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import dilated
from fusion_pipeline.losses import mind_ssc
from fusion_pipeline.register.settings import POSE
from fusion_pipeline.register.views import View

_INDEPENDENT_BINS = POSE.independent_bins * POSE.bins


class Points:
    """Points in and near the tissue of one view, and what the view shows there.

    Args:
        source: view that the points are drawn from.
        count: number of points.
        seed: of the points.
        blind: compare structure that stands out of the noise only; finds the position from afar
            where a CT shows little but noise in a muscle, and less exactly.
        structure_nats: weight of a unit of the descriptors' distance; None: as in the search.
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
        near = dilated(source.tissue, POSE.margin_mm / source.spacing) * (
            source.field_of_view > 0.5
        )
        where = (near[0, 0] > 0.5).nonzero()
        if len(where) == 0:
            where = torch.ones_like(near[0, 0]).nonzero()
        # drawn on the CPU, so that the points are the same on any device
        drawn = torch.randperm(len(where), generator=generator)[:count]
        # off the lattice: grid points that meet grid points make false peaks
        beside = torch.rand((len(drawn), where.shape[1]), generator=generator).to(where.device)
        chosen = where[drawn.to(where.device)] + beside - 0.5
        # neighbours are read from nearby memory
        chosen = chosen[drawn.argsort().to(where.device)]
        self.values = sample(source.values, chosen[None], fill=None)[0, 0].clamp(0, 1)
        self.weight = sample(source.field_of_view, chosen[None], fill=0.0)[0, 0]
        self.tissue = sample(source.tissue, chosen[None], mode="nearest", fill=0.0)[0, 0]
        self.blind = blind
        usual = POSE.structure_blind if blind else POSE.structure
        self.structure_nats = usual if structure_nats is None else structure_nats
        self.structure = PointReader(_structure(source, blind))(chosen)
        self.centre = source.centre()
        self.positions = source.world(chosen) - self.centre.to(chosen.device)


class PointScore:
    """How well the values and the structure at points of one view fit another, for many poses.

    Poses and their scores lie on the CPU, whose optimizer is faster with so few numbers; the points
    are read and compared where the views lie.

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
        d = points.positions.shape[1]
        source = points.source
        target = target.along(source, np.eye(d + 1) if pose is None else pose, room_mm)
        described = _structure(target, points.blind)
        self.points = points
        self.source_doubt = float(source.dark_is_doubtful)
        self.target_doubt = float(target.dark_is_doubtful)
        self.target = PointReader(
            torch.cat([target.values, target.field_of_view, target.tissue, described], 1)
        )
        device = points.positions.device
        inverse = torch.from_numpy(inverse_affine(target.affine)).float().to(device)
        self.turn, self.shift = inverse[:d, :d].T, inverse[:d, d]
        self.size = torch.tensor(self.target.shape).to(device)
        self.source_centre = points.centre.to(device)
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
        source = self.points
        d = source.positions.shape[1]
        moves = matrices.to(source.positions.device)
        world = torch.einsum("pab,nb->pna", moves[:, :, :d], source.positions)
        world = world + (moves[:, :, d] + self.source_centre)[:, None]
        voxels = world @ self.turn + self.shift
        poses, count = voxels.shape[:2]
        read = self.target(voxels.reshape(poses * count, d)).reshape(poses, count, -1)
        value, in_view, tissue = read[..., :3].unbind(-1)
        # fades over half a voxel, so that the score has a slope where points leave the image
        within = ((voxels + 0.5).clamp(0, 1) * (self.size - 0.5 - voxels).clamp(0, 1)).prod(-1)
        weight = source.weight * in_view * within
        doubtful = (1 - source.tissue) * tissue * self.source_doubt
        doubtful = doubtful + source.tissue * (1 - tissue) * self.target_doubt
        weight = weight * (1 - (1 - POSE.air_on_tissue) * doubtful)
        information = self._information(value.clamp(0, 1), weight)
        bias = 0.5 * _INDEPENDENT_BINS**2 / weight.sum(1).clamp_min(1.0)
        overlap = (weight * source.tissue).sum(1) / (source.weight * source.tissue).sum().clamp_min(
            1e-6
        )
        informed = (information - bias).clamp_min(0.0) * overlap.clamp(1e-3, 1.0)
        # what is out of view counts like any two unrelated points: losing overlap must not pay
        dissimilarity = (read[..., 3:] - source.structure).square().mean(-1)
        similarity = (weight * (self.unrelated - dissimilarity)).sum(
            1
        ) / source.weight.sum().clamp_min(1.0)
        return (informed + source.structure_nats * similarity).to(matrices.device)

    def _unrelated(self, described: Tensor, tissue: Tensor) -> Tensor:
        """Expected squared distance of the descriptors of points with nothing in common."""
        mine = self.points.structure.T
        inside = described[0, :, tissue[0, 0] > 0.5]
        if inside.shape[1] == 0:
            return mine.new_zeros(())
        spread = mine.var(1, correction=0) + inside.var(1, correction=0)
        return (spread + (mine.mean(1) - inside.mean(1)).square()).mean()

    def _information(self, value: Tensor, weight: Tensor) -> Tensor:
        """Mutual information in nats, ``(P,)``: linear shares in a smoothed joint histogram."""
        joint = _joint_histogram(self.points.values[None], value, weight)
        kernel = joint.new_tensor([0.25, 0.5, 0.25])
        kernel = (kernel[:, None] * kernel[None])[None, None]
        joint = F.conv2d(joint.reshape(-1, 1, POSE.bins, POSE.bins), kernel, padding=1)[:, 0]
        joint = joint / joint.sum((1, 2), keepdim=True).clamp_min(1e-6)
        return _entropy(joint.sum(1)) + _entropy(joint.sum(2)) - _entropy(joint.flatten(1))


def _joint_histogram(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Weights summed by the bins of both values, ``(1, N)``, ``(P, N)``, ``(P, N)``: ``(P, B²)``.

    A value is shared by the two bins beside it. On the CPU the shares are added one by one; a GPU
    would add them in any order, another one each time, so there a product of matrices sums them.
    """
    a, low_a = _shares(first)
    b, low_b = _shares(second)
    if weight.device.type != "cpu":
        rows = _in_bins(a, low_a) * weight[..., None]
        return (rows.transpose(1, 2) @ _in_bins(b, low_b)).flatten(1)
    joint = weight.new_zeros(len(weight), POSE.bins * POSE.bins)
    for i in (0, 1):
        for j in (0, 1):
            share = weight * (a if i else 1 - a) * (b if j else 1 - b)
            joint = joint.scatter_add(1, (low_a + i) * POSE.bins + low_b + j, share)
    return joint


def _in_bins(share: Tensor, low: Tensor) -> Tensor:
    """What each value gives to each bin, ``(P, N)`` to ``(P, N, B)``."""
    columns = torch.stack([low, low + 1], -1)
    return share.new_zeros(*share.shape, POSE.bins).scatter(
        -1, columns, torch.stack([1 - share, share], -1)
    )


def _shares(value: Tensor) -> tuple[Tensor, Tensor]:
    """How far between two bins a value lies, and the lower one."""
    position = value * (POSE.bins - 1)
    low = position.detach().floor().clamp(0, POSE.bins - 2)
    return position - low, low.long()


def _structure(view: View, blind: bool) -> Tensor:
    """MIND-SSC within the field of view, ``(1, C, *S)``."""
    floor = POSE.noise_floor if blind else 1e-3
    return mind_ssc(view.values, mask=(view.field_of_view > 0.5).float(), floor=floor)


def _entropy(p: Tensor) -> Tensor:
    return -(p * (p + 1e-8).log()).sum(1)
