"""One scale for every protocol and modality, and nothing lost (METHOD 4)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from fusion_pipeline.losses.harmonization_loss import harmonization_loss, protocol_difference
from fusion_pipeline.metrics import protocol_residual
from fusion_pipeline.networks.harmonization_net import apply_curves
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.training.batch import Batch
from fusion_pipeline.training.objectives.objective import Outputs

# HU and uptake do not drift through the body; MR has its bias field
_VARIATION: Mapping[str, float] = {"ct": 40.0, "mr": 15.0, "emission": 40.0}
_LEAST_BODY = 0.25  # grey of a body below which it shares no outline with others


class HarmonizationObjective:
    """The same output whatever the protocol, agreement of shared tissue, and each image kept.

    Args:
        beta: β of (4.4), on the edges.
        protocol: weight of the difference between two protocols of one image.
        background: weight of grey in the air. A picture is looked at on black.
        absent: weight of a body as dark as air.
        spread: standard deviation within a body that each harmonized image should have.
    """

    phase = "harmonization"
    stages = ("harmonization",)
    parts: tuple[str, ...] = ("agreement", "protocol", "background", "absent", "variation")
    truths: Mapping[str, str] = {}

    def __init__(
        self,
        beta: float = 0.5,
        protocol: float = 6.0,
        background: float = 1.0,
        absent: float = 0.7,
        spread: float = 0.14,
    ) -> None:
        self.beta = beta
        self.protocol = protocol
        self.background = background
        self.absent = absent
        self.spread = spread

    def start(self, network: MultimodalNet) -> None:
        """Nothing to set."""

    def losses(
        self, network: MultimodalNet, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], Outputs]:
        """See `Objective`; the images are aligned, and each comes in two protocols."""
        if batch.protocol is None or batch.body is None:
            raise ValueError("harmonization: expected samples in two protocols, got some in one")
        net = network.harmonization
        harmonized, others = [], []
        apart = batch.image.new_zeros(())
        rough = batch.image.new_zeros(())
        for m, kind in enumerate(batch.kinds):
            image, valid, other = (
                x[:, m : m + 1] for x in (batch.image, batch.valid, batch.protocol)
            )
            curves = net.curves(image, kind, valid)
            rough = rough + _VARIATION[kind] * variation(curves) / len(batch.kinds)
            harmonized.append(apply_curves(image, curves) * valid)
            others.append(net(other, kind, valid))
            apart = apart + protocol_difference(harmonized[m], others[m], valid).mean()
        out = torch.cat(harmonized, 1)
        body = batch.body.amax(1, keepdim=True)
        air = batch.valid * (1 - body)
        main = harmonization_loss(
            out, batch.image, batch.valid, batch.body, beta=self.beta, spread=self.spread
        )
        dark = (1 - out / _LEAST_BODY).clamp_min(0)
        parts = {
            "agreement": main.mean(),
            "protocol": self.protocol * apart / len(batch.kinds),
            "background": self.background * mean_of(out, air).mean(),
            "absent": self.absent * mean_of(dark, batch.body).mean(),
            "variation": rough,
        }
        return parts, Outputs(harmonized=out, other=torch.cat(others, 1), valid=batch.valid)

    def scores(self) -> MetricCollection:
        """Root mean square difference between protocols, in standard deviations."""
        return MetricCollection({"protocol_residual": MeanMetric(nan_strategy="ignore")})

    def update(self, scores: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """See `Objective`."""
        if outputs.harmonized is None or outputs.other is None or batch.body is None:
            return
        for m in range(len(batch.kinds)):
            one = slice(m, m + 1)
            pair = outputs.harmonized[:, one], outputs.other[:, one]
            scores["protocol_residual"].update(protocol_residual(*pair, batch.body[:, one]))


def variation(curves: Tensor) -> Tensor:
    """Mean square step of the curves' heights from cell to cell: no shading but a bias field's.

    Args:
        curves: ``(B, intervals, *cells)``, see `HarmonizationNet.curves`.
    """
    heights = curves.cumsum(1)
    steps = [heights.diff(dim=axis).square().mean() for axis in range(2, heights.ndim)]
    return torch.stack(steps).sum()


def mean_of(values: Tensor, weight: Tensor) -> Tensor:
    """``(B,)`` weighted mean; 0 where there is no weight."""
    total = (values * weight).flatten(1).sum(1)
    return total / weight.flatten(1).sum(1).clamp_min(1.0)
