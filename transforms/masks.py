"""Where the body is, and where the image is padding."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from monai.transforms.transform import Transform
from monai.utils import TransformBackends
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from skimage.filters import threshold_multiotsu
from torch import Tensor

from fusion_pipeline.transforms.arrays import (
    NO_UNIT,
    ImageLike,
    like,
    plain,
    spacing_of_image,
    spacing_per_axis,
)
from fusion_pipeline.transforms.modality import (
    EMISSION,
    Modality,
    checked_modality,
    is_in_hu,
    modality_of,
    units_of,
)

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float32]

_WORKING_MM = 2.5
_AIR_BELOW_HU = -350.0
_SMALLEST_SHARE = 0.1
_AIR_TO_TISSUE = 0.3
_BLOCKS = 80
_CONVEX_SHARE = 0.93
_PLANE_SHARE = 0.75
# A layer of padding is thin up to so many voxels, or this share of an axis: beyond, blocks find it.
_WEDGE_VOXELS = 4
_WEDGE_SHARE = 0.04
# Voxels, root mean square, from a plane; 0.29 of it is rounding to whole voxels.
_FLAT_VOXELS = 0.4
_WEDGE_SOLID = 0.9  # of a layer, seen from its face: air with noise is ragged
_WEDGE_NEAR = 0.75  # of a face: more is beyond reach under a face where air was masked
# Voxels of a structuring element: beyond, a distance transform costs less. 5 mm at 1 mm have 1331.
_BALL_VOXELS = 1500
_ROUNDING = 1e-9  # of a distance in radii
# Voxels (after averaging) below which lengths in mm shrink as well: 5 mm are 10 voxels at most.
_FINEST_MM = 0.5


class BodyMask(Transform):
    """The body: one or several solid parts (two legs), cavities filled, table and air left out.

    CT is cut at a fixed HU; other images between the two clusters of their compressed, smoothed
    values. The work is done at about 2.5 mm, so a large volume costs little. Not invertible.

    Args:
        modality: ``ct``, ``mr``, ``pet`` or ``spect``; the image's ``meta["modality"]`` if None.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(self, modality: str | None = None) -> None:
        self.modality = None if modality is None else checked_modality(modality)

    def __call__(self, img: ImageLike, spacing: Sequence[float] | None = None) -> Tensor:
        """Find the body.

        Args:
            img: ``(1, *S)`` in the image's own units. ``meta["units"]`` says whether a CT is in
                HU; without it, its values do (`modality.looks_like_hu`).
            spacing: voxel size along each axis in mm, that of a MetaTensor's affine if None.

        Returns:
            ``(1, *S)`` bool, a MetaTensor if ``img`` is one; all True where no body can be told
            from air.
        """
        sizes, modality = spacing_of_image(img, spacing), modality_of(img, self.modality)
        found = body_mask(plain(img), sizes, modality, units=units_of(img))
        return like(found, img, NO_UNIT)


