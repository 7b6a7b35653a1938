"""Importable as ``fusion_pipeline.networks`` only."""

if __name__ != "fusion_pipeline.networks":
    raise ImportError(
        f"import fusion_pipeline.networks, not {__name__}: "
        "under two names every class would exist twice"
    )

from fusion_pipeline.networks.fusion import FusionNet, FusionOutput
from fusion_pipeline.networks.harmonization import HarmonizationNet, apply_curves
from fusion_pipeline.networks.kinds import KINDS, Kind, kind_indices, kind_of

__all__ = [
    "KINDS",
    "FusionNet",
    "FusionOutput",
    "HarmonizationNet",
    "Kind",
    "apply_curves",
    "kind_indices",
    "kind_of",
]
