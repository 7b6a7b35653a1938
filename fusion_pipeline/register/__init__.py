"""The register stage: large offsets first, then the network, then refinement."""

from fusion_pipeline.register.evidence import Evidence, GivenStart, Registration, warped
from fusion_pipeline.register.stage import Register

__all__ = ["Evidence", "GivenStart", "Register", "Registration", "warped"]