class FieldOfView(Transform):
    """Where an image is data: False in the padding that resampling or a scanner put around it.

    Padding is a constant value that touches the lattice border and ends on planes (a turned or
    shifted box). Air that was masked to a constant ends on the skin, and stays True; so does noisy
    air. What a header or an impossible value says is padding may have any shape. Not invertible.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __call__(self, img: ImageLike, padding: ImageLike | None = None) -> Tensor:
        """Find the field of view.

        Args:
            img: ``(1, *S)`` in any unit.
            padding: ``(1, *S)``, positive where there is certainly no data.

        Returns:
            ``(1, *S)`` bool, a MetaTensor if ``img`` is one; all True where there is no padding.
        """
        known = None if padding is None else plain(padding) > 0.5
        return like(field_of_view(plain(img), known), img, NO_UNIT)


def body_mask(
    image: Tensor, spacing: Sequence[float], modality: str, *, units: str | None = None
) -> Tensor:
    """Find the body; see `BodyMask`.

    Args:
        image: ``(1, *S)`` float32.
        spacing: voxel size along each axis in mm.
        modality: ``ct``, ``mr``, ``pet`` or ``spect``.
        units: of the image; see `is_in_hu` where None.

    Returns:
        ``(1, *S)`` bool on the image's device; all True where no body can be told from air.
    """
    sizes, checked = spacing_per_axis(spacing, image), checked_modality(modality)
    factors = [_factor(n, s) for n, s in zip(image.shape[1:], sizes, strict=True)]
    small, small_spacing = _reduced(image, factors), np.asarray(sizes) * factors
    raw = _above_air(small, small_spacing, checked, units)
    # a table is thin: opening takes it off; an emission image has none, and is blurred anyway
    table, gap = (_scaled(mm, small_spacing) for mm in (5.0 if checked == "ct" else 2.5, 5.0))
    parts = _large_parts(_opened(raw, small_spacing, table))
    body = _large_parts(_filled(_closed(parts, small_spacing, gap)))
    if not body.any():
        return torch.ones_like(image[:1], dtype=torch.bool)
    found = torch.from_numpy(_enlarged(body, factors, image.shape[1:]))[None]
    return found.to(image.device)


def field_of_view(image: Tensor, padding: Tensor | None = None) -> Tensor:
    """Find the field of view; see `FieldOfView`.

    Args:
        image: ``(1, *S)`` float32.
        padding: ``(1, *S)`` bool, where there is certainly no data.

    Returns:
        ``(1, *S)`` bool on the image's device; all True where there is no padding.
    """
    found = torch.from_numpy(_field_of_view(image[0].cpu().numpy()))[None].to(image.device)
    return found if padding is None else found & ~padding.to(image.device)


def _factor(size: int, spacing: float) -> int:
    """How many voxels to average along an axis; a lattice of 32 voxels is not made smaller."""
    return max(1, min(int(_WORKING_MM / spacing + 0.3), size // 32))


def _reduced(image: Tensor, factors: Sequence[int]) -> Float:
    """Means over blocks of voxels, the last block repeated at the border."""
    d = image.ndim - 1
    pad = [p for n, f in zip(image.shape[:0:-1], factors[::-1], strict=True) for p in (0, -n % f)]
    pool = F.avg_pool2d if d == 2 else F.avg_pool3d
    padded = F.pad(image[None, :1], pad, mode="replicate")
    return np.asarray(pool(padded, tuple(factors), tuple(factors))[0, 0].cpu().numpy())


def _enlarged(mask: Bool, factors: Sequence[int], shape: Sequence[int]) -> Bool:
    """Each voxel of the small lattice as a block."""
    index = [np.arange(n) // f for n, f in zip(shape, factors, strict=True)]
    return np.ascontiguousarray(mask[np.ix_(*index)])


def _above_air(
    image: Float, spacing: npt.NDArray[np.float64], modality: Modality, units: str | None
) -> Bool:
    """Voxels brighter than air."""
    if is_in_hu(image, modality, units):
        return np.asarray(image > _AIR_BELOW_HU)
    emission = modality in EMISSION
    data = _field_of_view(image)
    sigma = _scaled(3.0 if emission else 2.0, spacing) / spacing
    smooth = ndimage.gaussian_filter(image, sigma)
    inside = smooth[data]  # padding is darker than air, and would be taken for it
    floor = 0.1 * float(np.percentile(inside, 75)) if emission else 0.02 * float(inside.max())
    if floor <= 0 or inside.min() == inside.max():
        return np.asarray((smooth > 0) & data)
    # Air, muscle, fat (or body, tumour) differ by factors: their logarithms are evenly spaced.
    values = np.log(np.clip(inside, 0, None) + floor)
    for threshold in threshold_multiotsu(values, classes=3):
        air = float(np.median(inside[values <= threshold]))
        dim = float(np.percentile(inside[values > threshold], 25))
        # the edge of the body lies half way, not at the geometric mean
        if air < _AIR_TO_TISSUE * dim:
            return np.asarray((smooth > air + 0.4 * (dim - air)) & data)
    return data


def _ball(reach: npt.NDArray[np.int64]) -> Bool:
    """An ellipsoid of so many voxels along each axis."""
    grid = np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij")
    distance = sum((g / r) ** 2 for g, r in zip(grid, reach, strict=True))
    return np.asarray(distance <= 1.0)


def _reach(spacing: npt.NDArray[np.float64], radius: float) -> npt.NDArray[np.int64]:
    """A radius in mm as voxels of each axis, at least one."""
    return np.maximum(1, np.floor(radius / spacing)).astype(np.int64)


def _eroded(mask: Bool, reach: npt.NDArray[np.int64]) -> Bool:
    """Without what lies within an ellipsoid of the outside, which goes on beyond the lattice."""
    if np.prod(2 * reach + 1) <= _BALL_VOXELS:
        return np.asarray(ndimage.binary_erosion(mask, _ball(reach)))
    inner = tuple(slice(1, n + 1) for n in mask.shape)
    return np.asarray(_distance(np.pad(mask, 1), reach)[inner] > 1.0 + _ROUNDING)


def _dilated(mask: Bool, reach: npt.NDArray[np.int64]) -> Bool:
    """With all that lies within an ellipsoid of it."""
    if np.prod(2 * reach + 1) <= _BALL_VOXELS:
        return np.asarray(ndimage.binary_dilation(mask, _ball(reach)))
    return np.asarray(_distance(~mask, reach) <= 1.0 + _ROUNDING) if mask.any() else mask


def _distance(mask: Bool, reach: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How far the nearest voxel outside is, in units of an ellipsoid's radii."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=1.0 / reach))


def _scaled(mm: float, spacing: npt.NDArray[np.float64]) -> float:
    """A length that suits a body, or one as many times smaller as the voxels of a small animal."""
    return mm * min(1.0, float(spacing.max()) / _FINEST_MM)


def _padded(
    mask: Bool, spacing: npt.NDArray[np.float64], radius: float
) -> tuple[Bool, tuple[slice, ...]]:
    """The mask continued beyond its border: a body cut by the lattice goes on there."""
    reach = [int(r) for r in np.maximum(1, np.ceil(radius / spacing))]
    inner = tuple(slice(r, r + n) for r, n in zip(reach, mask.shape, strict=True))
    return np.pad(mask, [(r, r) for r in reach], mode="edge"), inner


def _opened(mask: Bool, spacing: npt.NDArray[np.float64], radius: float) -> Bool:
    padded, inner = _padded(mask, spacing, radius)
    reach = _reach(spacing, radius)
    return _dilated(_eroded(padded, reach), reach)[inner]


def _closed(mask: Bool, spacing: npt.NDArray[np.float64], radius: float) -> Bool:
    padded, inner = _padded(mask, spacing, radius)
    reach = _reach(spacing, radius)
    return _eroded(_dilated(padded, reach), reach)[inner]


def _large_parts(mask: Bool) -> Bool:
    """The largest component and those of at least a tenth of its size."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= _SMALLEST_SHARE * sizes.max())[labels] & mask)


