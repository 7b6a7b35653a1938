"""What a reader needs of a fused patient, measured on sources as a reader displays them.

Sources: CT −160 to 240 HU, MR percentiles 1 to 99 of its body, PET 0 to percentile 99.5 of the
body. Each is judged inside its own field of view. Regions come from the CT's HU and the tumour's
contour.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import spearmanr

from fusion_pipeline.metrics import artefacts, edge_transfer, ssim, vif

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
_AROUND_MM = 8.0
_PET_SMOOTHING_MM = 2.5
_BONE_HU, _FAT_HU, _MUSCLE_HU = 200.0, (-140.0, -60.0), (20.0, 90.0)
_TISSUE_HU = (-160.0, 160.0)
_LEAST_VOXELS = 200
_BLACK = 3 / 255
_FULL = 0.995


@dataclass(frozen=True)
class Scene:
    """A patient on one grid.

    Attributes:
        shown: per key, ``S`` in 0..1: sources as displayed.
        view: per key, ``S`` bool: fields of view.
        body: ``S`` bool, of the CT.
        hu: ``S``.
        tumour: ``S`` bool.
        spacing: mm along each axis.
    """

    shown: dict[str, Array]
    view: dict[str, Mask]
    body: Mask
    hu: Array
    tumour: Mask
    spacing: npt.NDArray[np.float64]


def displayed(original: Array, key: str, body: Mask) -> Array:
    """The grey values of a reader's window, 0..1."""
    if key == "ct":
        low, high = -160.0, 240.0
    elif key == "mr":
        low, high = np.percentile(original[body], [1, 99])
    else:
        low, high = 0.0, np.percentile(original[body], 99.5)
    return np.clip((original - low) / max(high - low, 1e-9), 0, 1)


def measures(fused: Array, scene: Scene) -> dict[str, float]:
    """All measures of one fused volume; NaN where a region is too small.

    Args:
        fused: ``S`` in 0..1.
        scene: what it was made of.
    """
    out: dict[str, float] = {}
    depth = fused.shape[2]
    planes = [depth // 4, depth // 2, 3 * depth // 4]
    for name, score in (("q", edge_transfer), ("vif", vif), ("ssim", ssim)):
        for key, source in scene.shown.items():
            rows = [_scored(score, fused, source, key, scene, k) for k in planes]
            out[f"{name}_{key}"] = float(np.nanmean(rows))
        out[f"{name}_min"] = min(out[f"{name}_{key}"] for key in scene.shown)
    out["nabf"] = float(
        np.mean(
            [artefacts(fused[..., k], [s[..., k] for s in scene.shown.values()]) for k in planes]
        )
    )
    return out | contrasts(fused, scene) | faults(fused, scene)


def _scored(score, fused, source, key, scene, k):  # noqa: ANN001, ANN202
    """A slice; PET after both images are smoothed."""
    a, b, inside = fused[..., k], source[..., k], scene.view[key][..., k]
    if key == "pet":
        sigma = _PET_SMOOTHING_MM / scene.spacing[:2]
        a, b = (ndimage.gaussian_filter(x, sigma) for x in (a, b))
    inside = inside & ndimage.binary_dilation(scene.body[..., k], iterations=2)
    return score(a, b, inside) if inside.sum() > _LEAST_VOXELS else float("nan")


def contrasts(fused: Array, scene: Scene) -> dict[str, float]:
    """Contrast kept: of fused over source, in displayed grey values, sign kept."""
    out: dict[str, float] = {}
    bone = _bone(scene)
    if "ct" in scene.shown:
        out["bone"] = _kept(fused, scene.shown["ct"], bone, _tissue_around(bone, scene))
        cortical = fused[bone], scene.hu[bone]
        enough = bone.sum() > _LEAST_VOXELS
        out["rank_in_bone"] = float(spearmanr(*cortical)[0]) if enough else float("nan")
    if "mr" in scene.shown:
        smooth = ndimage.median_filter(scene.hu, 3)
        fat, muscle = (
            ndimage.binary_erosion((smooth > low) & (smooth < high)) & scene.body & scene.view["mr"]
            for low, high in (_FAT_HU, _MUSCLE_HU)
        )
        out["fat_muscle"] = _kept(fused, scene.shown["mr"], fat, muscle & ~scene.tumour)
    if "pet" in scene.shown:
        inside = scene.tumour & scene.view["pet"]
        uptake = scene.shown["pet"]
        out["tumour"] = _kept(fused, uptake, inside, _tissue_around(inside, scene))
        x, y = uptake[inside], fused[inside]
        enough = len(x) > _LEAST_VOXELS and x.std() > 1e-3
        out["tone_slope"] = float(np.polyfit(x, y, 1)[0]) if enough else float("nan")
    return out


def faults(fused: Array, scene: Scene) -> dict[str, float]:
    """Background, saturation, and the step where a field of view ends."""
    air = ~ndimage.binary_dilation(scene.body, iterations=3)
    for source in scene.shown.values():
        air &= source <= _BLACK
    out = {
        "background": float(fused[air].mean()) if air.any() else 0.0,
        "saturated": float((fused[scene.body] >= _FULL).mean()),
    }
    steps = [_frame(fused, view, scene.body) for view in scene.view.values()]
    out["frame"] = float(np.nanmax([1.0, *steps]))
    return out


def _frame(fused: Array, view: Mask, body: Mask) -> float:
    """Steps across the end of a field of view, over those of the voxels beside it; 1: no frame."""
    across, beside = [], []
    for axis in range(3):
        step = np.abs(np.diff(fused, axis=axis))
        inside = body.take(range(1, body.shape[axis]), axis) & body.take(
            range(body.shape[axis] - 1), axis
        )
        ends = np.diff(view.astype(np.int8), axis=axis) != 0
        near = ndimage.binary_dilation(ends, iterations=4) & ~ndimage.binary_dilation(ends)
        across.append(step[ends & inside])
        beside.append(step[near & inside])
    ends, rest = np.concatenate(across), np.concatenate(beside)
    if len(ends) < _LEAST_VOXELS or len(rest) < _LEAST_VOXELS:
        return float("nan")
    return float(ends.mean() / max(rest.mean(), 1e-6))


def _bone(scene: Scene) -> Mask:
    """Bones with their marrow."""
    dense = (scene.hu > _BONE_HU) & scene.body
    closed = ndimage.binary_closing(dense, iterations=3)
    filled = np.stack(
        [ndimage.binary_fill_holes(closed[..., k]) for k in range(closed.shape[2])], -1
    )
    return filled & scene.body


def _tissue_around(region: Mask, scene: Scene) -> Mask:
    """Soft tissue within 8 mm."""
    distance = ndimage.distance_transform_edt(~region, sampling=scene.spacing)
    low, high = _TISSUE_HU
    tissue = (scene.hu > low) & (scene.hu < high) & scene.body
    return (distance > 0) & (distance <= _AROUND_MM) & tissue


def _kept(fused: Array, source: Array, region: Mask, around: Mask) -> float:
    """Contrast of a region against another, fused over source."""
    if min(region.sum(), around.sum()) < _LEAST_VOXELS:
        return float("nan")
    own = source[region].mean() - source[around].mean()
    if abs(own) < 0.05:
        return float("nan")
    return float((fused[region].mean() - fused[around].mean()) / own)


__all__ = ["Scene", "contrasts", "displayed", "faults", "measures"]
