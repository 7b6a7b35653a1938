"""Scores of fused images as `torchmetrics.Metric`s, averaged over cases and processes.

Each class averages the function of `fusion_pipeline.metrics` that it names. Those that judge each
source by itself give a dictionary source → mean, so that copying one source cannot win.
"""

from torch import Tensor

from fusion_pipeline.metrics.fusion import artefacts, edge_transfer, psnr, scd, ssim, vif
from fusion_pipeline.metrics.information import entropy, mutual_information
from fusion_pipeline.metrics.mean_over_cases import (
    MeanOverCases,
    MeanOverFusedCases,
    MeanPerSource,
    cases,
    masks,
)


class EdgeTransfer(MeanPerSource):
    """`edge_transfer`, Q^{S/F}: share of a source's edges that the fused image keeps."""

    higher_is_better = True
    measure = staticmethod(edge_transfer)


class VisualInformationFidelity(MeanPerSource):
    """`vif`: visual information of a source that is left in the fused image."""

    higher_is_better = True
    measure = staticmethod(vif)


class StructuralSimilarity(MeanPerSource):
    """`ssim` of the fused image and a source."""

    higher_is_better = True
    measure = staticmethod(ssim)


class PeakSignalNoiseRatio(MeanPerSource):
    """`psnr` of the fused image against a source, the mean over cases in dB."""

    higher_is_better = True
    measure = staticmethod(psnr)


class MutualInformation(MeanPerSource):
    """`mutual_information` of the fused image and a source, in nats."""

    higher_is_better = True
    measure = staticmethod(mutual_information)


class FusionArtefacts(MeanOverFusedCases):
    """`artefacts`, N^{AB/F}: edges of the fused image that no source has."""

    higher_is_better = False
    measure = staticmethod(artefacts)


class SumOfCorrelationsOfDifferences(MeanOverFusedCases):
    """`scd`: what the fused image shows beside the other sources, correlated with each source."""

    higher_is_better = True
    measure = staticmethod(scd)


class Entropy(MeanOverCases):
    """`entropy` of an image, in bits.

    Args:
        data_range: full scale of the images.
    """

    higher_is_better = True

    def __init__(self, data_range: float = 1.0) -> None:
        super().__init__((data_range,))
        self.data_range = data_range

    def update(self, images: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch of cases.

        Args:
            images: ``(B, 1, *S)``.
            mask: ``(B, 1, *S)``, nonzero where to judge.
        """
        pairs = zip(cases(images), masks(images, mask), strict=True)
        self._add([entropy(image, m, self.data_range) for image, m in pairs])