def _filled(mask: Bool) -> Bool:
    """Cavities closed, also those that the end of the field of view opens (lungs)."""
    everywhere = ndimage.generate_binary_structure(mask.ndim, 1)
    out = mask | _enclosed(mask, everywhere, range(mask.ndim))
    if mask.ndim == 2:
        return out
    for axis in range(3):
        within = tuple(a for a in range(3) if a != axis)
        plane = everywhere.copy()
        plane[tuple(slice(0, 3, 2) if a == axis else slice(None) for a in range(3))] = False
        out |= _enclosed(mask, plane, within)
    return out


def _enclosed(mask: Bool, structure: Bool, axes: Iterable[int]) -> Bool:
    """What is neither mask nor joined to the border: what `binary_fill_holes` adds, faster."""
    labels, count = ndimage.label(~mask, structure)
    enclosed = np.ones(count + 1, bool)
    enclosed[0] = False
    for axis in axes:
        for end in (0, -1):
            enclosed[np.take(labels, end, axis)] = False
    return np.asarray(enclosed[labels])


def _field_of_view(image: Float) -> Bool:
    """True where the image is not padding."""
    everything = np.ones(image.shape, bool)
    value, share = _border_constant(image)
    if share < 0.01:
        return everything
    same = image == value
    # on blocks of voxels that are padding throughout, so that a large volume costs little
    factors = [max(1, n // _BLOCKS) for n in image.shape]
    region = _padding(_all_in_blocks(same, factors), 2.0 if max(factors) == 1 else 1.0)
    rim = region if max(factors) == 1 else ndimage.binary_dilation(region, iterations=2)
    data = ~(same & _enlarged(rim, factors, image.shape))
    # clipped noise (a CT's air at -1000) has the same value all over the air, padding is solid
    if np.count_nonzero(same & data) > 0.5 * np.count_nonzero(~data):
        return _without_wedges(same)
    return data if not data.all() and _is_cut_by_planes(~region) else _without_wedges(same)


def _without_wedges(same: Bool) -> Bool:
    """True but in thin layers of the border's constant under a face: a box that was hardly moved.

    They are flat or wedges. Air under a face is thicker where it was masked, and ragged where it
    is noisy.
    """
    data = np.ones(same.shape, bool)
    for axis in range(same.ndim):
        reach = max(_WEDGE_VOXELS, int(_WEDGE_SHARE * same.shape[axis]))
        if same.shape[axis] < 3 * reach:
            continue
        for end in (1, -1):
            face = np.moveaxis(same, axis, 0)[::end][: reach + 1]
            depth = np.where(face.all(0), reach + 1, face.argmin(0))
            if _is_wedge(depth, reach):
                layer = np.moveaxis(data, axis, 0)[::end][: reach + 1]
                layer &= np.arange(reach + 1).reshape(-1, *[1] * (same.ndim - 1)) >= depth
    return data


def _is_wedge(depth: npt.NDArray[np.int64], reach: int) -> bool:
    """Whether depths under a face are those of a plane.

    Lines beyond reach run along a layer under a neighbouring face, if they are few.
    """
    near = depth <= reach
    within = near & (depth > 0)
    if np.count_nonzero(within) < max(9, 0.01 * depth.size) or near.mean() < _WEDGE_NEAR:
        return False
    layer = depth > 0
    solid = ndimage.binary_opening(np.pad(layer, 1, mode="edge"), np.ones((3,) * depth.ndim))
    if np.count_nonzero(solid[(slice(1, -1),) * depth.ndim]) < _WEDGE_SOLID * layer.sum():
        return False
    points = np.stack([np.ones(int(within.sum())), *np.nonzero(within)], 1)
    plane, *_ = np.linalg.lstsq(points, depth[within].astype(float), rcond=None)
    apart = points @ plane - depth[within]
    return bool(np.sqrt(np.mean(apart**2)) <= _FLAT_VOXELS)


def _all_in_blocks(mask: Bool, factors: Sequence[int]) -> Bool:
    """True for the blocks of voxels that are True throughout."""
    out = mask
    for axis, factor in enumerate(factors):
        out = np.logical_and.reduceat(out, np.arange(0, out.shape[axis], factor), axis=axis)
    return np.asarray(out)


def _padding(same: Bool, radius: float) -> Bool:
    """The solid regions that touch the border, with their thin ends."""
    solid = _opened(same, np.ones(same.ndim), radius)
    labels, _ = ndimage.label(ndimage.binary_propagation(solid, mask=same))
    touching = np.unique(np.concatenate([face.ravel() for face in _faces(labels)]))
    return np.isin(labels, touching[touching > 0])


def _faces(array: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
    """The outermost layers of an array."""
    # views: `take` would copy the whole of an array that lies otherwise in memory
    return [np.moveaxis(array, axis, 0)[end] for axis in range(array.ndim) for end in (0, -1)]


def _border_constant(image: Float) -> tuple[float, float]:
    """The most frequent value on the lattice's faces, and its share of them."""
    values, counts = np.unique(
        np.concatenate([f.ravel() for f in _faces(image)]), return_counts=True
    )
    return float(values[counts.argmax()]), float(counts.max() / counts.sum())


def _is_cut_by_planes(region: Bool) -> bool:
    """Whether a region is convex and ends, inside the lattice, on at most ``2 d`` planes."""
    d = region.ndim
    outline = region & ~ndimage.binary_erosion(region, np.ones((3,) * d, bool), border_value=0)
    points = np.argwhere(outline).astype(float)
    if len(points) < 2 * 3**d or (np.ptp(points, axis=0) < 2).any():
        return False
    try:
        hull = ConvexHull(points)
    except QhullError:  # flat, and not along an axis
        return False
    if region.sum() < _CONVEX_SHARE * hull.volume:
        return False
    corners = points[hull.simplices]
    last = np.asarray(region.shape) - 1
    on_face = ((corners == 0).all(1) | (corners == last).all(1)).any(1)
    areas, normals = _areas(corners)[~on_face], hull.equations[~on_face, :d]
    if areas.sum() < 0.01 * hull.area:
        return False
    return _share_on_planes(areas, normals, 2 * d) > _PLANE_SHARE


def _areas(corners: Float) -> Float:
    """Lengths of edges ``(n, 2, 2)`` or areas of triangles ``(n, 3, 3)``."""
    sides = corners[:, 1:] - corners[:, :1]
    if sides.shape[1] == 1:
        return np.asarray(np.linalg.norm(sides[:, 0], axis=-1))
    return np.asarray(np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1) / 2)


def _share_on_planes(areas: Float, normals: Float, count: int) -> float:
    """How much of a surface faces the ``count`` directions that most of it faces (within 8°)."""
    total, near = float(areas.sum()), normals @ normals.T > np.cos(np.deg2rad(8.0))
    left = areas.copy()
    for _ in range(count):
        best = near[int((near @ left).argmax())]
        left[best] = 0
    return 1.0 - float(left.sum()) / total
