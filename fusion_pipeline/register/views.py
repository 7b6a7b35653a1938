"""An image as the pose search reads it: blurred, isotropic, 0..1, with field of view and tissue."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image, Prepared
from fusion_pipeline.geometry import (
    apply_affine,
    inverse_affine,
    resample,
    rescaled_affine,
    spacing_of,
)
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import box_around
from fusion_pipeline.register.blur import gaussian_blur, kernel_radius
from fusion_pipeline.register.settings import VIEW
from fusion_pipeline.transforms import body_mask, field_of_view

_TINY = float(torch.finfo(torch.float32).tiny)  # a range may be as small as its unit makes it


@dataclass(frozen=True)
class View:
    """One image at one level of the search.

    Attributes:
        values: ``(1, 1, *S)`` 0..1, blurred.
        field_of_view: ``(1, 1, *S)`` 0..1, where it is data (inside the mask, where there is one).
        tissue: ``(1, 1, *S)`` 0/1, in view and brighter than air.
        affine: ``(d + 1, d + 1)`` world_from_voxel of the isotropic lattice.
        dark_is_doubtful: whether what is dark may be padding with noise on it: in all but CT, whose
            air has a value of its own.
    """

    values: Tensor
    field_of_view: Tensor
    tissue: Tensor
    affine: Matrix
    dark_is_doubtful: bool

    def world(self, voxels: Tensor) -> Tensor:
        """World mm of voxel coordinates ``(n, d)``."""
        points = apply_affine(self.affine, voxels.cpu().double().numpy())
        return torch.from_numpy(points).to(torch.float32).to(voxels.device)

    def along(self, other: "View", pose: Matrix, room: float | None) -> "View":
        """The same image on a lattice with another view's axes and voxels, after a pose.

        Args:
            other: whose axes to take.
            pose: ``(d + 1, d + 1)`` world of this view from the world of the other.
            room: mm beyond the other view's field that are kept; None: this view's whole field.
        """
        affine = pose @ other.affine
        size = np.array(self.values.shape[2:])
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in size], indexing="ij"), -1)
        voxels = apply_affine(
            inverse_affine(affine) @ self.affine, corners.reshape(-1, len(size)).astype(float)
        )
        low, high = np.floor(voxels.min(0)), np.ceil(voxels.max(0))
        if room is not None:
            margin = np.ceil(room / spacing_of(other.affine))
            low = np.maximum(low, -margin)
            high = np.minimum(high, np.array(other.values.shape[2:]) - 1 + margin)
        high = np.maximum(high, low + 4)  # nothing in common: any small piece will do
        affine = affine @ _shift(low)
        shape = tuple(int(n) for n in high - low + 1)
        back = torch.from_numpy(inverse_affine(self.affine) @ affine)
        return View(
            resample(self.values, back, shape, fill=None),
            resample(self.field_of_view, back, shape, fill=0.0),
            resample(self.tissue, back, shape, mode="nearest", fill=0.0),
            affine,
            self.dark_is_doubtful,
        )

    @property
    def spacing(self) -> float:
        """Voxel size in mm."""
        return float(spacing_of(self.affine)[0])

    @property
    def tissue_extent(self) -> float:
        """mm³ (mm² in 2D) of the box around the tissue: how much of the body is shown."""
        where = (self.tissue[0, 0] > 0.5).nonzero()
        if len(where) == 0:
            return 0.0
        sides = (where.amax(0) - where.amin(0) + 1).cpu().double() * self.spacing
        return float(sides.prod())

    def centre(self) -> Tensor:
        """World mm of the tissue's centre of mass, ``(d,)`` on the CPU."""
        where = (self.tissue[0, 0] > 0.5).nonzero()
        if len(where) == 0:
            where = torch.ones_like(self.tissue[0, 0]).nonzero()
        return self.world(where.sum(0, keepdim=True).cpu().double() / len(where))[0]


def _shift(voxels: np.ndarray) -> Matrix:
    """The affine that moves the origin by so many voxels."""
    out = np.eye(len(voxels) + 1)
    out[:-1, -1] = voxels
    return out


def has_emission(*images: Image) -> bool:
    """Whether one of the images shows uptake: little structure, blurred and noisy."""
    return any(image.modality in ("pet", "spect") for image in images)


def prepared(given: Image | Prepared) -> Prepared:
    """An image with its masks in canonical axes: the search must not depend on a file's axes."""
    if isinstance(given, Prepared):
        return given
    image = given.in_canonical_axes()
    body = body_mask(image.array, image.spacing.tolist(), image.modality, units=image.units)
    return Prepared(image, image, field_of_view(image.array), body)


