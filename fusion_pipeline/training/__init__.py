"""Train the networks that the stages hold, alone or end to end; the only layer with Lightning."""

from fusion_pipeline.training.batch import Batch, Sample, collate
from fusion_pipeline.training.cases import CaseSamples
from fusion_pipeline.training.data import MultimodalData
from fusion_pipeline.training.module import MultimodalTraining
from fusion_pipeline.training.objectives import (
    EndToEnd,
    FusionObjective,
    HarmonizationObjective,
    RegistrationObjective,
)
from fusion_pipeline.training.painted import PaintedSamples
from fusion_pipeline.training.pictures import ExamplePictures
from fusion_pipeline.training.trainer import ProgressBar, Trainer, fit, last_checkpoint

__all__ = [
    "Batch",
    "CaseSamples",
    "EndToEnd",
    "ExamplePictures",
    "FusionObjective",
    "HarmonizationObjective",
    "MultimodalData",
    "MultimodalTraining",
    "PaintedSamples",
    "ProgressBar",
    "RegistrationObjective",
    "Sample",
    "Trainer",
    "collate",
    "fit",
    "last_checkpoint",
]
