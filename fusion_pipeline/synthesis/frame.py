"""The lattice on which a body is drawn: coordinates in mm, and shapes as signed distances."""

import copy
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from fusion_pipeline.geometry import identity_points
from fusion_pipeline.synthesis.noise import smooth_noise, uniform

_MARGIN = 1e-3
# mm by which a box is taken larger than asked: four voxels of a coarse lattice
_REACH = 4.0


class Tissue(IntEnum):
    """The labels of a body label map."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    MUSCLE_B = 4
    MUSCLE_C = 5
    COMPACT_BONE = 6
    MARROW = 7
    SPONGY_BONE = 8
    BLOOD = 9
    CSF = 10
    GREY = 11
    WHITE = 12
    DEEP_GREY = 13
    EYE = 14
    LENS = 15
    CAVITY = 16
    LUNG = 17
    LIVER = 18
    SPLEEN = 19
    KIDNEY = 20
    BOWEL = 21
    TUMOUR = 22
    NECROSIS = 23
    DISC = 24
    HEART = 25
    URINE = 26
    DURA = 27
    MUCOSA = 28


class Frame:
    """Patient coordinates of every voxel, bent a little, and shapes in them.

    Convention:
        - ``x`` to the patient's right, ``y`` to the front, ``z`` up; mm, the body's centre at 0
        - a shape is a signed distance in mm along the ray from its centre, negative inside

    Args:
        points: ``(*S, 3)`` mm; of a 2D lattice too (a slice of the body).
        spacing: voxel size along each of the lattice's axes in mm.
        generator: the randomness.
        bend: mm by which the coordinates wander, so that no two bodies are alike.
    """

    def __init__(
        self,
        points: Tensor,
        spacing: Sequence[float],
        generator: torch.Generator,
        bend: float = 4.0,
    ) -> None:
        self.shape = tuple(points.shape[:-1])
        self.spacing = tuple(float(s) for s in spacing)
        self.generator = generator
        origin = points[(0,) * len(self.shape)]
        ends = [
            points[tuple(n - 1 if a == b else 0 for b in range(len(self.shape)))]
            for a, n in enumerate(self.shape)
        ]
        self._axes = torch.stack(
            [(end - origin) / (n - 1) for end, n in zip(ends, self.shape, strict=True)]
        )
        self.x, self.y, self.z = (p.contiguous() for p in points.unbind(-1))
        if bend > 0:
            for size, share in ((90.0, 1.0), (35.0, 0.3)):
                shift = bend * share * self.noises(size, 3)
                self.x, self.y, self.z = self.x + shift[0], self.y + shift[1], self.z + shift[2]

    def part(
        self, low: Sequence[float], high: Sequence[float]
    ) -> tuple["Frame", tuple[slice, ...]]:
        """The smallest box of the lattice that holds a box of the patient, as views.

        Args:
            low: least x, y, z in mm.
            high: largest x, y, z in mm.

        Returns:
            A frame of that box (empty where the lattice does not show it), and its slices.
        """
        step = 4
        coarse = tuple(slice(None, None, step) for _ in self.shape)
        held = torch.ones_like(self.x[coarse], dtype=torch.bool)
        for place, below, above in zip((self.x, self.y, self.z), low, high, strict=True):
            held &= (place[coarse] > below - _REACH) & (place[coarse] < above + _REACH)
        slices = []
        for axis, size in enumerate(self.shape):
            hits = torch.nonzero(held.any(dim=[a for a in range(held.ndim) if a != axis]))
            first, last = (int(hits.min()), int(hits.max())) if len(hits) else (0, -1)
            slices.append(slice(max(0, (first - 1) * step), min(size, (last + 1) * step + 1)))
        box = tuple(slices)
        sub = copy.copy(self)
        sub.x, sub.y, sub.z = self.x[box], self.y[box], self.z[box]
        sub.shape = tuple(sub.x.shape)
        return sub, box

    def noises(self, size: float, count: int) -> Tensor:
        """Independent smooth random fields with blobs of ``size`` mm, ``(count, *S)``."""
        knots = [max(1.0, size / s) for s in self.spacing]
        return smooth_noise(self.shape, knots, self.generator, count)

    def noise(self, size: float) -> Tensor:
        """One smooth random field with blobs of ``size`` mm, ``(*S)``."""
        return self.noises(size, 1)[0]

    def number(self, low: float, high: float) -> float:
        """A random number."""
        return uniform(self.generator, low, high)

    def voxels_of(self, vectors: Tensor) -> Tensor:
        """Vectors of the patient, ``(*S, 3)`` mm, as steps on the lattice, ``(*S, d)`` voxels."""
        return vectors @ torch.linalg.pinv(self._axes)

    def ellipsoid(self, centre: Sequence[float], radii: Sequence[float]) -> Tensor:
        """Signed distance to an ellipsoid along the ray from its centre."""
        u, v, w = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        return _ray(u, v, w, radii)

    def pair(self, centre: Sequence[float], radii: Sequence[float]) -> Tensor:
        """The same ellipsoid on both sides of the body."""
        u, v, w = self.x.abs() - centre[0], self.y - centre[1], self.z - centre[2]
        return _ray(u, v, w, radii)

    def column(
        self, centre: tuple[Tensor | float, Tensor | float], radii: Sequence[float]
    ) -> Tensor:
        """Signed distance to an elliptic cylinder along z; the centre may move with z."""
        u, v = self.x - centre[0], self.y - centre[1]
        length = torch.sqrt(u * u + v * v + _MARGIN)
        unit = torch.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + _MARGIN**2)
        return length * (1.0 - 1.0 / unit)

    def tube(self, start: Sequence[float], stop: Sequence[float], radius: float) -> Tensor:
        """Signed distance to a straight rod with round ends, on both sides of the body."""
        side = [stop[i] - start[i] for i in range(3)]
        u, v, w = self.x.abs() - start[0], self.y - start[1], self.z - start[2]
        along = ((u * side[0] + v * side[1] + w * side[2]) / sum(s * s for s in side)).clamp(0, 1)
        u, v, w = u - along * side[0], v - along * side[1], w - along * side[2]
        return torch.sqrt(u * u + v * v + w * w) - radius


def _ray(u: Tensor, v: Tensor, w: Tensor, radii: Sequence[float]) -> Tensor:
    """``|p| (1 − 1 / |p / r|)``: how far a point lies beyond an ellipsoid, along its ray."""
    length = torch.sqrt(u * u + v * v + w * w + _MARGIN)
    unit = torch.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (w / radii[2]) ** 2 + _MARGIN**2)
    return length * (1.0 - 1.0 / unit)


def blend(first: Tensor, second: Tensor, width: float) -> Tensor:
    """Union of two shapes with a smooth seam of ``width`` mm."""
    h = (0.5 + 0.5 * (second - first) / width).clamp(0, 1)
    return torch.lerp(second, first, h) - width * h * (1 - h)


def slab_points(
    shape: Sequence[int], spacing: Sequence[float], matrix: Tensor, centre: Sequence[float]
) -> Tensor:
    """Patient coordinates of a lattice: ``p = matrix @ (voxel − middle) · spacing + centre``.

    Args:
        shape: spatial shape, 2 or 3 numbers.
        spacing: mm per voxel along each axis.
        matrix: ``(3, d)`` orthonormal columns: the direction of each lattice axis in the patient.
        centre: where the middle of the lattice lies in the patient, mm.

    Returns:
        ``(*shape, 3)``.
    """
    middle = (torch.tensor(list(shape), dtype=torch.float32) - 1) / 2
    offsets = (identity_points(shape) - middle) * torch.tensor([float(s) for s in spacing])
    return offsets @ matrix.T.float() + torch.tensor([float(c) for c in centre])
