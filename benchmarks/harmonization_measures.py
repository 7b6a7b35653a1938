"""What is measured of a harmonization: between protocols, of what is kept, between modalities."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata
from skimage.filters import threshold_multiotsu

Array = np.ndarray
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
        for a, b in zip(parts[:-1], parts[1:], strict=True)
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
    near = (
        ndimage.binary_dilation(lesion, iterations=10)
        & body
        & ~ndimage.binary_dilation(lesion, iterations=2)
    )
    rest = body & ~lesion
    return float((image[lesion].mean() - image[near].mean()) / max(image[rest].std(), 1e-9))
