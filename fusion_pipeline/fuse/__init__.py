"""The fuse stage: harmonized images in, one image and the weight of each modality out."""

from fusion_pipeline.fuse.display import displayed, displayed_images
from fusion_pipeline.fuse.refinement import refined
from fusion_pipeline.fuse.shares import faded
from fusion_pipeline.fuse.stage import Fuse, Fusion, scores_of_fusion

__all__ = [
    "Fuse",
    "Fusion",
    "displayed",
    "displayed_images",
    "faded",
    "refined",
    "scores_of_fusion",
]
