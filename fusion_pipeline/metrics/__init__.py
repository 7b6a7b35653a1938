"""What the pipeline is judged by: registration in mm, similarity, and fused images.

Each measure is a pure function. The classes are `torchmetrics.Metric`s that average one of them
over cases and over the processes of a distributed run. They are imported when first asked for,
since torchmetrics costs 0.3 s and more, which inference need not spend.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from fusion_pipeline.metrics.fusion import (
    artefacts,
    edge_transfer,
    fusion_scores,
    psnr,
    scd,
    ssim,
    vif,
)
from fusion_pipeline.metrics.harmonization import protocol_residual
from fusion_pipeline.metrics.information import (
    entropy,
    joint_histogram,
    mutual_information,
    normalized_mutual_information,
)
from fusion_pipeline.metrics.registration import (
    dice,
    dice_per_label,
    folded_fraction,
    hd95,
    hd95_per_label,
    inverse_consistency,
    log_jacobian_std,
    target_registration_error,
)
from fusion_pipeline.metrics.similarity import mind_distance

if TYPE_CHECKING:
    from fusion_pipeline.metrics.fusion_metrics import (
        EdgeTransfer,
        Entropy,
        FusionArtefacts,
        MutualInformation,
        PeakSignalNoiseRatio,
        StructuralSimilarity,
        SumOfCorrelationsOfDifferences,
        VisualInformationFidelity,
    )
    from fusion_pipeline.metrics.mean_over_cases import MeanScore
    from fusion_pipeline.metrics.registration_metrics import (
        DiceScore,
        FoldedFraction,
        HausdorffDistance95,
        InverseConsistency,
        LogJacobianStd,
        MindDistance,
        NormalizedMutualInformation,
        TargetRegistrationError,
    )

_MODULE_OF = dict.fromkeys(
    (
        "EdgeTransfer",
        "Entropy",
        "FusionArtefacts",
        "MutualInformation",
        "PeakSignalNoiseRatio",
        "StructuralSimilarity",
        "SumOfCorrelationsOfDifferences",
        "VisualInformationFidelity",
    ),
    "fusion_pipeline.metrics.fusion_metrics",
) | dict.fromkeys(
    (
        "DiceScore",
        "FoldedFraction",
        "HausdorffDistance95",
        "InverseConsistency",
        "LogJacobianStd",
        "MindDistance",
        "NormalizedMutualInformation",
        "TargetRegistrationError",
    ),
    "fusion_pipeline.metrics.registration_metrics",
)
_MODULE_OF["MeanScore"] = "fusion_pipeline.metrics.mean_over_cases"

__all__ = [
    "DiceScore",
    "EdgeTransfer",
    "Entropy",
    "FoldedFraction",
    "FusionArtefacts",
    "HausdorffDistance95",
    "InverseConsistency",
    "LogJacobianStd",
    "MeanScore",
    "MindDistance",
    "MutualInformation",
    "NormalizedMutualInformation",
    "PeakSignalNoiseRatio",
    "StructuralSimilarity",
    "SumOfCorrelationsOfDifferences",
    "TargetRegistrationError",
    "VisualInformationFidelity",
    "artefacts",
    "dice",
    "dice_per_label",
    "edge_transfer",
    "entropy",
    "folded_fraction",
    "fusion_scores",
    "hd95",
    "hd95_per_label",
    "inverse_consistency",
    "joint_histogram",
    "log_jacobian_std",
    "mind_distance",
    "mutual_information",
    "normalized_mutual_information",
    "protocol_residual",
    "psnr",
    "scd",
    "ssim",
    "target_registration_error",
    "vif",
]


def __getattr__(name: str) -> object:
    """A class, with torchmetrics, when first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
