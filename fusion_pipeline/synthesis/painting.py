"""Random label maps, fields and contrasts: training pairs without acquired images.

The painter follows SynthMorph and SynthSeg: every label gets a random mean and texture, then the
image is blurred, shaded, bent by a gamma, coarsened along an axis and made noisy.

References:
    Hoffmann et al., "SynthMorph: learning contrast-invariant registration without acquired images",
    IEEE TMI 2022. Billot et al., "SynthSeg: segmentation of brain MRI scans of any contrast and
    resolution without retraining", Medical Image Analysis 2023.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fusion_pipeline.geometry import identity_points
from fusion_pipeline.synthesis.noise import (
    chance,
    choice,
    gaussian_blur,
    shrink_and_enlarge,
    smooth_noise,
    uniform,
)

Style = Literal["random", "ct", "mr", "pet"]
STYLES: tuple[Style, ...] = ("random", "ct", "mr", "pet")


def random_label_map(
    shape: Sequence[int],
    generator: torch.Generator,
    n_labels: int = 12,
    *,
    background: bool | None = None,
) -> Tensor:
    """Random shapes: the strongest of several smooth noises, with shells, often in a round body.

    Args:
        shape: spatial shape, 2 or 3 numbers.
        generator: the randomness.
        n_labels: how many labels to use besides 0.
        background: whether label 0 surrounds a closed body; by chance (two in three) where None.

    Returns:
        ``(1, *shape)`` int64, values 0 … n_labels (0 only with a background).
    """
    if n_labels < 1:
        raise ValueError(f"expected at least one label, got n_labels={n_labels}")
    size = max(shape)
    best = torch.full((1, *shape), -torch.inf)
    labels = torch.ones((1, *shape), dtype=torch.int64)
    bases = max(2, (n_labels + 1) // 2)
    for label in range(1, min(bases, n_labels) + 1):
        field = smooth_noise(shape, max(3.0, size * uniform(generator, 0.08, 0.3)), generator)
        labels = torch.where(field > best, label, labels)
        best = torch.maximum(best, field)
    for label in range(bases + 1, n_labels + 1):
        labels = torch.where(_band(shape, generator), label, labels)
    if chance(generator, 0.67) if background is None else background:
        labels = torch.where(_round_body(shape, generator), labels, 0)
    return labels


def _band(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Where a smooth noise lies between two values: shells, sheets, and blobs inside each other."""
    field = smooth_noise(shape, max(3.0, max(shape) * uniform(generator, 0.08, 0.25)), generator)
    low = uniform(generator, 0.2, 1.2)
    return (field > low) & (field < low + uniform(generator, 0.1, 0.8))


