"""The traditional chain as an inferer, whole or one stage at a time, to be compared with."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fusion_pipeline import baselines
from fusion_pipeline.data import Case, Image, InputError, one_line_refusals
from fusion_pipeline.fuse import Fusion
from fusion_pipeline.harmonize import Harmonization
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.pipeline.inferer import FusionInferer
from fusion_pipeline.register import Registration
from fusion_pipeline.result import STAGES
from fusion_pipeline.standards import HarmonizeBy
from fusion_pipeline.transforms import NormalizeModality

_RULES = {
    "average": baselines.average,
    "maximum": baselines.maximum,
    "pca": baselines.pca,
    "laplacian": baselines.laplacian_pyramid,
}


class TraditionalInferer(FusionInferer):
    """`FusionInferer` with some stages replaced by what a clinic has without learning.

    Register: SimpleITK's mutual information, rigid and B-spline. Harmonize: z-score. Fuse: a rule.

    Args:
        stages: which of ``register``, ``harmonize`` and ``fuse`` are replaced; all by default.
        rule: ``average``, ``maximum``, ``pca`` or ``laplacian``.
        settings: of `FusionInferer`, for the stages that stay.
    """

    @one_line_refusals()
    def __init__(
        self,
        *,
        stages: Sequence[str] = STAGES,
        rule: str = "average",
        **settings: Any,  # noqa: ANN401 - FusionInferer's own
    ) -> None:
        super().__init__(**settings)
        unknown = sorted(set(stages) - set(STAGES))
        if unknown or rule not in _RULES:
            came = ", ".join(unknown) or rule
            raise InputError(
                f"inferer: expected stages of {', '.join(STAGES)} and a rule of "
                f"{', '.join(_RULES)}, got {came}; correct the name"
            )
        self.stages = tuple(stages)
        self.rule = rule

    @property
    def settings(self) -> Mapping[str, float | str | None]:
        """Those of the stages that stay, and which are replaced."""
        return {**super().settings, "traditional": " ".join(self.stages), "rule": self.rule}

    def register(
        self, case: Case, network: MultimodalNet, normalize: NormalizeModality
    ) -> dict[str, Registration]:
        """See `FusionInferer`; masks are not looked at."""
        if "register" not in self.stages:
            return super().register(case, network, normalize)
        stage = baselines.RegisterByMutualInformation()
        return {
            key: stage(case.fixed, moving, transform=case.series[key].transform)
            for key, moving in case.moving.items()
        }

    def harmonize(
        self,
        images: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        network: MultimodalNet,
        normalize: NormalizeModality,
    ) -> Harmonization:
        """See `FusionInferer`."""
        if "harmonize" not in self.stages:
            return super().harmonize(images, fields_of_view, network, normalize)
        return HarmonizeBy()(images, fields_of_view)

    def fuse(
        self,
        images: Mapping[str, Image],
        fields_of_view: Mapping[str, Tensor],
        network: MultimodalNet,
        displayed: Mapping[str, Image] | None = None,
    ) -> Fusion:
        """See `FusionInferer`; a rule fuses the harmonized images."""
        if "fuse" not in self.stages:
            return super().fuse(images, fields_of_view, network, displayed)
        return baselines.FuseBy(_RULES[self.rule])(images, fields_of_view, displayed)


__all__ = ["TraditionalInferer"]
