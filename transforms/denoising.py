"""Take noise off an image and leave its edges, by the filter that suits its modality."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import SimpleITK as sitk
import torch
from monai.transforms.transform import Transform
from monai.utils import TransformBackends
from torch import Tensor

from fusion_pipeline.transforms.arrays import (
    ImageLike,
    like,
    plain,
    spacing_of_image,
    spacing_per_axis,
)
from fusion_pipeline.transforms.modality import Modality, checked_modality, modality_of


def denoise(image: Tensor, spacing: Sequence[float], modality: str, iterations: int = 3) -> Tensor:
    """Denoise each channel; see `Denoise`.

    Args:
        image: ``(C, *S)`` float32; every axis at least 2 voxels long.
        spacing: voxel size along each axis in mm.
        modality: ``ct``, ``mr``, ``pet`` or ``spect``.
        iterations: steps of the flow or diffusion; a median is applied once. 0 returns the input.

    Returns:
        ``(C, *S)`` float32 on the image's device.
    """
    sizes, checked = spacing_per_axis(spacing, image), checked_modality(modality)
    if iterations == 0:
        return image
    # relative to the finest axis, so that one time step is stable for every spacing
    relative = [size / min(sizes) for size in sizes][::-1]
    channels = [_filtered(channel, relative, checked, iterations) for channel in image.cpu()]
    return torch.stack(channels).to(image.device)


def _filtered(
    channel: Tensor, relative: Sequence[float], modality: Modality, iterations: int
) -> Tensor:
    """One channel through SimpleITK."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(channel.numpy()))
    image.SetSpacing([float(r) for r in relative])
    step = 0.5 ** (channel.ndim + 1)
    if modality == "ct":
        out = sitk.CurvatureFlow(image, timeStep=step, numberOfIterations=iterations)
    elif modality == "mr":
        out = sitk.CurvatureAnisotropicDiffusion(
            image, timeStep=step, conductanceParameter=2.0, numberOfIterations=iterations
        )
    else:
        out = sitk.Median(image, [1] * channel.ndim)
    return torch.from_numpy(sitk.GetArrayFromImage(out)).float()


class Denoise(Transform):
    """Denoise: curvature flow for CT, anisotropic diffusion for MR, a median for PET and SPECT.

    CT noise is additive and even, so level sets may shrink a little everywhere; MR contrast lies in
    weak edges, which diffusion with a conductance keeps; emission images have spikes, not edges.
    Not invertible.

    Args:
        modality: ``ct``, ``mr``, ``pet`` or ``spect``; the image's ``meta["modality"]`` if None.
        iterations: steps of the flow or diffusion; a median is applied once. 0 returns the input.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(self, modality: str | None = None, iterations: int = 3) -> None:
        if iterations < 0:
            raise ValueError(f"expected iterations >= 0, got {iterations}")
        self.modality = None if modality is None else checked_modality(modality)
        self.iterations = iterations

    def __call__(self, img: ImageLike, spacing: Sequence[float] | None = None) -> Tensor:
        """Filter each channel.

        Args:
            img: ``(C, *S)`` in its own units; every axis at least 2 voxels long.
            spacing: voxel size along each axis in mm, that of a MetaTensor's affine if None; thick
                slices mix less.

        Returns:
            ``(C, *S)`` float32, a MetaTensor if ``img`` is one.
        """
        sizes, modality = spacing_of_image(img, spacing), modality_of(img, self.modality)
        return like(denoise(plain(img), sizes, modality, self.iterations), img)
