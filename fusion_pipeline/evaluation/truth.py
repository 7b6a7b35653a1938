"""What a result is worth where the truth is known: true fields, landmarks, labels (METHOD 7)."""

from collections.abc import Mapping

import numpy as np
import torch

from fusion_pipeline.data import Image, Series
from fusion_pipeline.geometry import WorldMap, apply_affine, ddf_from_ddf_mm
from fusion_pipeline.geometry.affines import Matrix
from fusion_pipeline.metrics import (
    dice,
    hd95,
    log_jacobian_std,
    target_registration_error,
)
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.result import CaseResult
from fusion_pipeline.transforms import body_mask

_POINTS = 20_000  # voxels at most; a spread as large as the mean then errs by 0.7 %
_INVERTED_SHARE = 10  # of these points one is mapped forth and back

Scores = dict[str, float]


def evaluate(result: CaseResult) -> dict[str, Scores]:
    """Per moving key, the error before and after, as far as the case brings a truth.

    Convention:
        - unit: mm; ``before`` means where the headers place the images
        - a true field counts on voxels of the reference's body, landmarks where they are set

    Args:
        result: what the pipeline found, with the case's truth in it.

    Returns:
        Names are ``tre_mm_before``, ``tre_mm_after`` and ``tre_mm_after_max`` (true field),
        ``landmarks_mm_before`` and ``…_after``, ``dice_before`` and ``…_after``, ``hd95_mm_before``
        and ``…_after`` (mean over the labels that both images have), and the same of each label
        as ``dice_label_<n>_before`` and so on; beside any of them ``sd_log_jacobian`` of the field
        and ``inverse_consistency_mm``: the mean ``|φ⁻¹(φ(x)) − x|`` in the reference's body, with
        the inverse as it is written. Empty without a truth.
    """
    found = {
        key: {
            **_field_error(result, key),
            **_landmark_error(result, key),
            **_overlap(result, key),
        }
        for key in result.registrations
    }
    return {
        key: {**scores, **regularity(result, key)} if scores else {}
        for key, scores in found.items()
    }


def recovery_table(scores: Mapping[str, Scores]) -> str:
    """The error before and after in words, a line per moving image.

    >>> print(recovery_table({"mr": {"tre_mm_before": 8.0, "tre_mm_after": 2.0}}))
    mr: 8.00 mm before, 2.00 mm after, 75 % of the error gone
    """
    lines = []
    for key, values in scores.items():
        before, after = values["tre_mm_before"], values["tre_mm_after"]
        gone = 100 * (1 - after / before) if before else 0.0
        moved = f"{before:.2f} mm before, {after:.2f} mm after"
        lines.append(f"{key}: {moved}, {gone:.0f} % of the error gone")
    return "\n".join(lines)


def _field_error(result: CaseResult, key: str) -> Scores:
    """Against a true displacement on the reference's grid."""
    truth = result.case.series[key].displacement
    if truth is None:
        return {}
    fixed = result.case.fixed
    voxels = _body_voxels(result.case.series[result.case.reference])
    points = apply_affine(fixed.affine, voxels)
    shift = truth[(slice(None), *voxels.T)].T.double().numpy()
    return _before_after(
        "tre_mm", points, points + shift, result.registrations[key].map, worst=True
    )


def _body_voxels(fixed: Series) -> Matrix:
    """Indices ``(n, d)`` of voxels in the body, thinned evenly to a bounded number."""
    image = fixed.image
    kind = {"modality": image.modality, "units": image.units}
    if fixed.prepared:
        body = fixed.prepared.body[0]
    else:
        body = body_mask(image.array, image.spacing.tolist(), **kind)[0]
    voxels = torch.nonzero(body).numpy()
    return voxels[:: max(1, len(voxels) // _POINTS)]


def _landmark_error(result: CaseResult, key: str) -> Scores:
    """Against landmarks that both images have."""
    series = result.case.series
    fixed, moving = (series[k].landmarks for k in (result.case.reference, key))
    if fixed is None or moving is None:
        return {}
    return _before_after("landmarks_mm", fixed, moving, result.registrations[key].map)


def _before_after(
    name: str, fixed: Matrix, moving: Matrix, estimate: WorldMap, *, worst: bool = False
) -> Scores:
    """Mean distance of the true points from the identity and from what was found."""
    after = target_registration_error(moving, estimate.points(fixed))
    scores = {
        f"{name}_before": float(np.mean(target_registration_error(moving, fixed))),
        f"{name}_after": float(np.mean(after)),
    }
    return {**scores, f"{name}_after_max": float(np.max(after))} if worst else scores


def _overlap(result: CaseResult, key: str) -> Scores:
    """Overlap and distance of the labels that both images have, on the reference's label map."""
    series = result.case.series
    fixed, moving = (series[k].labels for k in (result.case.reference, key))
    if fixed is None or moving is None:
        return {}
    common = sorted(set(_values(fixed)) & set(_values(moving)) - {0})
    if not common:
        return {}
    estimate = result.registrations[key]
    still = Registration(WorldMap.identity(fixed.spatial_dims), Evidence("none"))
    scores: Scores = {}
    for when, registration in (("before", still), ("after", estimate)):
        warped = registration.warp(moving, fixed, nearest=True)
        a, b = (image.array[0].round().numpy() for image in (fixed, warped))
        overlaps = {n: dice(a == n, b == n) for n in common}
        scores[f"dice_{when}"] = float(np.mean(list(overlaps.values())))
        distances = {n: hd95(a == n, b == n, fixed.spacing.tolist()) for n in common}
        # a label that left the grid has no distance
        there = {n: value for n, value in distances.items() if np.isfinite(value)}
        if there:
            scores[f"hd95_mm_{when}"] = float(np.mean(list(there.values())))
        scores |= {f"dice_label_{n}_{when}": float(value) for n, value in overlaps.items()}
        scores |= {f"hd95_mm_label_{n}_{when}": float(value) for n, value in there.items()}
    return scores


def regularity(result: CaseResult, key: str) -> Scores:
    """How unevenly the field changes volume, and how well its inverse leads back; needs no truth.

    Args:
        result: what the pipeline found.
        key: of the moving image.

    Returns:
        ``sd_log_jacobian`` and ``inverse_consistency_mm``, see `evaluate`.
    """
    found = result.registrations[key].map
    voxels = ddf_from_ddf_mm(found.ddf_mm[None].float(), torch.from_numpy(found.working_affine))
    body = _body_voxels(result.case.series[result.case.reference])[::_INVERTED_SHARE]
    points = apply_affine(result.case.fixed.affine, body)
    back = found.inverse().points(found.points(points))
    return {
        "sd_log_jacobian": float(log_jacobian_std(voxels)[0]),
        "inverse_consistency_mm": float(np.linalg.norm(back - points, axis=1).mean()),
    }


def _values(labels: Image) -> list[int]:
    """The labels that occur."""
    return [int(value) for value in labels.array.round().unique().tolist()]
