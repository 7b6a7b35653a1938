"""Importable as ``fusion_pipeline.transforms`` only."""

if __name__ != "fusion_pipeline.transforms":
    raise ImportError(
        f"import fusion_pipeline.transforms, not {__name__}: "
        "under two names every class would exist twice"
    )

from fusion_pipeline.transforms.denoising import Denoise, denoise
from fusion_pipeline.transforms.dictionary import (
    BodyMaskD,
    BodyMaskd,
    BodyMaskDict,
    ClipHUD,
    ClipHUd,
    ClipHUDict,
    DenoiseD,
    Denoised,
    DenoiseDict,
    FieldOfViewD,
    FieldOfViewd,
    FieldOfViewDict,
    NormalizeModalityD,
    NormalizeModalityd,
    NormalizeModalityDict,
    RobustZScoreD,
    RobustZScored,
    RobustZScoreDict,
    ScaleEmissionD,
    ScaleEmissiond,
    ScaleEmissionDict,
)
from fusion_pipeline.transforms.intensity import (
    ClipHU,
    NormalizeModality,
    RobustZScore,
    ScaleEmission,
)
from fusion_pipeline.transforms.masks import BodyMask, FieldOfView, body_mask, field_of_view
from fusion_pipeline.transforms.scaling import (
    clip_hu,
    normalize_modality,
    robust_z_score,
    scale_emission,
)

__all__ = [
    "BodyMask",
    "BodyMaskD",
    "BodyMaskDict",
    "BodyMaskd",
    "ClipHU",
    "ClipHUD",
    "ClipHUDict",
    "ClipHUd",
    "Denoise",
    "DenoiseD",
    "DenoiseDict",
    "Denoised",
    "FieldOfView",
    "FieldOfViewD",
    "FieldOfViewDict",
    "FieldOfViewd",
    "NormalizeModality",
    "NormalizeModalityD",
    "NormalizeModalityDict",
    "NormalizeModalityd",
    "RobustZScore",
    "RobustZScoreD",
    "RobustZScoreDict",
    "RobustZScored",
    "ScaleEmission",
    "ScaleEmissionD",
    "ScaleEmissionDict",
    "ScaleEmissiond",
    "body_mask",
    "clip_hu",
    "denoise",
    "field_of_view",
    "normalize_modality",
    "robust_z_score",
    "scale_emission",
]