def _round_body(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """One or two bumpy ellipsoids, some cut by the border of the lattice."""
    size = torch.tensor(list(shape), dtype=torch.float32)
    unit = identity_points(shape) / (size - 1).clamp_min(1) * 2 - 1
    inside = torch.zeros(tuple(shape), dtype=torch.bool)
    for _ in range(1 + chance(generator, 0.2)):
        centre = torch.rand(len(shape), generator=generator) * 0.6 - 0.3
        radii = torch.rand(len(shape), generator=generator) * 0.6 + 0.6
        distance = ((unit - centre) / radii).square().sum(-1).sqrt()
        inside |= distance + 0.12 * smooth_noise(shape, max(shape) / 4, generator)[0] < 1
    return inside[None]


def random_velocity(
    shape: Sequence[int],
    generator: torch.Generator,
    max_voxels: float = 6.0,
    smoothness: float = 12.0,
) -> Tensor:
    """A smooth random stationary velocity of several scales; `geometry.integrate` makes it a field.

    Args:
        shape: spatial shape, 2 or 3 numbers.
        generator: the randomness.
        max_voxels: length of the longest vector, drawn evenly from 0 to this. The integrated field
            is about as long.
        smoothness: voxels between the knots of the finest scale.

    Returns:
        ``(1, d, *shape)`` voxels.
    """
    d = len(shape)
    out = torch.zeros((d, *shape))
    knots, weight = smoothness, 0.5
    while knots < 2 * max(shape):
        out += weight * smooth_noise(shape, knots, generator, d)
        knots, weight = 2 * knots, 1.4 * weight
    longest = float(out.norm(dim=0).max())
    return (out * (uniform(generator, 0.0, max_voxels) / max(longest, 1e-6)))[None]


def random_field_of_view(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Which voxels an image with a partial field of view knows: a box or slab, at times turned.

    Args:
        shape: spatial shape, 2 or 3 numbers.
        generator: the randomness.

    Returns:
        ``(1, 1, *shape)`` float 0/1; at least about a quarter is 1, all of it in one case of three.
    """
    valid = torch.ones((1, 1, *shape))
    if chance(generator, 1 / 3):
        return valid
    size = torch.tensor(list(shape), dtype=torch.float32)
    unit = identity_points(shape) / (size - 1).clamp_min(1) * 2 - 1
    for axis in range(len(shape)):
        if not chance(generator, 0.5):
            continue
        tilt = torch.zeros(len(shape))
        if chance(generator, 0.5):
            tilt = torch.randn(len(shape), generator=generator) * 0.1
        tilt[axis] = 1.0
        height = unit @ tilt
        low, high = uniform(generator, -1.1, -0.4), uniform(generator, 0.4, 1.1)
        valid *= ((height >= low) & (height <= high)).float()
    return valid


def paint(
    labels: Tensor,
    generator: torch.Generator,
    *,
    style: Style | None = None,
    means: Tensor | None = None,
    background: int | None = 0,
    vary_structures: bool = True,
) -> Tensor:
    """Draw an image of a label map with a contrast that nobody has acquired.

    Args:
        labels: ``(1, *S)`` integers ≥ 0, d = 2 or 3; any numbering (FreeSurfer's too).
        generator: the randomness.
        style: how contrasts, blur and noise are drawn: ``random`` (SynthMorph's), ``ct`` (black
            air, white bone, narrow soft tissue), ``mr``, ``pet`` (heavy blur, few hot labels); one
            of them by chance where None.
        means: ``(n,)`` brightness per label in 0..1, in place of random ones, n above the largest
            label (see `tissue_means` for body label maps).
        background: the label of the air around the body, painted dark and flat or noisy; None where
            there is none.
        vary_structures: merge two labels or split one, in one image of three: structures that only
            one modality sees.

    Returns:
        ``(1, 1, *S)`` float32, mean 0 and deviation 1 over the labels that are not background,
        within [-4, 4].
    """
    chosen = STYLES[choice(generator, 4)] if style is None else style
    values, dense = torch.unique(labels, return_inverse=True)
    table = (
        _random_means(len(values), chosen, generator) if means is None else means[values].clone()
    )
    outside = (
        torch.zeros_like(labels, dtype=torch.bool) if background is None else labels == background
    )
    if background is not None:
        table[values == background] = uniform(generator, -0.03, 0.03)
    split = vary_structures and chance(generator, 1 / 3)
    if split and len(values) > 3:
        table[1 + choice(generator, len(values) - 1)] = table[
            1 + choice(generator, len(values) - 1)
        ]
    image = table[dense] + _texture(dense, len(values), split, generator)
    image = _blurred(image, chosen, generator)
    image = _shaded(image, chosen, generator)
    image = _coarsened(image, generator)
    image = _noisy(image, outside, chosen, generator)
    return _z_scored(image, ~outside)[None]


def _random_means(count: int, style: Style, generator: torch.Generator) -> Tensor:
    """Brightness of each label, 0..1."""
    means = torch.rand(count, generator=generator)
    kind = torch.rand(count, generator=generator)
    if style == "ct":
        soft = uniform(generator, 0.3, 0.5) + uniform(generator, 0.02, 0.12) * (means - 0.5)
        fat = torch.full((count,), uniform(generator, 0.2, 0.28))
        out = torch.where(kind < 0.2, fat, soft)
        out = torch.where(kind > 0.82, 0.6 + 0.4 * means, out)
        return torch.where((kind > 0.76) & (kind < 0.82), 0.03 * means, out)
    if style == "pet":
        return torch.where(kind > 0.85, 0.5 + 0.5 * means, 0.05 + 0.3 * means)
    return means


def _texture(dense: Tensor, count: int, split: bool, generator: torch.Generator) -> Tensor:
    """Slow and fine variation of a strength of its own in each label, so that nothing is flat."""
    shape, size = dense.shape[1:], max(dense.shape[1:])
    slow = smooth_noise(shape, max(3.0, size * uniform(generator, 0.05, 0.2)), generator)
    fine = smooth_noise(shape, uniform(generator, 1.5, 3.0), generator)
    strength = torch.rand((2, count), generator=generator) * uniform(generator, 0.0, 0.1)
    texture = strength[0][dense] * slow + 0.5 * strength[1][dense] * fine
    if split:  # a part of one label looks like something else
        one = dense == choice(generator, count)
        texture = texture + one * (slow > 0) * uniform(generator, -0.4, 0.4)
    return texture


def _blurred(image: Tensor, style: Style, generator: torch.Generator) -> Tensor:
    """The scanner's point spread."""
    strongest = 3.0 if style == "pet" else 1.0
    weakest = 1.0 if style == "pet" else 0.0
    return gaussian_blur(image, uniform(generator, weakest, strongest))


def _shaded(image: Tensor, style: Style, generator: torch.Generator) -> Tensor:
    """Bias field and gamma; CT has neither, beyond a little cupping."""
    strength = uniform(generator, 0.0, 0.05 if style == "ct" else 0.4)
    bias = smooth_noise(
        image.shape[1:], max(image.shape[1:]) * uniform(generator, 0.4, 1.0), generator
    )
    if style != "ct":
        low, high = image.min(), image.max()
        gamma = 2.0 ** uniform(generator, -0.7, 0.7)
        image = ((image - low) / (high - low).clamp_min(1e-6)) ** gamma * (high - low) + low
    return image * torch.exp(strength * bias)


def _coarsened(image: Tensor, generator: torch.Generator) -> Tensor:
    """Thick slices along one axis, or large voxels along all."""
    kind = uniform(generator, 0.0, 1.0)
    d = image.ndim - 1
    factors = [1.0] * d
    if kind < 0.3:
        factors[choice(generator, d)] = uniform(generator, 1.5, 4.0)
    elif kind < 0.45:
        factors = [uniform(generator, 1.2, 2.5)] * d
    return image if max(factors) == 1.0 else shrink_and_enlarge(image, factors)


def _noisy(image: Tensor, outside: Tensor, style: Style, generator: torch.Generator) -> Tensor:
    """White or, for PET, blobby noise; Rician air, clean air, or none."""
    level = uniform(generator, 0.0, 0.05 if style == "ct" else 0.08)
    noise = torch.randn(image.shape, generator=generator)
    if style == "pet":
        noise = gaussian_blur(noise, 1.0) * 2.5
    noisy = image + level * noise
    if chance(generator, 0.4):  # masked or clipped air
        return torch.where(outside & (noisy < level * 3 + 0.05), 0.0, noisy)
    return noisy.abs() if style == "mr" else noisy


def _z_scored(image: Tensor, body: Tensor) -> Tensor:
    """As `NormalizeModality` leaves an image: tails cut, mean 0 and deviation 1 in the body."""
    values = image[body] if bool(body.any()) else image.flatten()
    part = values[:: max(1, values.numel() // 50_000)].sort().values
    low, high = part[int(0.01 * (len(part) - 1))], part[int(0.99 * (len(part) - 1))]
    clipped = values.clamp(low, high)
    std = clipped.std(correction=0).clamp_min(1e-3)
    return ((image.clamp(low.clamp_max(0.0), high) - clipped.mean()) / std).clamp(-4.0, 4.0)
