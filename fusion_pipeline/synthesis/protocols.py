"""One anatomy as another scanner would show it: for networks that shall not see the difference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion_pipeline.geometry import resize
from fusion_pipeline.synthesis.noise import chance, uniform


def other_protocol(image: Tensor, body: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Gain, offset, gamma, bias field, blur and noise of another acquisition.

    Args:
        image: ``(1, 1, *S)`` normalized.
        body: ``(1, 1, *S)`` 0/1.
        kind: ``ct``, ``mr`` or ``emission``.
        generator: the randomness.

    Returns:
        ``(1, 1, *S)`` normalized anew, within −4..4.
    """
    low = float(image.min())
    width = max(float(image.max()) - low, 1e-3)
    unit = (image - low) / width
    dims = image.ndim - 2
    if kind == "mr":
        coarse = torch.randn(1, 1, *[4] * dims, generator=generator)
        unit = unit * torch.exp(uniform(generator, 0, 0.3) * resize(coarse, unit.shape[2:]))
    if kind != "ct":
        unit = unit.clamp_min(1e-4) ** uniform(generator, 0.65, 1.5)
    if chance(generator, 0.3):
        mean = F.avg_pool3d if dims == 3 else F.avg_pool2d
        blurred = mean(unit, 3, 1, 1, count_include_pad=False)
        unit = unit + uniform(generator, 0, 1) * (blurred - unit)
    sigma = uniform(generator, 0, 0.04)
    unit = unit + sigma * torch.randn(unit.shape, generator=generator)
    count = body.sum().clamp_min(1)
    mean_now = (unit * body).sum() / count
    deviation = (((unit - mean_now) ** 2 * body).sum() / count).sqrt().clamp_min(1e-3)
    was_mean = (image * body).sum() / count
    was_deviation = (((image - was_mean) ** 2 * body).sum() / count).sqrt()
    scored = (unit - mean_now) / deviation * was_deviation + was_mean
    scored = scored * uniform(generator, 0.85, 1.2) + uniform(generator, -0.25, 0.25)
    return scored.clamp(-4, 4)


def other_contrast(image: Tensor, generator: torch.Generator) -> Tensor:
    """Another MR sequence: tissues in another order; air stays darkest.

    Args:
        image: ``(1, 1, *S)`` normalized.
        generator: the randomness.

    Returns:
        ``(1, 1, *S)``, mean 0 and deviation 1, within −4..4.
    """
    return _curved(image, torch.cat([torch.zeros(1), torch.rand(6, generator=generator)]))


def any_contrast(image: Tensor, generator: torch.Generator) -> Tensor:
    """A random tone curve, not monotone: bright may become dark, air any grey.

    Args:
        image: ``(1, 1, *S)`` normalized.
        generator: the randomness.

    Returns:
        ``(1, 1, *S)``, mean 0 and deviation 1, within −4..4.
    """
    return _curved(image, torch.rand(7, generator=generator))


def _curved(image: Tensor, values: Tensor) -> Tensor:
    """The image through a curve of straight pieces between evenly spaced knots."""
    low, high = float(image.min()), float(image.max())
    knots = len(values) - 1
    unit = ((image - low) / max(high - low, 1e-3) * knots).clamp(0, knots - 1e-3)
    at = unit.floor().long()
    part = unit - at
    out = values[at] * (1 - part) + values[at + 1] * part
    return ((out - out.mean()) / out.std().clamp_min(1e-3)).clamp(-4, 4)
