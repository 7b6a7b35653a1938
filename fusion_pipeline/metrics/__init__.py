"""What the pipeline is judged by: registration in mm, similarity, and fused images."""

from fusion_pipeline.metrics.fusion import (
    artefacts,
    edge_transfer,
    entropy,
    fusion_scores,
    mutual_information,
    psnr,
    scd,
    ssim,
    vif,
)
from fusion_pipeline.metrics.registration import (
    dice,
    dice_per_label,
    folded_fraction,
    hd95,
    inverse_consistency,
    log_jacobian_std,
    target_registration_error,
)
from fusion_pipeline.metrics.similarity import mind_distance, normalized_mutual_information

__all__ = [
    "artefacts",
    "dice",
    "dice_per_label",
    "edge_transfer",
    "entropy",
    "folded_fraction",
    "fusion_scores",
    "hd95",
    "inverse_consistency",
    "log_jacobian_std",
    "mind_distance",
    "mutual_information",
    "normalized_mutual_information",
    "psnr",
    "scd",
    "ssim",
    "target_registration_error",
    "vif",
]
