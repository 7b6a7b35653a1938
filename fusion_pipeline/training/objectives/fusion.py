"""A fused image that keeps what each source shows (METHOD 5)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from fusion_pipeline.fuse import faded
from fusion_pipeline.losses.fusion_loss import fusion_loss_terms
from fusion_pipeline.metrics import artefacts, edge_transfer
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.training.batch import Batch
from fusion_pipeline.training.objectives.harmonization import harmonized
from fusion_pipeline.training.objectives.objective import Outputs

_WEIGHTS: Mapping[str, float] = {
    "structure": 1.5,
    "information": 1.0,
    "edges": 2.5,
    "gradient": 4.0,
    "intensity": 0.5,
    "added": 10.0,
}


class FusionObjective:
    """L_fusion of the fused image and of the weighted sum alone; no source is given up.

    Harmonization is part of the way to the sources and stays as it is.

    Args:
        weights: of the loss's parts by name, in place of the default ones.
        worst: what the source that is kept worst counts, 0 to 1.
        weighted: weight of the same loss of ``Σ w_k I_k`` alone: the weights should fuse well by
            themselves, so that they tell where a voxel comes from.
        least_weight: mean weight below which a source counts as given up.
        given_up: weight of what is missing there.
    """

    phase = "fusion"
    stages = ("fusion",)
    parts: tuple[str, ...] = (*_WEIGHTS, "weighted", "given_up")
    truths: Mapping[str, str] = {}

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        worst: float = 0.7,
        weighted: float = 0.7,
        least_weight: float = 0.2,
        given_up: float = 5.0,
    ) -> None:
        self.weights = {**_WEIGHTS, **(weights or {})}
        self.worst = worst
        self.weighted = weighted
        self.least_weight = least_weight
        self.given_up = given_up

    def start(self, network: MultimodalNet) -> None:
        """Weights by salience: a softmax of 8 (image + 2 local contrast), the logits bounded.

        From the average that an untrained network gives, weights hardly learn
        (`docs/decisions/0019`).
        """
        weight = network.fusion.logit.weight
        if not bool(weight.any()):
            with torch.no_grad():  # the network makes four times its logits
                weight[0, -2].fill_(2.0)
                weight[0, -1].fill_(4.0)

    def losses(
        self, network: MultimodalNet, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], Outputs]:
        """See `Objective`; the images are aligned."""
        with torch.no_grad():
            original = batch.image if batch.original is None else batch.original
            sources = harmonized(
                network.harmonization, original, batch.kinds, batch.valid, batch.body
            )
            shares = faded_views(batch)
        out = network.fusion(sources, batch.kinds, shares)
        fused, weights = out.fused.float(), out.weights.float()
        images = sources * (shares > 0)
        terms = fusion_loss_terms(fused, images, shares, worst=self.worst)
        parts = {name: w * getattr(terms, name).mean() for name, w in self.weights.items()}
        alone = (weights * images).sum(1, keepdim=True)
        terms = fusion_loss_terms(alone, images, shares, worst=self.worst)
        total = sum(
            (w * getattr(terms, name).mean() for name, w in self.weights.items()),
            alone.new_zeros(()),
        )
        parts["weighted"] = self.weighted * total
        shown = (images * shares).flatten(2).sum(2)
        mean = (weights * images).flatten(2).sum(2) / shown.clamp_min(1.0)
        missing = (self.least_weight - mean).clamp_min(0) * (shown > 1)
        parts["given_up"] = self.given_up * missing.sum(1).mean()
        return parts, Outputs(harmonized=sources, weights=weights, fused=fused, valid=batch.valid)

    def scores(self) -> MetricCollection:
        """Edge transfer of the source that is kept worst; edges that no source has."""
        return fusion_scores()

    def update(self, scores: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """See `Objective`."""
        update_fusion_scores(scores, outputs)


def fusion_scores() -> MetricCollection:
    """Q of the source that is kept worst, and edges that no source has."""
    return MetricCollection(
        {
            "edge_transfer_worst": MeanMetric(nan_strategy="ignore"),
            "artefacts": MeanMetric(nan_strategy="ignore"),
        },
        compute_groups=False,
    )


def update_fusion_scores(scores: MetricCollection, outputs: Outputs) -> None:
    """Add the fused images of a batch, each judged where all its sources see something."""
    if outputs.fused is None or outputs.harmonized is None or outputs.valid is None:
        return
    for b in range(len(outputs.fused)):
        shared = outputs.valid[b].amin(0).bool().cpu().numpy()
        if not shared.any():
            continue
        fused = outputs.fused[b, 0].detach().float().cpu().numpy()
        sources = outputs.harmonized[b].detach().float().cpu().numpy()
        worst = min(edge_transfer(fused, source, shared) for source in sources)
        scores["edge_transfer_worst"].update(worst)
        scores["artefacts"].update(artefacts(fused, list(sources), shared))


def faded_views(batch: Batch) -> Tensor:
    """``(B, M, *S)`` the share of its weight that each image keeps, as the fuse stage has it."""
    d = batch.image.ndim - 2
    shares = [
        faded(view.cpu(), [spacing] * d).to(view)
        for views, spacing in zip(batch.valid, batch.spacing, strict=True)
        for view in views
    ]
    return torch.stack(shares).view_as(batch.valid)
