"""Edges carried from the sources into a fused image, and edges that no source has."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from fusion_pipeline.metrics.slabs import Array


def transferred_edges(fused: Array, source: Array) -> tuple[Array, Array]:
    """How well each edge of a source survives, weighted by its strength.

    Args:
        fused: ``(*S)`` on the scale 0 … 255.
        source: ``(*S)``.

    Returns:
        ``Q · g`` and ``g``, the source's gradient magnitude; their sums give Q.
    """
    here, there = _gradient(source, "constant"), _gradient(fused, "constant")
    g, g_fused = _strength(here), _strength(there)
    strength = 0.9994 / (1 + np.exp(-15 * (_ratio(g, g_fused) - 0.5)))
    alike = 1 - _angle(here, there) / (np.pi / 2)
    orientation = 0.9879 / (1 + np.exp(-22 * (alike - 0.8)))
    return strength * orientation * g, g


def added_edges(fused: Array, *sources: Array) -> tuple[Array, ...]:
    """How much of each edge that is stronger than in any source comes from none of them.

    Args:
        fused: ``(*S)`` on the scale 0 … 255.
        sources: ``(*S)`` each.

    Returns:
        Of each source the numerator of N, then of each the denominator.
    """
    there = _gradient(fused, "nearest")
    g_fused = _strength(there)
    lost, weights, strongest = [], [], np.zeros(fused.shape)
    for source in sources:
        here = _gradient(source, "nearest")
        g = _strength(here)
        alike = np.abs(_angle(here, there) - np.pi / 2) / (np.pi / 2)
        strength = 0.9999 / (1 + np.exp(-19 * (_ratio(g, g_fused) - 0.5)))
        orientation = 0.9995 / (1 + np.exp(-22 * (alike - 0.5)))
        weight = np.where(g >= 2, g**1.5, 0.001)
        lost.append((1 - np.sqrt(strength * orientation)) * weight)
        weights.append(weight)
        strongest = np.maximum(strongest, g)
    added = g_fused > strongest
    return (*(added * one for one in lost), *weights)


def _gradient(image: Array, mode: str) -> list[Array]:
    """Sobel derivatives along each axis; a third axis is averaged over, to keep the 2D scale."""
    parts = []
    for axis in range(image.ndim):
        part = ndimage.correlate1d(image, [-1.0, 0.0, 1.0], axis, mode=mode)
        for other in set(range(image.ndim)) - {axis}:
            part = ndimage.correlate1d(part, [1.0, 2.0, 1.0], other, mode=mode)
        parts.append(part / 4.0 ** (image.ndim - 2))
    return parts


def _strength(gradient: Sequence[Array]) -> Array:
    """Gradient magnitude."""
    return np.asarray(np.sqrt(sum(part * part for part in gradient)))


def _ratio(a: Array, b: Array) -> Array:
    """The smaller by the larger, 0 where both are 0."""
    larger = np.maximum(a, b)
    return np.divide(np.minimum(a, b), larger, out=np.zeros(a.shape), where=larger > 0)


def _angle(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """Between two edges. In 2D as published: the difference of two angles in (−π/2, π/2].

    Two nearly parallel edges on both sides of ±π/2 differ by almost π there. In 3D, where nothing
    is published, it is the angle between the two lines, in [0, π/2].
    """
    if len(a) == 2:
        return np.asarray(np.abs(_slope_angle(a) - _slope_angle(b)))
    product = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = _strength(a) * _strength(b)
    cosine = np.divide(np.abs(product), lengths, out=np.ones(lengths.shape), where=lengths > 0)
    return np.asarray(np.arccos(np.clip(cosine, 0, 1)))


def _slope_angle(gradient: Sequence[Array]) -> Array:
    """``arctan(g_down / g_left)``, π/2 where the denominator is 0 (the authors' signs)."""
    down, left = gradient[0], -gradient[1]
    slope = np.divide(down, left, out=np.full(down.shape, np.inf), where=left != 0)
    return np.asarray(np.arctan(slope))
