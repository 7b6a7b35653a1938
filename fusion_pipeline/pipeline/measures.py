"""Measures of a study that a plain run leaves out: alike for all methods, and at some cost."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from monai.networks.layers.factories import Pool
from torch import Tensor

from fusion_pipeline.data import Image
from fusion_pipeline.evaluation.truth import evaluate, regularity
from fusion_pipeline.geometry import WorldMap
from fusion_pipeline.harmonize import UNITS, Harmonization
from fusion_pipeline.losses.harmonization_loss import contrast_lost
from fusion_pipeline.metrics import (
    mind_distance,
    normalized_mutual_information,
    protocol_residual,
)
from fusion_pipeline.networks.kinds import kind_of
from fusion_pipeline.pipeline.result import PipelineResult
from fusion_pipeline.register import Evidence, Registration
from fusion_pipeline.synthesis import other_protocol
from fusion_pipeline.transforms import NormalizeModality, body_mask

_SIDE = 128  # voxels at most along each axis on which similarity and contrast are measured

HarmonizeImages = Callable[[Mapping[str, Image], Mapping[str, Tensor]], Harmonization]


@dataclass(frozen=True)
class OneGrid:
    """The images of a result on the reference's canonical grid, in their own units.

    Attributes:
        images: per key, the reference first.
        fields_of_view: per key ``(1, *S)`` bool.
        bodies: per key ``(1, *S)`` bool, in view.
    """

    images: Mapping[str, Image]
    fields_of_view: Mapping[str, Tensor]
    bodies: Mapping[str, Tensor]

    @classmethod
    def of(cls, images: Mapping[str, Image], fields_of_view: Mapping[str, Tensor]) -> "OneGrid":
        """With the body of each; all that is in view where no body is."""
        views = {key: view > 0.5 for key, view in fields_of_view.items()}
        bodies = {}
        for key, image in images.items():
            kind = {"modality": image.modality, "units": image.units}
            body = body_mask(image.array, image.spacing.tolist(), **kind) & views[key]
            bodies[key] = body if bool(body.any()) else views[key]
        return cls(images, views, bodies)


def measured(
    result: PipelineResult,
    images: Mapping[str, Image],
    fields_of_view: Mapping[str, Tensor],
    harmonize: HarmonizeImages,
) -> PipelineResult:
    """A result with more scores.

    To ``harmonization.scores`` come, per image, ``protocol_residual`` (RMS difference to the same
    image harmonized from another, random protocol, in standard deviations in the body) and
    ``contrast_kept`` (share of the edges' slope that the z-score's straight line has). ``nmi`` and
    ``mind`` of each registration are measured alike for every method: in the reference's body
    where the moving image has data. ``sd_log_jacobian`` and ``inverse_consistency_mm`` are there
    without a truth as well.

    Args:
        result: of a case.
        images: its images in own units on the reference's canonical grid, the reference first.
        fields_of_view: per key ``(1, *S)``.
        harmonize: the stage that made the harmonized images.
    """
    grid = OneGrid.of(images, fields_of_view)
    scores = {key: dict(values) for key, values in result.harmonization.scores.items()}
    harmonized = {
        key: image.in_canonical_axes().array for key, image in result.harmonization.images.items()
    }
    for key, value in _protocol_residuals(result.case.id, grid, harmonized, harmonize).items():
        scores[key]["protocol_residual"] = value
    for key, array in harmonized.items():
        scores[key]["contrast_kept"] = _contrast_kept(grid.images[key], array, grid.bodies[key])
    registrations = {}
    for key, found in result.registrations.items():
        before, after = _similarity(result, key, grid)
        evidence = replace(
            found.evidence,
            similarity_before={**found.evidence.similarity_before, **before},
            similarity_after={**found.evidence.similarity_after, **after},
        )
        registrations[key] = replace(found, evidence=evidence)
    evaluation = {key: one or regularity(result, key) for key, one in evaluate(result).items()}
    return replace(
        result,
        registrations=registrations,
        harmonization=replace(result.harmonization, scores=scores),
        evaluation=evaluation,
    )


def _protocol_residuals(
    case: str, grid: OneGrid, harmonized: Mapping[str, Tensor], harmonize: HarmonizeImages
) -> dict[str, float]:
    """Each image under another protocol, harmonized again; what came harmonized is left out."""
    others = {}
    for key, image in grid.images.items():
        if image.units == UNITS:
            return {}
        # drawn by names, so that each method of a study gets the same protocol
        seed = hashlib.sha256(f"{case} {key}".encode()).digest()[:4]
        whole = image.array[None].float(), kind_of(image.modality), grid.bodies[key][None].float()
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
        other = other_protocol(*whole, generator, spacing=image.spacing.tolist())
        others[key] = image.with_array(other[0], colour=None)
    again = harmonize(others, grid.fields_of_view)
    found = {}
    for key, array in harmonized.items():
        body = grid.bodies[key][None].float()
        pair = array[None].float(), again.images[key].array[None].float()
        found[key] = float(protocol_residual(*pair, body)[0])
    return found


def _contrast_kept(image: Image, harmonized: Tensor, body: Tensor) -> float:
    """One minus the contrast that is lost against the straight line's slope."""
    kind = {"modality": image.modality, "units": image.units}
    normalized, _ = NormalizeModality().scaled(image.array, body, **kind)
    arrays = _small((harmonized, normalized, body))
    return 1 - float(contrast_lost(arrays[0], arrays[1], (arrays[2] > 0.5).float())[0])


def _similarity(
    result: PipelineResult, key: str, grid: OneGrid
) -> tuple[dict[str, float], dict[str, float]]:
    """Of a moving image with the reference, as the headers place it and registered."""
    reference, moving = next(iter(grid.images.values())), result.case.series[key]
    still = Registration(WorldMap.identity(reference.spatial_dims), Evidence("none"))
    view = torch.ones_like(moving.image.array)
    if moving.prepared is not None:
        view = moving.prepared.field_of_view.float()
    mask = moving.image.with_array(view, units="mask", colour=None)
    unmoved = still.warp(moving.image, reference).array
    in_view = still.warp(mask, reference, nearest=True).array > 0.5
    body = next(iter(grid.bodies.values()))
    pairs = ((unmoved, in_view), (grid.images[key].array, grid.fields_of_view[key]))
    scores: list[dict[str, float]] = []
    for array, inside in pairs:
        a, b, small = _small((reference.array, array, body & inside))
        where = small > 0.5
        scores.append({})
        if bool(where.any()):
            scores[-1]["nmi"] = normalized_mutual_information(a[where], b[where])
            scores[-1]["mind"] = float(mind_distance(a, b, where.float())[0])
    return scores[0], scores[1]


def _small(arrays: Sequence[Tensor]) -> list[Tensor]:
    """Block means ``(1, 1, *s)`` of arrays ``(1, *S)``."""
    factors = tuple(max(1, -(-n // _SIDE)) for n in arrays[0].shape[1:])
    pool = Pool[Pool.AVG, arrays[0].ndim - 1](factors)
    return [pool(array[None].float()) for array in arrays]


__all__ = ["OneGrid", "measured"]
