"""How bright each tissue is on CT, T1, T2 and FDG-PET."""

from typing import Literal

import torch
from torch import Tensor

from fusion_pipeline.synthesis.frame import Tissue

Contrast = Literal["ct", "mr", "mr_t2", "pet"]
CONTRASTS: tuple[Contrast, ...] = ("ct", "mr", "mr_t2", "pet")

# HU, T1-weighted and T2-weighted brightness (fat on T1 about 950), SUV of FDG
_TABLE: dict[Tissue, tuple[float, float, float, float]] = {
    Tissue.AIR: (-1000, 0, 0, 0.0),
    Tissue.SKIN: (20, 420, 260, 0.5),
    Tissue.FAT: (-95, 940, 620, 0.25),
    Tissue.MUSCLE: (55, 370, 170, 0.7),
    Tissue.MUSCLE_B: (52, 385, 185, 0.75),
    Tissue.MUSCLE_C: (58, 355, 160, 0.65),
    Tissue.COMPACT_BONE: (1250, 60, 50, 0.5),
    Tissue.MARROW: (-40, 860, 500, 0.8),
    Tissue.SPONGY_BONE: (420, 600, 380, 1.1),
    Tissue.BLOOD: (45, 190, 70, 1.6),
    Tissue.CSF: (8, 130, 1000, 0.4),
    Tissue.GREY: (38, 470, 540, 7.5),
    Tissue.WHITE: (29, 680, 340, 2.6),
    Tissue.DEEP_GREY: (37, 540, 420, 8.0),
    Tissue.EYE: (10, 160, 960, 0.4),
    Tissue.LENS: (85, 380, 150, 0.3),
    Tissue.CAVITY: (-980, 10, 10, 0.1),
    Tissue.LUNG: (-830, 70, 60, 0.4),
    Tissue.LIVER: (60, 520, 210, 2.2),
    Tissue.SPLEEN: (52, 330, 500, 1.7),
    Tissue.KIDNEY: (36, 380, 560, 3.0),
    Tissue.BOWEL: (30, 350, 430, 1.2),
    Tissue.TUMOUR: (40, 330, 640, 11.0),
    Tissue.NECROSIS: (16, 210, 860, 1.5),
    Tissue.DISC: (80, 330, 450, 0.6),
    Tissue.HEART: (48, 400, 250, 3.2),
    Tissue.URINE: (5, 160, 950, 12.0),
    Tissue.DURA: (65, 430, 150, 1.0),
    Tissue.MUCOSA: (42, 430, 760, 1.4),
}


def tissue_values(contrast: Contrast) -> Tensor:
    """Value of each `Tissue` in HU, MR units or SUV, ``(29,)``.

    >>> round(float(tissue_values("ct")[Tissue.FAT]))
    -95
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"expected a contrast of {', '.join(CONTRASTS)}, got {contrast!r}")
    column = CONTRASTS.index(contrast)
    return torch.tensor([float(_TABLE[tissue][column]) for tissue in Tissue])


def tissue_means(contrast: Contrast, generator: torch.Generator) -> Tensor:
    """Realistic means for `paint` on a body label map, a little different each time.

    Args:
        contrast: the modality.
        generator: the randomness.

    Returns:
        ``(29,)`` in about 0..1, compressed as `NormalizeModality` does it: CT windowed to
        -300 … 700 HU, PET through an asinh.
    """
    values = tissue_values(contrast)
    wobble = torch.randn(len(values), generator=generator)
    if contrast == "ct":
        spread = torch.where(values.abs() < 120, 8.0, 120.0)
        return ((values + spread * wobble).clamp(-300, 700) + 300) / 1000
    if contrast == "pet":
        return torch.asinh(values * torch.exp(0.3 * wobble) / 0.7) / 4.0
    return values * torch.exp(0.15 * wobble) / 1000