def masked_field_of_view(given: Image | Prepared, mask: Image | None = None) -> Tensor:
    """An image's field of view, inside its mask where there is one.

    Args:
        given: the image.
        mask: where to look, on any lattice.

    Returns:
        ``(1, *S)`` float 0/1 on the image's lattice.
    """
    if isinstance(given, Prepared):
        image, view = given.image, given.field_of_view.float()
    else:
        image, view = given, field_of_view(given.array).float()
    if mask is None:
        return view
    voxels = torch.from_numpy(inverse_affine(mask.affine) @ image.affine)
    where = mask.array[None].to(view.device).float()
    inside = resample(where, voxels, image.shape, mode="nearest")[0]
    return view * (inside > 0.5)


def make_view(image: Image, field_of_view: Tensor, *, spacing: float, blur_mm: float) -> View:
    """Blur, bring to isotropic voxels, scale to 0..1.

    Padding must not bleed into the image: the blur is weighted by the field of view. Intensities
    are scaled after the blur, since noise that is compressed first (PET) becomes a bias.

    Args:
        image: the image in its original units.
        field_of_view: ``(1, *S)`` 0/1 on the image's lattice.
        spacing: voxel size of the view in mm; larger where it would have over 4 million voxels.
        blur_mm: standard deviation of the blur in mm.
    """
    sigma = max(blur_mm, VIEW.emission_blur_mm if has_emission(image) else 0.0)
    blurred = smoothed(
        image.array[0], field_of_view[0], tuple(float(s) for s in sigma / image.spacing)
    )
    extent = float(np.prod(image.spacing * np.asarray(image.shape)))
    spacing = max(spacing, (extent / VIEW.most_voxels) ** (1 / image.spatial_dims))
    affine, shape = rescaled_affine(image.affine, image.shape, spacing)
    voxels = torch.from_numpy(inverse_affine(image.affine) @ affine)
    small = resample(blurred[None, None], voxels, shape, fill=None)[0]
    inside = resample(field_of_view[None], voxels, shape, fill=0.0)
    body = body_mask(small, spacing_of(affine).tolist(), image.modality, units=image.units)
    tissue = body.float() * (inside[0] > 0.5)
    return View(_ranked(small, tissue)[None], inside, tissue[None], affine, image.modality != "ct")


def _ranked(image: Tensor, tissue: Tensor) -> Tensor:
    """Half the value, half its rank in the tissue: fat and muscle are 10 % of a CT's window."""
    inside = image[tissue > 0.5] if bool((tissue > 0.5).any()) else image.flatten()
    part = inside[:: max(1, inside.numel() // 200_000)].sort().values
    at = torch.linspace(0, len(part) - 1, VIEW.quantiles).long().to(part.device)
    knots = part[at].contiguous()
    rank = torch.searchsorted(knots, image.contiguous()).float()
    low = knots[(rank - 1).clamp(0, VIEW.quantiles - 2).long()]
    high = knots[rank.clamp(1, VIEW.quantiles - 1).long()]
    part_way = ((image - low) / (high - low).clamp_min(_TINY)).clamp(0, 1)
    equal = ((rank - 1).clamp(0, VIEW.quantiles - 2) + part_way) / (VIEW.quantiles - 1)
    linear = ((image - knots[0]) / (knots[-2] - knots[0]).clamp_min(_TINY)).clamp(0, 1)
    # everything darker than the tissue keeps a share of the range of its own
    air = ((image - image.min()) / (knots[0] - image.min()).clamp_min(_TINY)).clamp(0, 1)
    return VIEW.air_range * air + (1 - VIEW.air_range) * 0.5 * (equal + linear)


def smoothed(image: Tensor, field_of_view: Tensor, sigma: Sequence[float]) -> Tensor:
    """Gaussian blur within the field of view (normalized convolution).

    Args:
        image: ``(*S)``.
        field_of_view: ``(*S)`` 0/1.
        sigma: standard deviation along each axis in voxels; 0 leaves an axis alone.

    Returns:
        ``(*S)`` float32; values beyond the field of view are those of its rim.
    """
    if not any(s > 0 for s in sigma):
        return image.float()
    values, weight = image.float(), field_of_view
    if bool((weight == 1).all()):  # a large CT has no padding as a rule
        return gaussian_blur(values, sigma)
    # beyond the kernels' reach of it nothing changes
    box = box_around(field_of_view[None, None], kernel_radius(max(sigma)))[2:]
    values, near, weight = values.clone(), values[box], weight[box]
    total = gaussian_blur(near * weight, sigma)
    share = gaussian_blur(weight, sigma)
    values[box] = torch.where(share > 1e-3, total / share, near)
    return values
