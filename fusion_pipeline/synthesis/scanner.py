"""From tissue to picture: texture, point spread, shading and noise of a CT, MR or PET."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion_pipeline.synthesis.frame import Tissue
from fusion_pipeline.synthesis.noise import gaussian_blur, smooth_noise, uniform
from fusion_pipeline.synthesis.tissues import Contrast, tissue_values

_FWHM = 2.3548  # times the standard deviation of a Gaussian: 2 sqrt(2 ln 2)


@dataclass(frozen=True)
class _Physics:
    """What a scanner adds to the tissue.

    Attributes:
        slow: deviation of the slow texture: HU for CT, else a share of the value.
        fine: deviation of the fine texture, likewise.
        fwhm_mm: point spread.
        noise: deviation of the noise in the image's units.
        grain: blur of the noise in voxels.
        bias: strength of the shading (a log factor).
    """

    slow: float
    fine: float
    fwhm_mm: float
    noise: float
    grain: float
    bias: float


_PHYSICS: dict[Contrast, _Physics] = {
    "ct": _Physics(2.0, 1.5, 1.5, 5.0, 0.7, 0.0),
    "mr": _Physics(0.035, 0.04, 1.3, 11.0, 0.35, 0.09),
    "mr_t2": _Physics(0.035, 0.05, 1.6, 12.0, 0.35, 0.09),
    "pet": _Physics(0.1, 0.08, 6.0, 0.09, 0.8, 0.0),
}


def tissue_image(
    labels: Tensor, contrast: Contrast, spacing: float, generator: torch.Generator
) -> Tensor:
    """What an ideal scanner of that resolution would measure everywhere, without noise.

    Args:
        labels: ``(*S)`` of `Tissue`.
        contrast: the modality.
        spacing: isotropic voxel size of the label map in mm.
        generator: the randomness.

    Returns:
        ``(*S)`` HU, MR units or SUV.
    """
    physics, shape = _PHYSICS[contrast], labels.shape
    image = tissue_values(contrast)[labels]
    slow = physics.slow * smooth_noise(shape, 18.0 / spacing, generator)[0]
    fine = physics.fine * smooth_noise(shape, max(1.0, 3.0 / spacing), generator)[0]
    if contrast == "ct":
        solid = (labels != Tissue.AIR) & (labels != Tissue.CAVITY)
        marrow = (labels == Tissue.SPONGY_BONE) | (labels == Tissue.LUNG)
        image = image + (slow + fine) * (solid + 12.0 * marrow)
    else:
        image = image * (1.0 + slow + fine).clamp_min(0.2)
    return gaussian_blur(image[None], physics.fwhm_mm / _FWHM / spacing)[0]


def acquire(image: Tensor, contrast: Contrast, generator: torch.Generator) -> Tensor:
    """Shade an ideal image and add the noise of its lattice.

    Args:
        image: ``(*S)`` HU, MR units or SUV.
        contrast: the modality.
        generator: the randomness.

    Returns:
        ``(*S)`` in the same units: CT not below -1024 HU, MR (Rician) and PET not negative.
    """
    physics = _PHYSICS[contrast]
    noise = torch.randn((2, *image.shape), generator=generator)
    grainy = gaussian_blur(noise, physics.grain)
    grainy = physics.noise * grainy / grainy.std()
    if contrast == "ct":
        return (image + grainy[0]).clamp_min(-1024.0)
    if contrast == "pet":  # counts: the noise grows with the root of the activity
        return (image + grainy[0] * (image.clamp_min(0) + 0.02).sqrt()).clamp_min(0)
    knots = uniform(generator, 0.5, 0.8) * max(image.shape)
    shaded = image * torch.exp(physics.bias * smooth_noise(image.shape, knots, generator)[0])
    return torch.hypot(shaded + grainy[0], grainy[1])
