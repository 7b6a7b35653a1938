"""The networks; importable as ``fusion_pipeline.networks`` only."""

if __name__ != "fusion_pipeline.networks":
    raise ImportError(
        f"import fusion_pipeline.networks, not {__name__}: "
        "under two names every class would exist twice"
    )

from fusion_pipeline.networks.fusion_net import FusionNet, FusionOutput
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.kinds import KINDS, Kind, kind_indices, kind_of
from fusion_pipeline.networks.multimodal_net import MultimodalNet, MultimodalOutput
from fusion_pipeline.networks.registration_net import RegistrationNet
from fusion_pipeline.networks.warp import Warp

__all__ = [
    "KINDS",
    "FusionNet",
    "FusionOutput",
    "HarmonizationNet",
    "Kind",
    "MultimodalNet",
    "MultimodalOutput",
    "RegistrationNet",
    "Warp",
    "kind_indices",
    "kind_of",
]
