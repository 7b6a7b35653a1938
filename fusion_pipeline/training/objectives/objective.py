"""The border between the one LightningModule and what a phase asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torchmetrics import MetricCollection

from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.training.batch import Batch


@dataclass(frozen=True)
class Outputs:
    """What the networks gave for a batch, as far as the phase uses them; for scores and pictures.

    Attributes:
        ddf: ``(B, M - 1, d, *S)`` voxels.
        warped: ``(B, M, *S)`` normalized.
        harmonized: ``(B, M, *S)`` 0..1.
        other: ``(B, M, *S)`` 0..1, harmonized from the other protocol.
        weights: ``(B, M, *S)``.
        fused: ``(B, 1, *S)`` 0..1.
        valid: ``(B, M, *S)`` 0/1, the fields of view of what was fused.
    """

    ddf: Tensor | None = None
    warped: Tensor | None = None
    harmonized: Tensor | None = None
    other: Tensor | None = None
    weights: Tensor | None = None
    fused: Tensor | None = None
    valid: Tensor | None = None


class Objective(Protocol):
    """One phase: its losses, which stages it trains, and what its validation measures.

    Attributes:
        phase: its name.
        stages: names of the stages that it trains; the others stay as they are.
        parts: names of the loss's parts in a validation.
        truths: of scores that need a truth, which field of a `Sample` holds it.
    """

    phase: str
    stages: tuple[str, ...]
    parts: tuple[str, ...]
    truths: Mapping[str, str]

    def start(self, network: MultimodalNet) -> None:
        """Set an untrained network to what the phase has to begin at; a trained one stays."""
        ...

    def losses(
        self, network: MultimodalNet, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], Outputs]:
        """The parts of the loss, scalars, weighted, means over the batch; their sum is minimized.

        Args:
            network: all three stages.
            batch: samples of the same kinds.
            step: number of the optimizer's step.
        """
        ...

    def scores(self) -> MetricCollection:
        """Metrics over a whole validation, unfilled."""
        ...

    def update(self, scores: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """Add a batch to the scores; what it has no truth for changes nothing."""
        ...
