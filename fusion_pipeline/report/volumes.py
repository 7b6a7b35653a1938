"""The volumes that the viewer of the page scrolls through, reduced until they fit.

Convention:
    - all lie along the axes of the RAS world, in the box that the static pictures show
    - values are in the image's own units; NIfTI int16, gzipped, in base64
    - a map (error, displacement, weight) has no value outside the overlap
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from torch import Tensor
from torch.nn import functional as F

from fusion_pipeline.data import Image
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.report import pictures
from fusion_pipeline.report.facts import label, length_unit
from fusion_pipeline.report.field import ERROR_TOP, displacement_top
from fusion_pipeline.report.looks import covered_by
from fusion_pipeline.report.planes import Pixels, content_box, read
from fusion_pipeline.result import CaseResult

_Voxels = npt.NDArray[np.float32]

_MAP_POINTS = 100_000  # of an error or displacement map: 4 mm apart in a head
_CHARACTERS = 2  # of a point of a map, in base64: they are smooth
_LEVELS = 200  # grey values within the display window: 2 HU of soft tissue
_OUTSIDE = -32768  # of int16: no value here
_MARK_MM = 2.5  # radius of the ball that shows a landmark
_GROWTH = 1.05  # of the voxels' sides at least, from one try to the next


@dataclass(frozen=True)
class Volume:
    """One volume of the viewer.

    Attributes:
        title: its name on the page.
        role: ``reference``, ``after`` (an image after the stages that ran), ``before``, ``fused``
            (any grey 0..1), ``colour``, ``weight``, ``marks``, ``marks-before`` or ``map``.
        key: the image that it is, or that it speaks of; empty for the fused image.
        units: of its values.
        low: value of the first colour.
        high: value of the last colour.
        colours: name of its colours, see `COLOURS`.
        data: base64 of a gzipped NIfTI file.
    """

    title: str
    role: str
    key: str
    units: str
    low: float
    high: float
    colours: str
    data: str


# Name of the colours: matplotlib's map, where it begins, transparent below the window
COLOURS = {
    "grey": ("gray", 0.0, False),
    "inverted": ("gray_r", 0.0, False),
    "uptake": ("inferno", pictures.UPTAKE_START, True),
    "map": ("magma", 0.0, True),
    "weight": ("viridis", 0.0, True),
}


@dataclass(frozen=True)
class Lattice:
    """Points along the axes of the world.

    Attributes:
        low: ``(d,)`` the first point, RAS mm.
        step: ``(d,)`` mm between neighbours.
        shape: points along each axis.
    """

    low: Matrix
    step: Matrix
    shape: tuple[int, ...]

    @cached_property
    def points(self) -> Matrix:
        """``(*S, d)`` RAS mm."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1)

    @property
    def axes(self) -> list[Matrix]:
        """The coordinates along each axis, RAS mm."""
        sides = zip(self.low, self.step, self.shape, strict=True)
        return [low + step * np.arange(n) for low, step, n in sides]


def lattice_over(low: Matrix, high: Matrix, step: Matrix) -> Lattice:
    """The points of a box; at least one along each axis.

    Args:
        low: ``(d,)`` lower corner, mm.
        high: ``(d,)`` upper corner.
        step: ``(d,)`` mm between neighbours.
    """
    shape = tuple(int(n) + 1 for n in np.floor((high - low) / step + 1e-6))
    return Lattice(np.asarray(low), np.asarray(step, dtype=float), shape)


