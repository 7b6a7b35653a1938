"""What each phase of the training asks of the networks."""

from fusion_pipeline.training.objectives.end_to_end import EndToEnd
from fusion_pipeline.training.objectives.fusion import FusionObjective
from fusion_pipeline.training.objectives.harmonization import HarmonizationObjective
from fusion_pipeline.training.objectives.objective import Objective, Outputs
from fusion_pipeline.training.objectives.registration import RegistrationObjective

__all__ = [
    "EndToEnd",
    "FusionObjective",
    "HarmonizationObjective",
    "Objective",
    "Outputs",
    "RegistrationObjective",
]
