"""Take noise off an image and leave its edges, by the filter that suits its modality."""

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
from monai.transforms.transform import Transform
from torch import Tensor

from fusion_pipeline.transforms.arrays import ImageLike, plain, spacing_per_axis
from fusion_pipeline.transforms.intensity import checked_modality


class Denoise(Transform):
    """Denoise: curvature flow for CT, anisotropic diffusion for MR, a median for PET and SPECT.

    CT noise is additive and even, so level sets may shrink a little everywhere; MR contrast lies in
    weak edges, which diffusion with a conductance keeps; emission images have spikes, not edges.

    Args:
        modality: ``ct``, ``mr``, ``pet`` or ``spect``.
        iterations: steps of the flow or diffusion; a median is applied once. 0 returns the input.
    """

    def __init__(self, modality: str, iterations: int = 3) -> None:
        if iterations < 0:
            raise ValueError(f"expected iterations >= 0, got {iterations}")
        self.modality = checked_modality(modality)
        self.iterations = iterations

    def __call__(self, img: ImageLike, spacing: Sequence[float]) -> Tensor:
        """Filter each channel.

        Args:
            img: ``(C, *S)`` in its own units; every axis at least 2 voxels long.
            spacing: voxel size along each axis in mm; thick slices mix less.

        Returns:
            ``(C, *S)`` float32.
        """
        image = plain(img)
        sizes = spacing_per_axis(spacing, image)
        if self.iterations == 0:
            return image
        # relative to the finest axis, so that one time step is stable for every spacing
        relative = [size / min(sizes) for size in sizes][::-1]
        return torch.stack([self._filtered(channel, relative) for channel in image])

    def _filtered(self, channel: Tensor, relative: Sequence[float]) -> Tensor:
        image = sitk.GetImageFromArray(np.ascontiguousarray(channel.numpy()))
        image.SetSpacing([float(r) for r in relative])
        step = 0.5 ** (channel.ndim + 1)
        if self.modality == "ct":
            out = sitk.CurvatureFlow(image, timeStep=step, numberOfIterations=self.iterations)
        elif self.modality == "mr":
            out = sitk.CurvatureAnisotropicDiffusion(
                image, timeStep=step, conductanceParameter=2.0, numberOfIterations=self.iterations
            )
        else:
            out = sitk.Median(image, [1] * channel.ndim)
        return torch.from_numpy(sitk.GetArrayFromImage(out)).float()
