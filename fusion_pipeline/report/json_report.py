"""The report for programs: one dictionary of plain, strict JSON values."""

import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

import fusion_pipeline
from fusion_pipeline.data import Image
from fusion_pipeline.geometry import apply_affine
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.register import GivenStart, Registration
from fusion_pipeline.report.planes import coarse_content
from fusion_pipeline.result import CaseResult

# Names of the written files by role; per image key where a role has several.
FileNames = Mapping[str, str | Mapping[str, str]]

_LIBRARIES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom")


def case_report(result: CaseResult, files: FileNames) -> dict[str, Any]:
    """Gather what was done and measured.

    Args:
        result: a complete result.
        files: what was written, such as ``{"registered": {"mr": "mr_registered.nii.gz"}, "fused":
            "fused.nii.gz"}``; listed as it is.

    Returns:
        The content of ``report.json``: plain Python values, no NaN (null instead), lengths in mm.
        ``input`` (the digest), ``evaluation`` and ``only`` (the one stage that ran) are there where
        the result has them.
    """
    fixed = result.case.fixed
    report = {
        "id": result.case.id,
        "reference": result.case.reference,
        "modalities": list(result.modalities),
        "files": files,
        "grids": _grids(result),
        "registration": {
            key: _registration(registration, fixed)
            for key, registration in result.registrations.items()
        },
        "harmonization": dict(result.harmonization.scores),
        "fusion": {} if result.fusion is None else dict(result.fusion.scores),
        "warnings": list(result.warnings),
        "versions": _versions(),
        "timings": result.timings,
        "peak_memory_mb": result.peak_memory_mb,
        **({"input": result.input_digest} if result.input_digest else {}),
        **({"evaluation": result.evaluation} if result.evaluation else {}),
        **({"only": result.only} if result.only else {}),
    }
    plain: dict[str, Any] = _plain(report)
    return plain


def _grids(result: CaseResult) -> dict[str, Any]:
    """Where the voxels of each image lie: the reference's as its file has them, else canonical."""
    images = {**result.case.images, result.case.reference: result.grid}
    return {key: {"shape": one.shape, "affine": one.affine} for key, one in images.items()}


def _registration(registration: Registration, fixed: Image) -> dict[str, Any]:
    """One moving image's numbers."""
    evidence = registration.evidence
    points = coarse_content(fixed).points
    length = np.linalg.norm(registration.map.points(points) - points, axis=-1)
    return {
        "ok": evidence.ok,
        "reason": evidence.reason,
        "transform": evidence.transform,
        "aligned_already": evidence.aligned_already,
        "similarity_before": evidence.similarity_before,
        "similarity_after": evidence.similarity_after,
        "folded_fraction": evidence.folded_fraction,
        "error_mm": evidence.error_mm,
        "over_5_mm": evidence.over_5_mm,
        **_pose(registration.map.moving_from_fixed, fixed),
        "displacement_mm": {"mean": length.mean(), "max": length.max()},
        "details": evidence.details,
        **({} if evidence.given_start is None else _given_start(evidence.given_start)),
    }


def _given_start(given: GivenStart) -> dict[str, Any]:
    """The initial transform that the user gave, and how far it lies from headers and result."""
    return {
        "initial_transform": {
            "moving_from_fixed": given.moving_from_fixed,
            "from_headers_mm": given.from_headers_mm,
            "from_result_mm": given.from_result_mm,
        }
    }


def _pose(moving_from_fixed: Matrix, fixed: Image) -> dict[str, Any]:
    """The affine part in words: angle, shift of the reference's centre, growth per axis."""
    d = fixed.spatial_dims
    linear = moving_from_fixed[:d, :d]
    u, _, vt = np.linalg.svd(linear)
    rotation = u @ vt
    cosine = (np.trace(rotation) - (d - 2)) / 2
    centre = apply_affine(fixed.affine, (np.asarray(fixed.shape) - 1) / 2)
    return {
        "rotation_deg": math.degrees(math.acos(min(1.0, max(-1.0, float(cosine))))),
        "translation_mm": apply_affine(moving_from_fixed, centre) - centre,
        "scale": abs(np.linalg.det(linear)) ** (1 / d),
        "moving_from_fixed": moving_from_fixed,
    }


def _versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {
        "fusion_pipeline": fusion_pipeline.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything goes in, JSON comes out
    """Strict JSON values: mappings, lists, strings, finite numbers, null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)
