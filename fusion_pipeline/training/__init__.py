"""Train the networks that the stages hold, alone or end to end; the only layer with Lightning."""

from fusion_pipeline.training.data import MultimodalData
from fusion_pipeline.training.module import MultimodalTraining
from fusion_pipeline.training.samples import Batch, CaseSamples, PaintedSamples, Sample, collate
from fusion_pipeline.training.trainer import build_trainer, fit, last_checkpoint

__all__ = [
    "Batch",
    "CaseSamples",
    "MultimodalData",
    "MultimodalTraining",
    "PaintedSamples",
    "Sample",
    "build_trainer",
    "collate",
    "fit",
    "last_checkpoint",
]
