"""The whole: one object that registers, harmonizes and fuses a case, alone or many in a row."""

from fusion_pipeline.pipeline.bundle import bundle_for, load_weights, refuse_unknown_overrides
from fusion_pipeline.pipeline.cohort import Cohort, Outcome, case_dataset, spatial_dims_of_cases
from fusion_pipeline.pipeline.demo import SyntheticCases, run_demo
from fusion_pipeline.pipeline.pipeline import FusionPipeline

__all__ = [
    "Cohort",
    "FusionPipeline",
    "Outcome",
    "SyntheticCases",
    "bundle_for",
    "case_dataset",
    "load_weights",
    "refuse_unknown_overrides",
    "run_demo",
    "spatial_dims_of_cases",
]
