"""What is measured of a harmonization: between protocols, of what is kept, between modalities.

The oracle is the best increasing curve and the best third-order log-polynomial bias: no mapping of
that family does better on the pair.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage
from scipy.optimize import isotonic_regression
from scipy.stats import rankdata
from skimage.filters import threshold_multiotsu

Array = np.ndarray
_POINTS = 60_000
_SMOOTHING_MM = 2.0
_BLOCK = 24  # voxels
_CLASSES = {"ct": 4, "mr": 2, "pet": 2}


def residual(first: Array, second: Array, body: Array) -> float:
    """RMS difference over the body, in standard deviations of the first."""
    a, b = first[body], second[body]
    return float(np.sqrt(np.mean((a - b) ** 2)) / max(a.std(), 1e-9))


def smoothed(image: Array, body: Array, spacing: Sequence[float]) -> Array:
    """Gaussian of 2 mm within the body."""
    sigma = [_SMOOTHING_MM / s for s in spacing]
    share = ndimage.gaussian_filter(body.astype(np.float32), sigma)
    return ndimage.gaussian_filter(image * body, sigma) / np.maximum(share, 1e-3)


def tissue_classes(source: Array, body: Array, kind: str) -> Array:
    """Otsu's classes of the input, from 0; −1 outside the body.

    CT: air and lung, fat, muscle, bone; MR: muscle and fat; PET: two classes.
    """
    values = np.clip(source[body], *np.percentile(source[body], (0.5, 99.5)))
    if kind == "ct":
        levels = np.array([-200.0, -30.0, 180.0])
    else:
        levels = threshold_multiotsu(values, _CLASSES[kind], nbins=256)
    return np.where(body, np.digitize(source, levels), -1)


def separation(image: Array, classes: Array) -> float:
    """Mean over neighbouring classes of the difference of means over the pooled deviation."""
    parts = [image[classes == c] for c in range(classes.max() + 1)]
    parts = [p for p in parts if len(p) > 200]
    apart = [
        (b.mean() - a.mean()) / max(np.sqrt((a.var() + b.var()) / 2), 1e-9)
        for a, b in pairwise(parts)
    ]
    return float(np.mean(apart))


def local_rank_correlation(image: Array, source: Array, body: Array) -> float:
    """Spearman's correlation with the input in blocks of 24 voxels, mean over the blocks."""
    out = []
    for corner in np.ndindex(*[-(-n // _BLOCK) for n in body.shape]):
        block = tuple(slice(c * _BLOCK, (c + 1) * _BLOCK) for c in corner)
        inside = body[block]
        if inside.sum() > 500:
            a, b = (rankdata(x[block][inside]) for x in (image, source))
            if a.std() > 0 and b.std() > 0:
                out.append(np.corrcoef(a, b)[0, 1])
    return float(np.mean(out))


def gradient_direction(image: Array, source: Array, body: Array) -> float:
    """Mean cosine between the gradients, weighted by the input's gradient."""
    g, h = np.stack(np.gradient(image)), np.stack(np.gradient(source))
    inside = ndimage.binary_erosion(body)
    lengths = np.linalg.norm(h, axis=0)
    cosine = (g * h).sum(0) / np.maximum(np.linalg.norm(g, axis=0) * lengths, 1e-12)
    return float((cosine * lengths)[inside].sum() / lengths[inside].sum())


def contrast_to_noise(image: Array, lesion: Array, body: Array) -> float:
    """Lesion minus its surroundings (within 10 voxels), over the body's deviation without it."""
    margin = ndimage.binary_dilation(lesion, iterations=2)
    near = ndimage.binary_dilation(lesion, iterations=10) & body & ~margin
    rest = body & ~lesion
    return float((image[lesion].mean() - image[near].mean()) / max(image[rest].std(), 1e-9))


def shared_tissue(first: Array, second: Array, both: Array) -> dict[str, float]:
    """Correlation of two modalities over their common body, and distance in deviations."""
    a, b = first[both], second[both]
    spread = max((a.std() + b.std()) / 2, 1e-9)
    return {
        "correlation": float(np.corrcoef(a, b)[0, 1]),
        "distance": float(np.sqrt(np.mean((a - b) ** 2)) / spread),
    }


def oracle_residual(other: Array, base: Array, body: Array) -> float:
    """Residual after the best increasing curve and the best smooth bias."""
    where = np.argwhere(body)
    drawn = np.random.default_rng(0).permutation(len(where))[:_POINTS]
    unit = where[drawn] / np.array(base.shape) * 2 - 1
    a, c = (image[body][drawn].astype(float) for image in (other, base))
    powers = [p for p in np.ndindex(*[4] * base.ndim) if sum(p) <= 3]
    terms = np.stack([np.prod(unit**p, axis=1) for p in powers], 1)
    field, best = np.ones(len(a)), np.inf
    for _ in range(8):
        curve = _increasing_fit(a / field, c)
        left = c - curve(a / field)
        best = min(best, float(np.sqrt(np.mean(left**2)) / c.std()))
        step = 0.02
        slope = (curve(a / (field * (1 + step))) - curve(a / (field * (1 - step)))) / (2 * step)
        change = np.linalg.lstsq(terms * slope[:, None], left, rcond=None)[0]
        field = field * np.exp(np.clip(terms @ change, -0.3, 0.3) * 0.7)
    return best


def _increasing_fit(x: Array, y: Array) -> Callable[[Array], Array]:
    """The increasing curve that predicts ``y`` best: isotonic means of 200 quantile cells."""
    edges = np.unique(np.quantile(x, np.linspace(0, 1, 201)))
    cell = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    count = np.bincount(cell, minlength=len(edges) - 1)
    inside = count > 0
    at, mean = (np.bincount(cell, v, len(count))[inside] / count[inside] for v in (x, y))
    fit = isotonic_regression(mean, weights=count[inside]).x
    return lambda t: np.interp(t, at, fit)
