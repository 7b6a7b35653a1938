"""A stack of planar contours as one solid: how deep a point lies in it, in mm."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial import cKDTree
from skimage.measure import grid_points_in_poly

from fusion_pipeline.geometry.affines import Matrix

_ONE_PLANE_MM = 0.05  # heights that differ by less are one plane: half of what TPS write (0.1 mm)
_HOLE = 1.9  # steps between two planes from which on what lies between is empty
_NODES = 256  # along the longer side of a plane; distances are linear between them
_MARGIN = 4  # nodes around the contours
_BAND = 4  # nodes around an outline where distances are exact
_DENSE = 8  # points of the outline for each step of the nodes


@dataclass(frozen=True)
class Solid:
    """Signed distances to the outlines of parallel planes, linear in and between the planes.

    Between two planes that is shape-based interpolation; half a step beyond the last one the
    solid ends, and so it does where planes are missing.

    Attributes:
        axes: ``(3, 3)`` rows: two directions in the plane, and the normal.
        origin: of the nodes along the three axes, mm.
        step: mm between the nodes in the plane.
        heights: of the planes along the normal, mm, ascending.
        distances: ``(P, V, U)`` mm, positive inside.

    References:
        Raya and Udupa, "Shape-based interpolation of multidimensional objects", IEEE TMI 1990.
    """

    axes: Matrix
    origin: Matrix
    step: float
    heights: Matrix
    distances: npt.NDArray[np.float32]

    @classmethod
    def of(cls, contours: Sequence[Matrix], thickness: float) -> "Solid":
        """The solid of closed contours; where they overlap in a plane, even-odd.

        Args:
            contours: ``(n, 3)`` mm each, three points or more, in parallel planes.
            thickness: of a slice in mm, for a single plane.
        """
        normal = _normal(max(contours, key=lambda c: float(np.linalg.norm(_area(c)))))
        axes = _axes(normal)
        flat = [contour @ axes.T for contour in contours]
        every = np.concatenate(flat)
        low, high = every.min(0), every.max(0)
        step = max(float((high - low)[:2].max()) / _NODES, 1e-3)
        origin = low - _MARGIN * step
        shape = tuple(int(n) for n in np.ceil((high - low)[:2] / step) + 2 * _MARGIN + 1)
        planes = _planes(flat)
        heights = np.array([height for height, _ in planes])
        gaps = np.diff(heights)
        pitch = float(gaps.min()) if len(gaps) else thickness
        distances = [_distances(some, origin, step, shape) for _, some in planes]
        full = list(_with_empty(heights, distances, pitch))
        return cls(
            axes,
            origin,
            step,
            np.array([height for height, _ in full]),
            np.stack([one for _, one in full]),
        )

    def depth(self, points: Matrix) -> Matrix:
        """How deep points lie inside, mm; negative outside.

        Args:
            points: ``(n, 3)`` mm.
        """
        u, v, h = points @ self.axes.T[:, [0]], points @ self.axes.T[:, [1]], points @ self.axes[2]
        index = np.stack(
            [
                np.interp(h, self.heights, np.arange(len(self.heights))),
                (v[:, 0] - self.origin[1]) / self.step,
                (u[:, 0] - self.origin[0]) / self.step,
            ]
        )
        return np.asarray(map_coordinates(self.distances, index, order=1, mode="nearest"))


def _area(contour: Matrix) -> Matrix:
    """Twice the area as a vector along the normal."""
    around = contour - contour.mean(0)
    return np.asarray(np.cross(around, np.roll(around, -1, axis=0)).sum(0))


def _normal(contour: Matrix) -> Matrix:
    """Of length 1, pointing where its largest component is positive."""
    area = _area(contour)
    area = area / np.linalg.norm(area)
    return np.asarray(area * np.sign(area[np.argmax(np.abs(area))]))


def _axes(normal: Matrix) -> Matrix:
    """Two directions in the plane and the normal, as rows."""
    other = np.eye(3)[(int(np.argmax(np.abs(normal))) + 1) % 3]
    first = other - (other @ normal) * normal
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first), normal])


def _planes(flat: Sequence[Matrix]) -> list[tuple[float, list[Matrix]]]:
    """Contours by their height, ascending."""
    planes: list[tuple[float, list[Matrix]]] = []
    for contour in sorted(flat, key=lambda c: float(c[:, 2].mean())):
        height = float(contour[:, 2].mean())
        if planes and height - planes[-1][0] < _ONE_PLANE_MM:
            planes[-1][1].append(contour[:, :2])
        else:
            planes.append((height, [contour[:, :2]]))
    return planes


def _distances(
    contours: Sequence[Matrix], origin: Matrix, step: float, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Signed distance ``(V, U)`` of the nodes of a plane to its outlines."""
    inside = np.zeros(shape, bool)
    for contour in contours:
        inside ^= grid_points_in_poly(shape, (contour - origin[:2]) / step)
    # to the nearest node on the other side: exact to a step, which is enough far away
    away = np.maximum(distance_transform_edt(inside), distance_transform_edt(~inside))
    away = (away - 0.5) * step
    near = np.argwhere(away < _BAND * step)
    outline = np.concatenate([_dense(contour, step / _DENSE) for contour in contours])
    away[tuple(near.T)] = cKDTree(outline).query(near * step + origin[:2])[0]
    return np.where(inside, away, -away).T.astype(np.float32)


def _dense(contour: Matrix, step: float) -> Matrix:
    """The closed outline as points that lie at most ``step`` apart."""
    ends = np.roll(contour, -1, axis=0)
    counts = np.ceil(np.linalg.norm(ends - contour, axis=1) / step).astype(int).clip(1)
    start, stop = np.repeat(contour, counts, 0), np.repeat(ends, counts, 0)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    share = (np.arange(len(first)) - first) / np.repeat(counts, counts)
    return np.asarray(start + share[:, None] * (stop - start))


def _with_empty(
    heights: Matrix, distances: Sequence[npt.NDArray[np.float32]], pitch: float
) -> Iterator[tuple[float, npt.NDArray[np.float32]]]:
    """The planes, and empty ones a step beyond the ends and around what is missing.

    The mirrored distance of the neighbour lets the solid end half-way.
    """
    yield heights[0] - pitch, -np.abs(distances[0])
    for n, (height, one) in enumerate(zip(heights, distances, strict=True)):
        yield height, one
        gap = float(heights[n + 1] - height) if n + 1 < len(heights) else np.inf
        if gap < _HOLE * pitch:
            continue
        if gap < (2 + 0.1) * pitch:
            yield height + gap / 2, -np.minimum(np.abs(one), np.abs(distances[n + 1]))
            continue
        yield height + pitch, -np.abs(one)
        if n + 1 < len(heights):
            yield heights[n + 1] - pitch, -np.abs(distances[n + 1])


__all__ = ["Solid"]
