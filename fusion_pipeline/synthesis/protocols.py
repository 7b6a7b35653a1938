"""One anatomy as another scanner, sequence or reconstruction would show it; for CT, MR and PET."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fusion_pipeline.networks.kinds import KINDS, kind_indices
from fusion_pipeline.synthesis.noise import gaussian_blur, smooth_noise, uniform

_FWHM = 2.3548  # of a Gaussian of deviation 1
_LOWEST_OF_A_PICTURE = -200.0  # a CT in HU has air
_STORED_HU = (-1024.0, 3071.0)  # what the 12 bits of a CT hold
_WARP_KNOTS = 8  # pieces of the scanner-like histogram warp
_BIAS_CELLS = 3  # blobs of a receive field along each axis
_VESSEL_CELLS = 8  # blobs of tissue that takes up a contrast agent, along each axis


@dataclass(frozen=True)
class ProtocolRanges:
    """What `other_protocol` draws from, evenly (factors: evenly in their logarithm).

    Attributes:
        gain: factor of an MR's values.
        offset: added to an MR, as a share of its width (99th percentile of the body).
        gamma: exponent of an MR's values.
        bias: largest share by which a receive field changes an MR, at its strongest place.
        warp: deviation of the log slopes of an MR's histogram warp.
        noise: largest deviation of an MR's noise, as a share of its width.
        calibration_hu: largest shift of a CT.
        kernel: sharpening of a CT, from −1 (a blur) to this (an unsharp mask).
        noise_hu: largest deviation of a CT's noise: a lower tube current.
        contrast_hu: largest rise of a CT's enhanced tissue: a contrast agent.
        uptake_scale: factor of an emission image: dose, weight, unit.
        uptake_gamma: exponent of an emission image: another uptake time.
        blur_mm: largest deviation of the extra point spread of an emission image; MR: a quarter.
        uptake_noise: largest deviation of an emission image's noise, as a share of the mean.
    """

    gain: tuple[float, float] = (0.2, 5.0)
    offset: float = 0.05
    gamma: tuple[float, float] = (0.7, 1.4)
    bias: float = 0.3
    warp: float = 0.15
    noise: float = 0.03
    calibration_hu: float = 20.0
    kernel: float = 1.0
    noise_hu: float = 25.0
    contrast_hu: float = 0.0
    uptake_scale: tuple[float, float] = (0.4, 3.0)
    uptake_gamma: tuple[float, float] = (0.95, 1.05)
    blur_mm: float = 3.0
    uptake_noise: float = 0.05


def other_protocol(
    image: Tensor,
    kinds: str | Sequence[str],
    body: Tensor,
    generator: torch.Generator,
    *,
    spacing: Sequence[float],
    ranges: ProtocolRanges | None = None,
) -> Tensor:
    """The same anatomy under another protocol, another one for each image of the batch.

    All randomness is drawn on the CPU, so that a generator gives one result on every device.

    Args:
        image: ``(B, 1, *S)`` in own units: HU, a.u., SUV.
        kinds: ``ct``, ``mr`` or ``emission``: one for all, or one for each image of the batch.
        body: ``(B, 1, *S)`` 0/1.
        generator: the randomness, on the CPU.
        spacing: voxel size along each axis in mm.
        ranges: what is drawn from.

    Returns:
        ``(B, 1, *S)`` in own units (MR: units of another scanner).

    Raises:
        ValueError: kinds that do not fit the batch.
    """
    ranges = ranges or ProtocolRanges()
    acquire: dict[str, Callable[..., Tensor]] = {"ct": _ct, "mr": _mr, "emission": _emission}
    # a CT that is not in HU is a picture: another window, tone and noise
    picture = replace(ranges, bias=0.0, noise=ranges.noise / 2)
    names = [KINDS[i] for i in kind_indices(kinds, image.shape[0])]
    out = []
    for b, name in enumerate(names):
        parts = image[b : b + 1], body[b : b + 1], _Draw(generator, image[b : b + 1]), spacing
        if name == "ct" and float(image[b].min()) > _LOWEST_OF_A_PICTURE:
            out.append(_mr(*parts, picture))
        else:
            out.append(acquire[name](*parts, ranges))
    return torch.cat(out)


def narrower_field_of_view(
    field_of_view: Tensor, generator: torch.Generator, least: float = 0.6
) -> Tensor:
    """Cut an end off along one axis, another one for each image: a shorter scan.

    Args:
        field_of_view: ``(B, 1, *S)`` 0/1.
        generator: the randomness, on the CPU.
        least: smallest share of the axis that is left.

    Returns:
        ``(B, 1, *S)`` 0/1.
    """
    out = field_of_view.clone()
    for item in out:
        axis = 1 + int(torch.randint(item.ndim - 1, (), generator=generator))
        share = float(torch.rand((), generator=generator)) * (1 - least)
        count = round(item.shape[axis] * share)
        first = 0 if float(torch.rand((), generator=generator)) < 0.5 else item.shape[axis] - count
        item.narrow(axis, first, count).zero_()
    return out


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


@dataclass(frozen=True)
class _Draw:
    """Random numbers that go to the device of an image."""

    generator: torch.Generator
    image: Tensor

    def uniform(self, low: float, high: float) -> float:
        return uniform(self.generator, low, high)

    def factor(self, limits: tuple[float, float]) -> float:
        low, high = torch.tensor(limits).log().tolist()
        return float(torch.tensor(self.uniform(low, high)).exp())

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator).to(self.image)

    def smooth(self, cells: float) -> Tensor:
        """``(1, *S)``, about so many blobs along each axis, at most 1 in size."""
        shape = self.image.shape[2:]
        field = smooth_noise(shape, [n / cells for n in shape], self.generator)
        return (field / field.abs().amax().clamp_min(1e-6)).to(self.image)


def _mr(
    image: Tensor, body: Tensor, draw: _Draw, spacing: Sequence[float], ranges: ProtocolRanges
) -> Tensor:
    """Receive field, point spread, tone, noise, unit."""
    black = image.amin()
    width = _quantile(image, body, 0.99) - black
    width = width.clamp_min(1e-6 * image.abs().amax().clamp_min(1e-6))
    unit = (image - black) / width
    strength = draw.uniform(0.3, 1.0) * ranges.bias
    unit = unit * (1 + strength * draw.smooth(_BIAS_CELLS))
    unit = gaussian_blur(unit[0], [draw.uniform(0, ranges.blur_mm / 4) / s for s in spacing])[None]
    unit = unit.clamp_min(0) ** draw.factor(ranges.gamma)
    unit = _histogram_warp(unit, ranges.warp * draw.normal((_WARP_KNOTS,)))
    noise = draw.uniform(0.3, 1.0) * ranges.noise
    # a magnitude image: the noise of both channels (Rician)
    real, imaginary = (noise * draw.normal(image.shape) for _ in range(2))
    unit = ((unit + real) ** 2 + imaginary**2).sqrt()
    offset = draw.uniform(0, ranges.offset)
    return (unit + offset) * width * draw.factor(ranges.gain)


def _ct(
    image: Tensor, body: Tensor, draw: _Draw, spacing: Sequence[float], ranges: ProtocolRanges
) -> Tensor:
    """Contrast agent, kernel, tube current, calibration."""
    out = image
    if ranges.contrast_hu > 0:
        blood = body * ((image > 20) & (image < 120)) * (draw.smooth(_VESSEL_CELLS) > 0.4)
        out = out + draw.uniform(0, ranges.contrast_hu) * blood
    kernel = draw.uniform(-1.0, ranges.kernel)
    width = draw.uniform(1.5, 3.0)
    soft = gaussian_blur(out[0], [width / _FWHM / s for s in spacing])[None]
    sigma = draw.uniform(0, ranges.noise_hu) * (0.6 + 0.4 * max(kernel, 0.0))
    out = out + kernel * (out - soft) + sigma * draw.normal(image.shape)
    shifted = out + draw.uniform(-ranges.calibration_hu, ranges.calibration_hu)
    return shifted.clamp(*_STORED_HU)


def _emission(
    image: Tensor, body: Tensor, draw: _Draw, spacing: Sequence[float], ranges: ProtocolRanges
) -> Tensor:
    """Uptake time, point spread, counts, unit."""
    positive = image.clamp_min(0)
    mean = ((positive * body).sum() / body.sum().clamp_min(1)).clamp_min(1e-12)
    unit = (positive / mean) ** draw.factor(ranges.uptake_gamma)
    sigma_mm = draw.uniform(0, ranges.blur_mm)
    unit = gaussian_blur(unit[0], [sigma_mm / s for s in spacing])[None]
    sigma = draw.uniform(0, ranges.uptake_noise)
    noise = gaussian_blur(draw.normal(image.shape)[0], [4.0 / _FWHM / s for s in spacing])[None]
    noise = noise / noise.std().clamp_min(1e-6)
    unit = (unit + sigma * unit.clamp_min(0).sqrt() * noise).clamp_min(0)
    return unit * mean * draw.factor(ranges.uptake_scale)


def _histogram_warp(unit: Tensor, log_slopes: Tensor) -> Tensor:
    """A piecewise linear increasing curve from (0, 0) to (1, 1) that goes on beyond."""
    rise = log_slopes.softmax(0)
    count = len(rise)
    out = torch.zeros_like(unit)
    for k in range(count):
        part = (unit - k / count) * count
        out = out + rise[k] * (part.clamp(0, 1) if k < count - 1 else part.clamp_min(0))
    return out


def _quantile(image: Tensor, body: Tensor, share: float) -> Tensor:
    """A quantile inside a mask; of everything where the mask is empty."""
    inside = image[body > 0.5]
    inside = inside if inside.numel() else image.flatten()
    return inside.sort().values[int(share * (inside.numel() - 1))]


def _curved(image: Tensor, values: Tensor) -> Tensor:
    """The image through a curve of straight pieces between evenly spaced knots."""
    low, high = float(image.min()), float(image.max())
    knots = len(values) - 1
    unit = ((image - low) / max(high - low, 1e-3) * knots).clamp(0, knots - 1e-3)
    at = unit.floor().long()
    part = unit - at
    out = values[at] * (1 - part) + values[at + 1] * part
    return ((out - out.mean()) / out.std().clamp_min(1e-3)).clamp(-4, 4)
