"""The register stage: large offsets first, then the network, then refinement."""

from fusion_pipeline.register.registration import Registration
from fusion_pipeline.register.stage import Register

__all__ = ["Register", "Registration"]
