"""How good a fused image is, source by source and in the usual sums.

Convention of every function here:
    - images are ``(*S)`` arrays or CPU tensors on one grid, 2D or 3D; ``data_range`` is full scale
    - only what lies in ``mask`` counts; filters look beyond it
    - sources stand one by one, so that copying one of them cannot win
    - volumes: SSIM and edges with 3D filters, VIF slice by slice along the last axis

SSIM, VIF and PSNR are our own: torchmetrics' and MONAI's take no mask and other borders, and
inference would have to import torchmetrics. At 128³ torchmetrics' SSIM runs out of memory, and its
VIF takes 27 times as long and is NaN for an even slice (docs/decisions/0024-metrics.md).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fusion_pipeline.metrics.edges import added_edges, transferred_edges
from fusion_pipeline.metrics.fidelity import fidelity_sums, similarity_map
from fusion_pipeline.metrics.information import entropy, mutual_information
from fusion_pipeline.metrics.slabs import Array, Mask, cropped, pooled, slabs

_WINDOW = 7  # voxels, of SSIM, as in scikit-image
_WHOLE_SCALE = 17  # voxels, the window of the finest scale of VIF (Sheikh and Bovik 2006)
_LEAST_ERROR = 1e-12  # of the mean square: equal images have 120 dB, not infinity


def ssim(
    fused: npt.ArrayLike,
    source: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    data_range: float = 1.0,
) -> float:
    """Structural similarity: mean over uniform windows of 7 voxels, which have to fit the image.

    A thinner axis takes the largest odd window that it can.

    References:
        Wang et al., "Image quality assessment: from error visibility to structural similarity",
        IEEE TIP 2004.
    """
    images, inside = cropped([fused, source], mask, data_range)
    windows = [min(_WINDOW, n - 1 + n % 2) for n in inside.shape]
    whole = np.zeros(inside.shape, np.bool_)
    whole[tuple(slice(w // 2, n - w // 2) for w, n in zip(windows, inside.shape, strict=True))] = 1
    whole &= inside

    def maps(x: Array, y: Array) -> tuple[Array, ...]:
        return (similarity_map(x, y, windows),)

    total = pooled(maps, images, whole, halo=_WINDOW // 2)[0]
    return float(total / whole.sum()) if whole.any() else float("nan")


def psnr(
    fused: npt.ArrayLike,
    source: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    data_range: float = 1.0,
) -> float:
    """Peak signal to noise, ``10 log₁₀(data_range² / MSE)`` in dB, at most 120."""
    (f, s), inside = cropped([fused, source], mask, data_range)
    return _decibels(_squared_error(f, s, inside))


def vif(
    fused: npt.ArrayLike,
    source: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    data_range: float = 1.0,
) -> float:
    """Visual information fidelity of a source in the fused image, pixel domain, four scales.

    The mask only crops: what is flat in the source weighs nothing. For volumes nothing is
    published; the information of all slices along the last axis is added up before the division.

    Returns:
        Mostly 0 to 1; 1 for a flat source, NaN for slices of less than 17 × 17 pixels.

    References:
        Sheikh and Bovik, "Image information and visual quality", IEEE TIP 2006.
    """
    (f, s), _ = cropped([fused, source], mask, data_range)
    if min(f.shape[:2]) < _WHOLE_SCALE:
        return float("nan")
    total = np.zeros(2)
    for start, stop in slabs(f.shape):
        total += fidelity_sums(s[..., start:stop], f[..., start:stop])
    return float(total[0] / total[1]) if total[1] > 0 else 1.0


def edge_transfer(
    fused: npt.ArrayLike,
    source: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    data_range: float = 1.0,
) -> float:
    """Share of a source's edges that the fused image keeps, in strength and direction: Q^{S/F}.

    Volumes use 3D Sobel filters and the angle between two gradients.

    Returns:
        0 to 1; 1 for a source without edges.

    References:
        Xydeas and Petrovic, "Objective image fusion performance measure", Electronics Letters
        2000.
    """
    images, inside = cropped([fused, source], mask, data_range)
    kept, there = _edge_sums(images, inside)
    return float(kept / there) if there > 0 else 1.0


def artefacts(
    fused: npt.ArrayLike,
    sources: Sequence[npt.ArrayLike],
    mask: npt.ArrayLike | None = None,
    data_range: float = 1.0,
) -> float:
    """Edges of the fused image that no source has: N^{AB/F}, modified; lower is better.

    References:
        Shreyamsha Kumar, "Multifocus and multispectral image fusion based on pixel significance
        using discrete cosine harmonic wavelet transform", Signal, Image and Video Processing 2013;
        after Petrovic and Xydeas, "Objective image fusion performance characterisation", ICCV 2005.
    """
    added, weights = _added_edge_sums(*cropped([fused, *sources], mask, data_range))
    return _share(added.sum(), weights.sum())


def scd(
    fused: npt.ArrayLike,
    sources: Sequence[npt.ArrayLike],
    mask: npt.ArrayLike | None = None,
    data_range: float = 1.0,
) -> float:
    """Sum of the correlations of differences: ``Σ_k r(fused − others, source_k)``.

    With more than two sources, "others" is the mean of the other ones.

    References:
        Aslantas and Bendes, "A new image quality metric for image fusion: the sum of the
        correlations of differences", AEÜ 2015.
    """
    return sum(_difference_correlations(*cropped([fused, *sources], mask, data_range)))


def fusion_scores(
    fused: npt.ArrayLike,
    sources: Mapping[str, npt.ArrayLike],
    mask: npt.ArrayLike | None = None,
    data_range: float = 1.0,
) -> dict[str, float]:
    """Every score of this module.

    Args:
        fused: ``(*S)``.
        sources: modality key → ``(*S)``, at least two.
        mask: ``(*S)``, nonzero where to judge; a body mask also saves time.
        data_range: full scale of all images.

    Returns:
        ``{ssim,q,vif,mi,psnr}_<key>`` for each source; ``_min`` over them of each of these;
        ``{ssim,vif,mi}_sum``; ``q`` (Q^{AB/F}, weighted by all edges), ``nabf``, ``scd``,
        ``entropy`` (bits), ``psnr`` (of the mean error, as the fusion literature has it);
        ``nabf_<key>`` (its mean, weighted by the edges of each source, is ``nabf``) and
        ``scd_<key>`` (their sum is ``scd``).

    Raises:
        ValueError: for fewer than two sources or images on different grids.
    """
    if len(sources) < 2:
        raise ValueError(f"a fused image has at least two sources, got {list(sources)}")
    (f, *arrays), inside = cropped([fused, *sources.values()], mask, data_range)
    scores: dict[str, float] = {}
    edges, errors = np.zeros(2), []
    for key, source in zip(sources, arrays, strict=True):
        scores[f"ssim_{key}"] = ssim(f, source, inside, 255.0)
        scores[f"vif_{key}"] = vif(f, source, inside, 255.0)
        scores[f"mi_{key}"] = mutual_information(f, source, inside, 255.0)
        kept, there = _edge_sums([f, source], inside)
        scores[f"q_{key}"] = float(kept / there) if there > 0 else 1.0
        edges += kept, there
        errors.append(_squared_error(f, source, inside))
        scores[f"psnr_{key}"] = _decibels(errors[-1])
    for name in ("ssim", "q", "vif", "mi", "psnr"):
        scores[f"{name}_min"] = float(np.min([scores[f"{name}_{key}"] for key in sources]))
    for name in ("ssim", "vif", "mi"):
        scores[f"{name}_sum"] = sum(scores[f"{name}_{key}"] for key in sources)
    scores["q"] = float(edges[0] / edges[1]) if edges[1] > 0 else 1.0
    scores["psnr"] = _decibels(float(np.mean(errors)))
    added, weights = _added_edge_sums([f, *arrays], inside)
    scores["nabf"] = _share(added.sum(), weights.sum())
    scores["entropy"] = entropy(f, inside, 255.0)
    correlations = _difference_correlations([f, *arrays], inside)
    scores["scd"] = sum(correlations)
    for n, key in enumerate(sources):
        scores[f"nabf_{key}"] = _share(added[n], weights[n])
        scores[f"scd_{key}"] = correlations[n]
    return scores


def _added_edge_sums(images: Sequence[Array], inside: Mask) -> tuple[Array, Array]:
    """Per source the edges that the fused image adds, and all of its own."""
    added, weights = np.split(pooled(added_edges, images, inside, halo=1), 2)
    return added, weights


def _difference_correlations(images: Sequence[Array], inside: Mask) -> list[float]:
    """Per source its correlation with what the fused image shows beside the other sources."""
    f, *parts = (image[inside] for image in images)
    everything = sum(parts)
    return [_correlation(f - (everything - s) / max(len(parts) - 1, 1), s) for s in parts]


def _share(part: float, whole: float) -> float:
    """0 of nothing."""
    return float(part / whole) if whole > 0 else 0.0


def _edge_sums(images: Sequence[Array], inside: Mask) -> Array:
    """Edges kept and edges there, of a fused image and one source."""
    return pooled(transferred_edges, images, inside, halo=1)


def _squared_error(a: Array, b: Array, inside: Mask) -> float:
    """Mean squared error as a share of full scale squared."""
    return float(np.mean((a[inside] - b[inside]) ** 2)) / 255.0**2


def _decibels(error: float) -> float:
    """A squared error as a share of full scale, in dB."""
    return float(-10 * np.log10(max(error, _LEAST_ERROR)))


def _correlation(a: Array, b: Array) -> float:
    """Pearson's r, 0 if either is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0
