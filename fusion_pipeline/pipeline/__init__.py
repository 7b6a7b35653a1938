"""The whole: one object that registers, harmonizes and fuses a case, alone or many in a row."""

from fusion_pipeline.pipeline.bundle import (
    CheckpointLoader,
    bundle_for,
    from_config,
    load_weights,
    refuse_unknown_overrides,
    switch,
)
from fusion_pipeline.pipeline.dataset import (
    CaseDataset,
    LoadedCase,
    case_list,
    spatial_dims_of_cases,
)
from fusion_pipeline.pipeline.evaluator import FusionEvaluator, SaveResult
from fusion_pipeline.pipeline.handlers import EvaluationHandler, ProgressHandler, SummaryHandler
from fusion_pipeline.pipeline.inferer import FusionInferer
from fusion_pipeline.pipeline.launch import run_processes
from fusion_pipeline.pipeline.pipeline import FusionPipeline
from fusion_pipeline.pipeline.result import PipelineResult
from fusion_pipeline.pipeline.shared_run import CaseQueue, SharedRun
from fusion_pipeline.pipeline.summary import Outcome
from fusion_pipeline.pipeline.synthetic import SyntheticCases

__all__ = [
    "CaseDataset",
    "CaseQueue",
    "CheckpointLoader",
    "EvaluationHandler",
    "FusionEvaluator",
    "FusionInferer",
    "FusionPipeline",
    "LoadedCase",
    "Outcome",
    "PipelineResult",
    "ProgressHandler",
    "SaveResult",
    "SharedRun",
    "SummaryHandler",
    "SyntheticCases",
    "bundle_for",
    "case_list",
    "from_config",
    "load_weights",
    "refuse_unknown_overrides",
    "run_processes",
    "spatial_dims_of_cases",
    "switch",
]
