"""The whole: one object that registers, harmonizes and fuses a case, alone or many in a row."""

from fusion_pipeline.pipeline.bids import bids_label, check_bids_labels, write_bids
from fusion_pipeline.pipeline.bundle import (
    CheckpointLoader,
    bundle_for,
    from_config,
    load_weights,
    refuse_unknown_overrides,
    refuse_wrong_values,
    switch,
)
from fusion_pipeline.pipeline.bundle_folder import (
    BundleInUse,
    TrainingFacts,
    bundle_in_use,
    check_bundle_folder,
    write_bundle,
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
from fusion_pipeline.pipeline.model_zoo import pack_for_model_zoo
from fusion_pipeline.pipeline.pipeline import FusionPipeline
from fusion_pipeline.pipeline.result import PipelineResult
from fusion_pipeline.pipeline.saved import Grid, SavedRegistration
from fusion_pipeline.pipeline.saved_dicom import warp_rtstruct, warp_seg
from fusion_pipeline.pipeline.shared_run import CaseQueue, SharedRun
from fusion_pipeline.pipeline.study import Method, methods_against, run_study
from fusion_pipeline.pipeline.summary import Outcome
from fusion_pipeline.pipeline.synthetic import SyntheticCases
from fusion_pipeline.pipeline.traditional import TraditionalInferer, fitted_standard
from fusion_pipeline.pipeline.workflow import run_training

__all__ = [
    "BundleInUse",
    "CaseDataset",
    "CaseQueue",
    "CheckpointLoader",
    "EvaluationHandler",
    "FusionEvaluator",
    "FusionInferer",
    "FusionPipeline",
    "Grid",
    "LoadedCase",
    "Method",
    "Outcome",
    "PipelineResult",
    "ProgressHandler",
    "SaveResult",
    "SavedRegistration",
    "SharedRun",
    "SummaryHandler",
    "SyntheticCases",
    "TraditionalInferer",
    "TrainingFacts",
    "bids_label",
    "bundle_for",
    "bundle_in_use",
    "case_list",
    "check_bids_labels",
    "check_bundle_folder",
    "fitted_standard",
    "from_config",
    "load_weights",
    "methods_against",
    "pack_for_model_zoo",
    "refuse_unknown_overrides",
    "refuse_wrong_values",
    "run_processes",
    "run_study",
    "run_training",
    "spatial_dims_of_cases",
    "switch",
    "warp_rtstruct",
    "warp_seg",
    "write_bids",
    "write_bundle",
]
