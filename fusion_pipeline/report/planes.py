"""Where the report looks: planes of the world, in radiological convention.

Convention:
    - the planes are those of the RAS world, not of the voxel grid, oblique or not
    - axial: from the feet, the patient's right on the left, anterior on top
    - coronal: from the front, the patient's right on the left, superior on top
    - sagittal: from the left, anterior on the left, superior on top
    - a 2D picture keeps its own column and row, and has no letters
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine, inverse_affine, sample
from fusion_pipeline.geometry.affines import Matrix

Pixels = npt.NDArray[np.float32]

_MARGIN_MM = 8.0
# name: world axis of the columns, world axis of the rows, letters left, right, top, bottom.
# Columns and rows both run against their axis: from right, anterior or superior downwards.
_PLANES_3D = {
    "axial": (0, 1, "RLAP"),
    "coronal": (0, 2, "RLSI"),
    "sagittal": (1, 2, "APSI"),
}
_PLANES_2D = {"slice": (0, 1, "")}


@dataclass(frozen=True)
class Plane:
    """A picture's pixels in the world.

    Attributes:
        name: axial, coronal, sagittal, or slice in 2D.
        points: ``(H, W, d)`` RAS mm of each pixel.
        column_axis: world axis along the columns (they run from its high end to its low end).
        row_axis: world axis along the rows, likewise.
        mm_per_pixel: the same along both.
        letters: at the left, right, top and bottom edge; empty in 2D.
    """

    name: str
    points: Matrix
    column_axis: int
    row_axis: int
    mm_per_pixel: float
    letters: str

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.points.shape[0], self.points.shape[1]


@dataclass(frozen=True)
class Content:
    """A thinned copy of an image's foreground.

    Attributes:
        points: ``(n, d)`` RAS mm.
        values: ``(n,)`` intensities.
    """

    points: Matrix
    values: Pixels


def planes_through(
    point: Sequence[float] | Matrix, low: Matrix, high: Matrix, *, pixels: int
) -> tuple[Plane, ...]:
    """The planes through a point of the world.

    Args:
        point: ``(d,)`` RAS mm.
        low: ``(d,)`` lower corner of the box to show, mm.
        high: ``(d,)`` upper corner.
        pixels: length of each picture's longer side.

    Returns:
        Axial, coronal and sagittal in 3D; one in 2D.
    """
    planes = []
    for name, (a, b, letters) in (_PLANES_3D if len(low) == 3 else _PLANES_2D).items():
        step = float(max(high[a] - low[a], high[b] - low[b])) / (pixels - 1)
        columns = high[a] - step * np.arange(int((high[a] - low[a]) / step + 1e-6) + 1)
        rows = high[b] - step * np.arange(int((high[b] - low[b]) / step + 1e-6) + 1)
        points = np.empty((len(rows), len(columns), len(low)))
        points[...] = np.asarray(point)
        points[..., a] = columns[None, :]
        points[..., b] = rows[:, None]
        planes.append(Plane(name, points, a, b, step, letters))
    return tuple(planes)


def read(array: Tensor, affine: Matrix, points: Matrix) -> Pixels:
    """Read an image at points of the world, linearly.

    Args:
        array: ``(1, *S)``.
        affine: ``(d + 1, d + 1)`` world_from_voxel.
        points: ``(H, W, d)`` RAS mm.

    Returns:
        ``(H, W)`` float32; NaN outside the image.
    """
    voxels = apply_affine(inverse_affine(affine), points)
    d = points.shape[-1]
    flat = torch.from_numpy(voxels.reshape(1, -1, *[1] * (d - 1), d))
    values = sample(array[None].float(), flat, fill=float("nan"))
    return values.reshape(points.shape[:-1]).numpy()


def coarse_content(image: Image, longest: int = 48) -> Content:
    """The foreground of an image, thinned: enough to choose slices and to average over the body.

    Args:
        image: any image.
        longest: samples along each axis at most.

    Returns:
        Points and values above a low threshold; all of them where nothing stands out.
    """
    # stays away from the first voxels of a stride, so that borders count the same at both ends
    cuts = [slice((n - 1) % -(-n // longest) // 2, None, -(-n // longest)) for n in image.shape]
    values = image.array[0][tuple(cuts)].float().numpy()
    index = np.meshgrid(
        *[np.arange(n)[cut] for n, cut in zip(image.shape, cuts, strict=True)], indexing="ij"
    )
    points = apply_affine(image.affine, np.stack(index, axis=-1))
    low, high = np.percentile(values, [1, 99.5])
    threshold = -300.0 if image.units == "HU" else low + 0.15 * (high - low)
    body = values > threshold
    if not body.any():
        body = np.ones_like(body)
    return Content(points[body], values[body])


def content_box(image: Image) -> tuple[Matrix, Matrix]:
    """The box of the world to show: the image's foreground and a margin, within its field of view.

    Returns:
        Lower and upper corner, ``(d,)`` each, RAS mm.
    """
    points = coarse_content(image).points
    margin = _MARGIN_MM if image.spatial_dims == 3 else 0.02 * max(image.shape)
    # a hair inside, so that rounding leaves no empty rim
    ends = [(-0.49, n - 0.51) for n in image.shape]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, len(ends))
    world = apply_affine(image.affine, corners)
    low = np.maximum(points.min(0) - margin, world.min(0))
    high = np.minimum(points.max(0) + margin, world.max(0))
    return low, high


def busiest_point(points: Matrix) -> Matrix:
    """The point whose planes each cut the most content, away from the ends.

    Each axis is chosen by itself: of two legs, the sagittal plane takes one and not the gap.

    Args:
        points: ``(n, d)`` RAS mm, evenly strewn over the content.

    Returns:
        ``(d,)``.
    """
    chosen = []
    for axis in range(points.shape[1]):
        low, high = np.percentile(points[:, axis], [20, 80])
        counts, edges = np.histogram(points[:, axis], bins=12, range=(low, max(high, low + 1e-3)))
        best = int(np.argmax(counts))
        chosen.append((edges[best] + edges[best + 1]) / 2)
    return np.asarray(chosen)


def hottest_point(points: Matrix, values: Pixels, radius_mm: float = 12.0) -> Matrix:
    """The middle of the hottest spot, away from the ends of the content.

    Args:
        points: ``(n, d)`` RAS mm.
        values: ``(n,)`` uptake.
        radius_mm: how far around the peak to average.

    Returns:
        ``(d,)``.
    """
    low, high = np.percentile(points, [8, 92], axis=0)
    inside = ((points >= low) & (points <= high)).all(1)
    points, values = (points[inside], values[inside]) if inside.any() else (points, values)
    peak = points[int(np.argmax(values))]
    near = np.linalg.norm(points - peak, axis=1) <= radius_mm
    weights = np.clip(values[near], 0, None) + 1e-6
    return np.asarray((points[near] * weights[:, None]).sum(0) / weights.sum())
