"""The working lattice of a pair, and both images on it as the networks read them."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.geometry import inverse_affine, resample, rescaled_affine, spacing_of
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.geometry.filters import dilated
from fusion_pipeline.register.views import smoothed
from fusion_pipeline.transforms import BodyMask, NormalizeModality

_FINEST_MM = 2.0
_COARSEST_MM = 4.0
_MOST_VOXELS = 1_200_000
_RIM_MM = 10.0
_BONE_HU = 250.0
_BONE_BLUR_MM = 5.0


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
        between = float(np.clip(np.mean(sizes), _FINEST_MM, _COARSEST_MM))
        spacing = sizes[0] if d == 2 else between
        extent = float(np.prod(fixed.spacing * np.asarray(fixed.shape)))
        spacing = max(spacing, (extent / _MOST_VOXELS) ** (1 / d))
    affine, shape = rescaled_affine(fixed.affine, fixed.shape, spacing)
    # one more voxel where a size is even: half the lattice then keeps both corner voxels
    return Lattice(affine, tuple(max(17, n + 1 - n % 2) for n in shape))


@dataclass(frozen=True)
class OnLattice:
    """An image on the working lattice.

    Attributes:
        image: ``(1, 1, *S)`` normalized.
        known: ``(1, 1, *S)`` 0..1, inside its field of view (and mask), in the body or near it:
            beyond, air and padding that has noise on it cannot be told apart.
        body: ``(1, 1, *S)`` 0/1.
        bone: ``(1, 1, *S)`` 0/1, in and around the bones of a CT in HU; 0 for all others.
    """

    image: Tensor
    known: Tensor
    body: Tensor
    bone: Tensor


def blurred_for(image: Image, known: Tensor, lattice: Lattice) -> Tensor:
    """An image at the lattice's resolution, still on its own grid.

    Args:
        image: in its original units.
        known: ``(1, *S)`` 0/1 on the image's own grid.
        lattice: where it is wanted.

    Returns:
        ``(*S)``.
    """
    # half of what would keep all aliasing out: contrast at edges is worth more here
    sigma = 0.35 * lattice.spacing * (image.spacing < lattice.spacing)
    return smoothed(image.array[0], known[0], tuple(float(s) for s in sigma / image.spacing))


def on_lattice(
    image: Image,
    known: Tensor,
    lattice: Lattice,
    image_from_fixed: Matrix | None = None,
    *,
    blurred: Tensor | None = None,
) -> OnLattice:
    """Read an image on the lattice, blurred to the lattice's resolution first.

    Args:
        image: in its original units.
        known: ``(1, *S)`` 0/1 on the image's own grid.
        lattice: where it is wanted.
        image_from_fixed: pose, world to world; None: the headers.
        blurred: `blurred_for` of these, where several poses are read; None: it is made.
    """
    if blurred is None:
        blurred = blurred_for(image, known, lattice)
    pose = np.eye(len(lattice.affine)) if image_from_fixed is None else image_from_fixed
    voxels = torch.from_numpy(inverse_affine(image.affine) @ pose @ lattice.affine)
    small = resample(blurred[None, None], voxels, lattice.shape, fill=image.outside)[0]
    seen = resample(known[None], voxels, lattice.shape, fill=0.0)
    body = BodyMask(image.modality)(small, spacing_of(lattice.affine).tolist()) & (seen[0] > 0.5)
    scaled = NormalizeModality(image.modality)(small, body)[None]
    solid = body[None].float()
    near = seen * dilated(solid, _RIM_MM / lattice.spacing)
    return OnLattice(scaled, near, solid, _around_bone(image, small[0], lattice) * near)


def _around_bone(image: Image, small: Tensor, lattice: Lattice) -> Tensor:
    """``(1, 1, *S)`` 0/1: where a CT on the lattice shows bone, and some 6 mm around it."""
    if image.outside == 0:  # no HU
        return torch.zeros_like(small)[None, None]
    bone = (small > _BONE_HU).float().numpy()
    near = ndimage.gaussian_filter(bone, _BONE_BLUR_MM / lattice.spacing, truncate=2.5) > 0.1
    return torch.from_numpy(near.astype(np.float32))[None, None]
