"""Importable as ``fusion_pipeline.transforms`` only."""

if __name__ != "fusion_pipeline.transforms":
    raise ImportError(
        f"import fusion_pipeline.transforms, not {__name__}: "
        "under two names every class would exist twice"
    )

from fusion_pipeline.transforms.denoise import Denoise
from fusion_pipeline.transforms.dictionary import (
    BodyMaskd,
    ClipHUd,
    Denoised,
    FieldOfViewd,
    NormalizeModalityd,
    RobustZScored,
    ScaleEmissiond,
)
from fusion_pipeline.transforms.intensity import (
    ClipHU,
    NormalizeModality,
    RobustZScore,
    ScaleEmission,
)
from fusion_pipeline.transforms.masks import BodyMask, FieldOfView

__all__ = [
    "BodyMask",
    "BodyMaskd",
    "ClipHU",
    "ClipHUd",
    "Denoise",
    "Denoised",
    "FieldOfView",
    "FieldOfViewd",
    "NormalizeModality",
    "NormalizeModalityd",
    "RobustZScore",
    "RobustZScored",
    "ScaleEmission",
    "ScaleEmissiond",
]
