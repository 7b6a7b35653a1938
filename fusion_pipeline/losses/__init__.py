"""What training and refinement minimize: torch only, differentiable, one value per batch item."""

from fusion_pipeline.losses.mind import mind_ssc
from fusion_pipeline.losses.mutual_information import mutual_information
from fusion_pipeline.losses.regularization import bending_energy, diffusion_energy

__all__ = ["bending_energy", "diffusion_energy", "mind_ssc", "mutual_information"]
