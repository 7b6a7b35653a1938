"""The fuse stage: harmonized images in, one image and the weight of each modality out."""

from fusion_pipeline.fuse.display import (
    EMISSION_PERCENTILE,
    MR_PERCENTILES,
    displayed,
    displayed_images,
    of_hu,
)
from fusion_pipeline.fuse.refinement import refined
from fusion_pipeline.fuse.shares import faded
from fusion_pipeline.fuse.stage import Fuse, Fusion, scores_of_fusion

__all__ = [
    "EMISSION_PERCENTILE",
    "MR_PERCENTILES",
    "Fuse",
    "Fusion",
    "displayed",
    "displayed_images",
    "faded",
    "of_hu",
    "refined",
    "scores_of_fusion",
]
