"""The working lattice of a pair, and both images on it as the networks read them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import inverse_affine, resample, rescaled_affine, spacing_of
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import dilated
from fusion_pipeline.register.blur import gaussian_blur
from fusion_pipeline.register.settings import LATTICE
from fusion_pipeline.register.views import smoothed
from fusion_pipeline.transforms import NormalizeModality, body_mask


@dataclass(frozen=True)
class Lattice:
    """An isotropic lattice over the fixed image's field of view, with odd sizes.

    Attributes:
        affine: ``(d + 1, d + 1)`` world_from_voxel.
        shape: spatial shape, odd numbers.
    """

    affine: Matrix
    shape: tuple[int, ...]

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> float:
        """Voxel size in mm."""
        return float(spacing_of(self.affine)[0])


def working_lattice(fixed: Image, moving: Image, spacing: float | None = None) -> Lattice:
    """Choose the lattice on which a pair is registered.

    Its spacing lies between the mean voxel sizes of both images, within 2..4 mm (pictures: their
    pixel), and is raised until the lattice has at most 1.2 million voxels.

    Args:
        fixed: the reference.
        moving: the other image.
        spacing: mm; None chooses as said.
    """
    if spacing is None:
        d = fixed.spatial_dims
        sizes = [float(np.prod(image.spacing)) ** (1 / d) for image in (fixed, moving)]
        between = float(np.clip(np.mean(sizes), LATTICE.finest_mm, LATTICE.coarsest_mm))
        spacing = sizes[0] if d == 2 else between
        extent = float(np.prod(fixed.spacing * np.asarray(fixed.shape)))
        spacing = max(spacing, (extent / LATTICE.most_voxels) ** (1 / d))
    affine, shape = rescaled_affine(fixed.affine, fixed.shape, spacing)
    # one more voxel where a size is even: half the lattice then keeps both corner voxels
    return Lattice(affine, tuple(max(LATTICE.smallest_side, n + 1 - n % 2) for n in shape))


@dataclass(frozen=True)
class LatticeArrays:
    """An image and its masks on the working lattice.

    Attributes:
        image: ``(1, 1, *S)`` normalized.
        field_of_view: ``(1, 1, *S)`` 0..1, where it is data (inside its mask), in the body or near
            it: beyond, air cannot be distinguished from padding that has noise on it.
        body: ``(1, 1, *S)`` 0/1.
        bone: ``(1, 1, *S)`` 0/1, in and around the bones of a CT in HU; 0 for all others.
    """

    image: Tensor
    field_of_view: Tensor
    body: Tensor
    bone: Tensor


def blurred_for(image: Image, field_of_view: Tensor, lattice: Lattice) -> Tensor:
    """An image at the lattice's resolution, still on its own grid.

    Args:
        image: in its original units.
        field_of_view: ``(1, *S)`` 0/1 on the image's own grid.
        lattice: where it is wanted.

    Returns:
        ``(*S)``.
    """
    # half of what would keep all aliasing out: contrast at edges matters more here
    sigma = LATTICE.blur * lattice.spacing * (image.spacing < lattice.spacing)
    return smoothed(
        image.array[0], field_of_view[0], tuple(float(s) for s in sigma / image.spacing)
    )


def read_on_lattice(
    image: Image,
    field_of_view: Tensor,
    lattice: Lattice,
    image_from_fixed: Matrix | None = None,
    *,
    blurred: Tensor | None = None,
    normalize: NormalizeModality | None = None,
) -> LatticeArrays:
    """Read an image on the lattice, blurred to the lattice's resolution first.

    Args:
        image: in its original units.
        field_of_view: ``(1, *S)`` 0/1 on the image's own grid.
        lattice: where it is wanted.
        image_from_fixed: pose, world to world; None: the initial alignment.
        blurred: `blurred_for` of these, where several poses are read; None: it is made.
        normalize: brings the values to the scale that the network reads.
    """
    if blurred is None:
        blurred = blurred_for(image, field_of_view, lattice)
    pose = np.eye(len(lattice.affine)) if image_from_fixed is None else image_from_fixed
    voxels = torch.from_numpy(inverse_affine(image.affine) @ pose @ lattice.affine)
    small = resample(blurred[None, None], voxels, lattice.shape, fill=image.fill_value)[0]
    view = resample(field_of_view[None], voxels, lattice.shape, fill=0.0)
    kind = {"modality": image.modality, "units": image.units}
    body = body_mask(small, spacing_of(lattice.affine).tolist(), **kind) & (view[0] > 0.5)
    scale = normalize or NormalizeModality()
    scaled = scale.scaled(small, body, **kind)[0][None]
    solid = body[None].float()
    near = view * dilated(solid, LATTICE.rim_mm / lattice.spacing)
    return LatticeArrays(scaled, near, solid, _around_bone(image, small[0], lattice) * near)


def _around_bone(image: Image, small: Tensor, lattice: Lattice) -> Tensor:
    """``(1, 1, *S)`` 0/1: where a CT on the lattice shows bone, and some 6 mm around it."""
    if image.units != "HU":
        return torch.zeros_like(small)[None, None]
    bone = (small > LATTICE.bone_hu).float()
    sigma = [LATTICE.bone_blur_mm / lattice.spacing] * lattice.dims
    return (gaussian_blur(bone, sigma, border="reflect") > 0.1).float()[None, None]
