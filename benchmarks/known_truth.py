"""Registration cases with known truth: one image of an aligned pair, moved by a known map.

The map goes from the fixed world to the moved world, ``phi(x) = A (x + d(x))`` in mm: d is a smooth
random deformation, A a rigid or affine matrix about the centre of the field of view. The moved
image is the original one read at ``phi^-1``, in one linear interpolation, cut to the fixed image's
grid with padding outside, and given 1.5 % noise: with an odd seed in the padding too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage as ndi

from fusion_pipeline.geometry import apply_affine, rigid_matrix

Severity = Literal["rigid", "mild", "strong", "far", "still"]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranges:
    """How far a severity moves an image: degrees, mm, share of size, mm of elastic, its width."""

    rotation: tuple[float, float]
    translation: tuple[float, float]
    scaling: float
    elastic: tuple[float, float]
    sigma: float


RANGES: dict[Severity, Ranges] = {
    "rigid": Ranges((5, 15), (8, 20), 0.0, (0, 0), 18),
    "mild": Ranges((1, 4), (2, 5), 0.0, (3, 5), 12),
    "strong": Ranges((8, 20), (10, 25), 0.08, (6, 12), 18),
    "far": Ranges((15, 30), (20, 40), 0.0, (0, 0), 18),
    "still": Ranges((0, 0), (0, 0), 0.0, (0, 0), 18),
}


@dataclass(frozen=True)
class KnownMap:
    """A known map of the fixed world to the moved world, RAS mm."""

    matrix: Array
    field: Array
    grid_from_world: Array

    def __call__(self, points: npt.ArrayLike) -> Array:
        """Map points ``(..., 3)`` of the fixed world."""
        p = np.asarray(points, dtype=np.float64)
        return apply_affine(self.matrix, p + self._shift(self.field, p))

    def inverse(self, points: npt.ArrayLike) -> Array:
        """Map points ``(..., 3)`` of the moved world back, to 0.01 mm."""
        q = apply_affine(np.linalg.inv(self.matrix), points)
        x = q.copy()
        for _ in range(25):
            before, x = x, q - self._shift(self.field, x)
            if np.abs(x - before).max() < 1e-3:  # mm; no further step moves it by more
                break
        return x

    def _shift(self, field: Array, points: Array) -> Array:
        voxels = np.moveaxis(apply_affine(self.grid_from_world, points), -1, 0)
        return np.stack(
            [ndi.map_coordinates(c, voxels, order=1, mode="nearest") for c in field], axis=-1
        )


def known_map(
    seed: int, severity: Severity | Ranges, affine: Array, shape: tuple[int, ...]
) -> KnownMap:
    """Draw a map for a fixed lattice.

    Args:
        seed: same seed, same map.
        severity: how far: one of `RANGES`, or ranges of one's own.
        affine: ``(4, 4)`` world_from_voxel of the fixed image.
        shape: its spatial shape.
    """
    rng = np.random.default_rng(seed)
    ranges = severity if isinstance(severity, Ranges) else RANGES[severity]
    centre = apply_affine(affine, (np.asarray(shape) - 1) / 2)
    axis = _unit(rng)
    rotation = axis * rng.uniform(*ranges.rotation)
    translation = _unit(rng) * rng.uniform(*ranges.translation)
    matrix = rigid_matrix(rotation, translation, centre)
    if ranges.scaling:
        stretch = np.eye(4)
        stretch[:3, :3] = np.diag(rng.uniform(1 - ranges.scaling, 1 + ranges.scaling, 3))
        stretch[:3, 3] = centre - stretch[:3, :3] @ centre
        matrix = matrix @ stretch
    # the deformation lives on a 4 mm lattice with a wide margin
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    corners = apply_affine(affine, ends)
    low, high = corners.min(0) - 40, corners.max(0) + 40
    grid = np.diag([4.0, 4.0, 4.0, 1.0])
    grid[:3, 3] = low
    size = tuple(np.ceil((high - low) / 4).astype(int))
    noise = [ndi.gaussian_filter(rng.standard_normal(size), ranges.sigma / 4) for _ in range(3)]
    field = np.stack(noise)
    inner = tuple(slice(10, -10) for _ in range(3))
    peak = np.linalg.norm(field[(slice(None), *inner)], axis=0).max()
    field *= rng.uniform(*ranges.elastic) / peak
    return KnownMap(matrix, field, np.linalg.inv(grid))


def moved_image(
    image: Array,
    image_affine: Array,
    truth: Callable[[Array], Array] | KnownMap,
    target: tuple[Array, tuple[int, ...]],
    *,
    outside: float,
    seed: int,
) -> Array:
    """The image after the map, on the target lattice.

    Args:
        image: ``(i, j, k)``.
        image_affine: its ``(4, 4)`` world_from_voxel.
        truth: the map; ``truth.inverse`` is used.
        target: affine and shape of the lattice wanted.
        outside: the value outside the image.
        seed: of the noise.
    """
    affine, shape = target
    voxels = np.moveaxis(np.indices(shape), 0, -1).astype(float)
    source = truth.inverse(apply_affine(affine, voxels))  # type: ignore[union-attr]
    index = np.moveaxis(apply_affine(np.linalg.inv(image_affine), source), -1, 0)
    out = ndi.map_coordinates(image, index, order=1, mode="constant", cval=outside)
    # half of the cases keep their padding exactly flat, as an exported image does
    spread = np.percentile(image, 99) - np.percentile(image, 1)
    within = ndi.map_coordinates(np.ones(image.shape), index, order=0, mode="constant") > 0
    within |= seed % 2 == 1
    noise = np.random.default_rng(seed + 7).standard_normal(shape) * 0.015 * spread
    return np.asarray(out + noise * within)


def _unit(rng: np.random.Generator) -> Array:
    v = rng.standard_normal(3)
    return np.asarray(v / np.linalg.norm(v))
