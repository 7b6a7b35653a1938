"""The traditional ways, as the same callables as the stages: to be compared with, not to be used.

Harmonization: see `standards`.
"""

from fusion_pipeline.baselines.engines import (
    ENGINES,
    Ants,
    ConvexAdam,
    Elastix,
    Engine,
    Greedy,
    RegisterBy,
    RegisterByField,
)
from fusion_pipeline.baselines.fusion_rules import (
    RULES,
    FuseBy,
    FusionRule,
    average,
    laplacian_pyramid,
    maximum,
    pca,
    pywavelets,
    wavelet,
)
from fusion_pipeline.baselines.mutual_information import RegisterByMutualInformation, to_itk

__all__ = [
    "ENGINES",
    "RULES",
    "Ants",
    "ConvexAdam",
    "Elastix",
    "Engine",
    "FuseBy",
    "FusionRule",
    "Greedy",
    "RegisterBy",
    "RegisterByField",
    "RegisterByMutualInformation",
    "average",
    "laplacian_pyramid",
    "maximum",
    "pca",
    "pywavelets",
    "to_itk",
    "wavelet",
]
