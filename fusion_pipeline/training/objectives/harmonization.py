"""One scale for every protocol and modality, and nothing lost (METHOD 4)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from fusion_pipeline.data import InputError, one_line_refusals
from fusion_pipeline.losses.harmonization_loss import HARMONIZATION_WEIGHTS, harmonization_parts
from fusion_pipeline.metrics import protocol_residual
from fusion_pipeline.networks.harmonization_net import HarmonizationNet
from fusion_pipeline.networks.kinds import KINDS
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.training.batch import Batch
from fusion_pipeline.training.objectives.objective import Outputs


class HarmonizationObjective:
    """The same output whatever the protocol, agreement of shared tissue, and each image kept.

    Args:
        weights: of the loss's parts by name, in place of `HARMONIZATION_WEIGHTS`.

    Raises:
        InputError: a part that there is not.
    """

    phase = "harmonization"
    stages = ("harmonization",)
    parts: tuple[str, ...] = tuple(HARMONIZATION_WEIGHTS)
    truths: Mapping[str, str] = {}

    @one_line_refusals()
    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        unknown = sorted(set(weights or {}) - set(HARMONIZATION_WEIGHTS))
        if unknown:
            raise InputError(
                f"harmonization: expected weights of {', '.join(HARMONIZATION_WEIGHTS)}, got "
                f"{', '.join(unknown)}; correct the name"
            )
        self.weights = {**HARMONIZATION_WEIGHTS, **(weights or {})}

    def start(self, network: MultimodalNet) -> None:
        """Nothing to set: an untrained network is the classical standard."""

    def losses(
        self, network: MultimodalNet, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], Outputs]:
        """See `Objective`; the images are aligned, and each comes in two protocols."""
        original, body, other = batch.original, batch.body, batch.protocol
        if original is None or body is None or other is None:
            raise ValueError(
                "harmonization: expected images in own units with bodies, in two protocols, got "
                "some without"
            )
        net = network.harmonization
        how = batch.kinds, batch.valid, body
        first, second = (harmonized(net, images, *how) for images in (original, other))
        again = _harmonized_again(net, first, *how)
        parts = harmonization_parts(first, second, again, original, *how)
        weighted = {name: self.weights[name] * part.mean() for name, part in parts.items()}
        return weighted, Outputs(harmonized=first, other=second, valid=batch.valid)

    def scores(self) -> MetricCollection:
        """Root mean square difference between protocols, in standard deviations; of each kind."""
        names = ["protocol_residual", *(f"protocol_residual_{kind}" for kind in KINDS)]
        return MetricCollection(
            {name: MeanMetric(nan_strategy="ignore") for name in names}, compute_groups=False
        )

    def update(self, scores: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """See `Objective`."""
        if outputs.harmonized is None or outputs.other is None or batch.body is None:
            return
        body = batch.body * batch.valid
        for m, kind in enumerate(batch.kinds):
            one = slice(m, m + 1)
            pair = outputs.harmonized[:, one], outputs.other[:, one]
            residual = protocol_residual(*pair, body[:, one])
            scores["protocol_residual"].update(residual)
            for one_kind in KINDS:  # of a kind that is never there, the mean is NaN
                own = residual if one_kind == kind else torch.full_like(residual, torch.nan)
                scores[f"protocol_residual_{one_kind}"].update(own)


def harmonized(
    net: HarmonizationNet,
    images: Tensor,
    kinds: Sequence[str],
    valid: Tensor,
    body: Tensor | None,
) -> Tensor:
    """All images of a batch on the common scale, in one pass.

    Args:
        net: maps them.
        images: ``(B, M, *S)`` in own units.
        kinds: of each of the M images.
        valid: ``(B, M, *S)`` 0/1.
        body: ``(B, M, *S)`` 0/1, or None.

    Returns:
        ``(B, M, *S)`` in [0, 1].
    """
    flat, view = (x.flatten(0, 1)[:, None] for x in (images, valid))
    inside = None if body is None else body.flatten(0, 1)[:, None]
    out: Tensor = net(flat, [*kinds] * len(images), view, inside)
    return out.view_as(images)


def _harmonized_again(
    net: HarmonizationNet, images: Tensor, kinds: Sequence[str], valid: Tensor, body: Tensor
) -> Tensor:
    """MR mapped a second time; a harmonized CT or PET has lost its unit and stays."""
    channels = list(images.split(1, 1))
    for m, kind in enumerate(kinds):
        if kind == "mr":
            one = slice(m, m + 1)
            channels[m] = net(channels[m], kind, valid[:, one], body[:, one])
    return torch.cat(channels, 1)