def viewer_volumes(result: CaseResult, limit: int) -> list[Volume]:
    """The volumes of a case, with voxels so large that all fit.

    Args:
        result: the case.
        limit: characters that they may take together.

    Returns:
        The reference first; maps last.
    """
    maps = list(_maps(result, limit // 3))
    limit -= sum(len(one.data) for one in maps)
    step = _first_step(result, limit)
    while True:
        volumes = list(_images(result, step))
        size = sum(len(one.data) for one in volumes)
        if size <= limit or _is_smallest(result, step):
            return [*volumes, *maps]
        step *= max(_GROWTH, (size / max(limit, 1)) ** (1 / result.case.fixed.spatial_dims))


def _is_smallest(result: CaseResult, step: float) -> bool:
    """A coarser lattice would show nothing any more."""
    low, high = content_box(result.case.fixed)
    return bool(step > (high - low).max() / 16)


def _first_step(result: CaseResult, limit: int) -> float:
    """A side of the voxels, mm, at which about one character is left for each voxel."""
    low, high = content_box(result.case.fixed)
    full = 2 * len(result.modalities)  # after and before of each, and the fused image
    colour = None if result.fusion is None else result.fusion.colour
    full += 0 if colour is None else 3
    step = float(result.case.fixed.spacing.min())
    finest = _finest(result.case.fixed)
    while not _is_smallest(result, step):
        shape = lattice_over(low, high, np.maximum(finest, step)).shape
        if full * np.prod(shape, dtype=float) <= limit:
            break
        step *= _GROWTH
    return step


def _finest(image: Image) -> Matrix:
    """``(d,)`` mm: along each axis of the world the spacing of the voxel axis nearest to it."""
    d = image.spatial_dims
    directions = np.abs(image.affine[:d, :d] / image.spacing)
    return np.asarray(image.spacing)[directions.argmax(axis=1)]


def _images(result: CaseResult, step: float) -> Iterator[Volume]:
    """Images before and after, the fused image and the weights, on lattices of at least a step."""
    fixed = result.case.fixed
    low, high = content_box(fixed)
    fine = lattice_over(low, high, np.maximum(_finest(fixed), step))
    yield _image(fixed, fixed, fine, "reference", label(fixed.key))
    for key, moving in result.case.moving.items():
        own = fine
        if pictures.is_emission(moving):  # smooth: its own voxels are enough
            own = lattice_over(low, high, np.maximum(fine.step, 0.8 * float(moving.spacing.min())))
        yield _image(result.aligned(key), moving, own, "after", label(key))
        if key in result.registrations:
            yield _image(moving, moving, own, "before", f"{label(key)}, before registration")
    if result.fusion is not None:
        yield from _fused(result.modalities, result.fusion, fine)
    elif not result.registrations:  # harmonized alone
        for key, image in result.harmonization.images.items():
            yield _unit_image(image, fine, f"{label(key)}, harmonized", key)
    yield from _landmarks(result, fine)


def _fused(modalities: Sequence[str], fusion: Fusion, fine: Lattice) -> Iterator[Volume]:
    """The fused image in grey and, where there is an uptake, in colour; the weights."""
    fused = fusion.fused
    if fusion.colour is not None and fusion.colour.colour is not None:
        channels = [_read(c[None].float(), fused.affine, fine) for c in fusion.colour.colour]
        data = _encoded_colour(channels, fine)
        yield Volume("Fused, uptake in colour", "colour", "", "", 0.0, 255.0, "grey", data)
    yield _unit_image(fused, fine, "Fused", "")
    coarse = lattice_over(
        fine.low, fine.low + fine.step * (np.array(fine.shape) - 1), 2 * fine.step
    )
    for key, weight in zip(modalities, fusion.weights, strict=True):
        data = _encoded(_read(weight[None], fused.affine, coarse), coarse, 0.01)
        yield Volume(f"Weight of {label(key)}", "weight", key, "", 0.0, 1.0, "weight", data)


def _unit_image(image: Image, lattice: Lattice, title: str, key: str) -> Volume:
    """An image whose values lie in 0..1."""
    data = _encoded(_read(image.array, image.affine, lattice), lattice, 1 / _LEVELS)
    return Volume(title, "fused", key, "", 0.0, 1.0, "grey", data)


def _landmarks(result: CaseResult, lattice: Lattice) -> Iterator[Volume]:
    """Balls around marked points: where they lie after registration, and where before.

    The reference's have the first colour, those of the other images the ones after it.
    """
    marked = {k: s.landmarks for k, s in result.case.series.items() if s.landmarks is not None}
    if not marked:
        return
    names = ", ".join(label(key) for key in marked)
    for role, title in (("marks", "Landmarks"), ("marks-before", "Landmarks, before registration")):
        values = np.full(lattice.shape, np.nan, dtype=np.float32)
        for number, key in enumerate(result.modalities):
            if key not in marked:
                continue
            points = marked[key]
            if role == "marks" and key in result.registrations:
                points = result.registrations[key].map.inverse_points(points)
            _paint_balls(values, lattice, points, 1 + number % len(pictures.MODALITY_COLOURS))
        data = _encoded(values, lattice, 1.0)
        top = float(len(pictures.MODALITY_COLOURS))
        yield Volume(f"{title} ({names})", role, "", "", 0.0, top, "marks", data)


def _paint_balls(values: _Voxels, lattice: Lattice, points: Matrix, value: int) -> None:
    """Fill a ball around each point, in place; one voxel at least."""
    radius = max(_MARK_MM, 0.75 * float(lattice.step.max()))
    axes = lattice.axes
    for point in points:
        near = [np.flatnonzero(np.abs(a - x) <= radius) for a, x in zip(axes, point, strict=True)]
        offsets = [a[index] - x for a, x, index in zip(axes, point, near, strict=True)]
        squares = sum(np.meshgrid(*[o**2 for o in offsets], indexing="ij", sparse=True))
        block = values[np.ix_(*near)]
        block[squares <= radius**2] = value
        values[np.ix_(*near)] = block


def _image(image: Image, shown_as: Image, lattice: Lattice, role: str, title: str) -> Volume:
    """An image of the case, in the display window of ``shown_as``."""
    window = pictures.window_of(shown_as)
    values = _read(image.array, image.affine, lattice)
    data = _encoded(values, lattice, max(window.high - window.low, 1e-6) / _LEVELS)
    colours = "uptake" if pictures.is_emission(shown_as) else "grey"
    return Volume(title, role, shown_as.key, window.units, window.low, window.high, colours, data)


def _maps(result: CaseResult, limit: int) -> Iterator[Volume]:
    """Per moving image its estimated error, its true error where that is known, its movement.

    Args:
        result: the case.
        limit: characters that they may take together, roughly.
    """
    if not result.registrations:
        return
    fixed = result.case.fixed
    low, high = content_box(fixed)
    points = min(_MAP_POINTS, max(limit // (_CHARACTERS * 3 * len(result.registrations)), 1))
    side = (np.prod(np.maximum(high - low, 1e-3)) / points) ** (1 / fixed.spatial_dims)
    lattice = lattice_over(low, high, np.maximum(_finest(fixed), side))
    unit = length_unit(fixed)
    for key, registration in result.registrations.items():
        overlap = covered_by(result, key, lattice.points)
        shift = registration.map.points(lattice.points) - lattice.points
        shown: list[tuple[str, Pixels, float]] = []
        error = registration.evidence.error_map_mm
        if error is not None:
            estimate = read(error[None], registration.map.working_affine, lattice.points)
            shown.append(("Estimated error", estimate, ERROR_TOP))
        truth = result.case.series[key].displacement
        if truth is not None:
            true = [read(part[None], fixed.affine, lattice.points) for part in truth]
            shown.append(("True error", _length(shift - np.stack(true, axis=-1)), ERROR_TOP))
        shown.append(("Displacement", _length(shift), displacement_top(_length(shift)[overlap])))
        for title, values, top in shown:
            data = _encoded(np.where(overlap, values, np.nan), lattice, top / _LEVELS)
            yield Volume(f"{title} of {label(key)}", "map", key, unit, 0.0, top, "map", data)


def _length(vectors: Matrix) -> Pixels:
    """``(*S)`` lengths of ``(*S, d)``."""
    return np.linalg.norm(vectors, axis=-1).astype(np.float32)


def _read(array: Tensor, affine: Matrix, lattice: Lattice) -> _Voxels:
    """An image on a lattice; where that is coarser, the mean of the voxels between."""
    d = len(lattice.shape)
    spacing = np.linalg.norm(affine[:d, :d], axis=0)
    directions = np.abs(affine[:d, :d] / spacing).argmax(axis=0)
    factors = [
        max(1, int(lattice.step[a] / s + 1e-3)) for a, s in zip(directions, spacing, strict=True)
    ]
    if max(factors) > 1:
        pool: Callable[..., Tensor] = F.avg_pool3d if d == 3 else F.avg_pool2d
        array = pool(array[None].float(), factors, ceil_mode=False)[0]
        to_fine = np.diag([*factors, 1.0])
        to_fine[:d, d] = (np.asarray(factors) - 1) / 2
        affine = affine @ to_fine
    return read(array, affine, lattice.points)


def _encoded(values: _Voxels, lattice: Lattice, step: float) -> str:
    """Base64 of a gzipped NIfTI file whose values are multiples of ``step``; NaN: no value."""
    levels = np.clip(np.rint(values / step), _OUTSIDE + 1, 32767)
    voxels = np.where(np.isfinite(values), levels, _OUTSIDE).astype(np.int16)
    return _packed(voxels, lattice, step)


def _encoded_colour(channels: Sequence[_Voxels], lattice: Lattice) -> str:
    """The same for red, green and blue, 0..255; five bits each, which a screen hardly tells."""
    levels = [np.nan_to_num(channel).clip(0, 255).round() for channel in channels]
    voxels = np.stack(levels, axis=-1).astype(np.uint8) & 0xF8
    rgb = np.ascontiguousarray(voxels).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    return _packed(rgb, lattice, 1.0)


def _packed(voxels: npt.NDArray[Any], lattice: Lattice, step: float) -> str:
    """Base64 of a gzipped NIfTI file."""
    voxels = voxels.reshape(*voxels.shape, *[1] * (3 - voxels.ndim))
    affine = np.eye(4)
    d = len(lattice.shape)
    affine[range(d), range(d)] = lattice.step
    affine[:d, 3] = lattice.low
    header = nib.Nifti1Header()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["scl_slope"], header["scl_inter"] = step, 0.0
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + voxels.tobytes(order="F")
    return base64.b64encode(igzip.compress(content, mtime=0)).decode("ascii")


def mark_nodes() -> dict[str, Sequence[int]]:
    """The colours of landmarks as NiiVue takes them: nothing, then one for each image in turn."""
    colours = np.array([(0, 0, 0), *pictures.MODALITY_COLOURS])
    r, g, b = np.rint(255 * colours).astype(int).T.tolist()
    places = np.rint(np.linspace(0, 255, len(colours))).astype(int).tolist()
    return {"R": r, "G": g, "B": b, "A": [0, *[255] * (len(colours) - 1)], "I": places}


def colour_nodes(name: str, count: int = 16) -> dict[str, Sequence[int]]:
    """Colours as NiiVue takes them: nodes ``I`` with red, green, blue and opacity, 0 to 255.

    Args:
        name: of `COLOURS`.
        count: nodes.
    """
    colormap, start, transparent = COLOURS[name]
    nodes = np.linspace(0, 1, count, dtype=np.float32)
    colours = np.rint(255 * pictures.coloured(start + (1 - start) * nodes, colormap)).astype(int)
    opacity = [0 if transparent else 255, *[255] * (count - 1)]
    r, g, b = colours.T.tolist()
    return {"R": r, "G": g, "B": b, "A": opacity, "I": np.rint(255 * nodes).astype(int).tolist()}
