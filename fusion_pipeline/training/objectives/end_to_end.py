"""``L_final = L_reg + L_norm + γ L_fusion``: all three stages at once (METHOD 6.1)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from fusion_pipeline.data import InputError, one_line_refusals
from fusion_pipeline.geometry import warp
from fusion_pipeline.losses.fusion_loss import fusion_loss
from fusion_pipeline.losses.harmonization_loss import harmonization_loss
from fusion_pipeline.losses.mutual_information import mutual_information
from fusion_pipeline.losses.regularization import bending_energy
from fusion_pipeline.networks.multimodal_net import MultimodalNet, MultimodalOutput
from fusion_pipeline.training.batch import Batch
from fusion_pipeline.training.objectives.fusion import fusion_scores, update_fusion_scores
from fusion_pipeline.training.objectives.objective import Outputs
from fusion_pipeline.training.objectives.registration import (
    TRUTH_OF_SCORE,
    distance,
    reference_body,
    registration_scores,
    update_registration_scores,
)

STAGES = ("registration", "harmonization", "fusion")
_MI_VOXELS = 20_000
_DICE_LABELS = 8


class EndToEnd:
    """The method's own loss; the gradient of the fused image reaches the registration.

    Args:
        smoothness: λ of (3.3), on the bending energy in mm.
        beta: β of (4.4), on the edges.
        gamma: γ of (6.1), on the fusion loss.
        supervision: weight of field error and label overlap, where the sample knows them.
        stage_weights: factor of each stage's loss by name; 1 where not named.

    Raises:
        InputError: an unknown stage.
    """

    phase = "all"
    stages = STAGES
    parts: tuple[str, ...] = STAGES
    truths: Mapping[str, str] = TRUTH_OF_SCORE

    @one_line_refusals()
    def __init__(
        self,
        *,
        smoothness: float = 1.0,
        beta: float = 0.5,
        gamma: float = 1.0,
        supervision: float = 1.0,
        stage_weights: Mapping[str, float] | None = None,
    ) -> None:
        check_stages(stage_weights or {})
        self.smoothness = smoothness
        self.beta = beta
        self.gamma = gamma
        self.supervision = supervision
        self.stage_weights = dict.fromkeys(STAGES, 1.0) | dict(stage_weights or {})

    def start(self, network: MultimodalNet) -> None:
        """Nothing to set."""

    def losses(
        self, network: MultimodalNet, batch: Batch, step: int
    ) -> tuple[dict[str, Tensor], Outputs]:
        """See `Objective`: the part of each stage."""
        out: MultimodalOutput = network.fuse_all(
            batch.image, batch.kinds, batch.valid, batch.original, batch.body
        )
        weight = self.stage_weights
        harmonization = harmonization_loss(
            out.harmonized, out.warped, out.field_of_view, beta=self.beta
        )
        fusion = fusion_loss(out.fused, out.harmonized, out.field_of_view)
        parts = {
            "registration": weight["registration"] * self._registration(batch, out, step),
            "harmonization": weight["harmonization"] * harmonization.mean(),
            "fusion": weight["fusion"] * self.gamma * fusion.mean(),
        }
        return parts, Outputs(
            ddf=out.ddf,
            warped=out.warped,
            harmonized=out.harmonized,
            weights=out.weights,
            fused=out.fused,
            valid=out.field_of_view,
        )

    def _registration(self, batch: Batch, out: MultimodalOutput, step: int) -> Tensor:
        """``L_sim + λ L_smooth`` (METHOD 3.3) and, where known, field error and label overlap."""
        total = batch.image.new_zeros(())
        moving = batch.image.shape[1] - 1
        voxels = [1.0] * (batch.image.ndim - 2)
        # a field in mm on a lattice in mm has that of voxels over the square of the voxel size
        per_mm = batch.image.new_tensor(batch.spacing) ** -2
        body = reference_body(batch)[:, None].to(batch.image.dtype)
        # by the step, as all other draws: a training that goes on draws what it would have drawn
        generator = torch.Generator().manual_seed(step)
        for m in range(moving):
            ddf, one = out.ddf[:, m], slice(m + 1, m + 2)
            overlap = out.field_of_view[:, :1] * out.field_of_view[:, one]
            alike = mutual_information(
                batch.image[:, :1],
                out.warped[:, one],
                overlap,
                samples=_MI_VOXELS,
                generator=generator,
            )
            total = total + (2.0 - alike).mean()
            total = total + self.smoothness * (bending_energy(ddf, voxels) * per_mm).mean()
            if batch.ddf is not None:
                error = distance(ddf, batch.ddf[:, m], body)
                total = total + self.supervision * error.mean()
            if batch.labels is not None:
                overlap_lost = 1.0 - soft_dice(batch.labels[:, :1], batch.labels[:, one], ddf)
                total = total + self.supervision * overlap_lost.mean()
        return total / moving

    def scores(self) -> MetricCollection:
        """Those of registration and of fusion."""
        scores = registration_scores()
        scores.add_metrics(dict(fusion_scores().items()))
        return scores

    def update(self, scores: MetricCollection, batch: Batch, outputs: Outputs) -> None:
        """See `Objective`."""
        update_registration_scores(scores, batch, outputs)
        update_fusion_scores(scores, outputs)


def check_stages(names: Mapping[str, object] | Sequence[str]) -> None:
    """Refuse a name that is no stage's.

    Raises:
        InputError: there is one.
    """
    unknown = sorted(set(names) - set(STAGES))
    if unknown:
        raise InputError(
            f"training: expected stages of {', '.join(STAGES)}, got {', '.join(unknown)}; "
            "correct the name"
        )


def soft_dice(fixed: Tensor, moving: Tensor, ddf: Tensor) -> Tensor:
    """Dice of the largest labels after a linear warp of their indicator images, for the loss.

    The validation's is `metrics.DiceScore` of labels warped by the nearest one, which has no slope.

    Args:
        fixed: ``(B, 1, *S)`` integer labels.
        moving: ``(B, 1, *S)`` integer labels.
        ddf: ``(B, d, *S)`` voxels.

    Returns:
        ``(B,)``, the mean over at most eight labels of each; 1 where the fixed map has none.
    """
    scores = [
        _soft_dice_of_one(fixed[b : b + 1], moving[b : b + 1], ddf[b : b + 1])
        for b in range(len(ddf))
    ]
    return torch.stack(scores)


def _soft_dice_of_one(fixed: Tensor, moving: Tensor, ddf: Tensor) -> Tensor:
    """A scalar; which labels count must not depend on the other samples of a batch."""
    values, counts = torch.unique(fixed[fixed > 0], return_counts=True)
    if not len(values):
        return ddf.new_ones(())
    largest = values[counts.argsort(descending=True, stable=True)[:_DICE_LABELS]]
    largest = largest.reshape(1, -1, *[1] * ddf.shape[1])
    a = (fixed == largest).float()
    b = warp((moving == largest).float(), ddf)
    both = (a * b).flatten(2).sum(2)
    return (2 * both / (a + b).flatten(2).sum(2).clamp_min(1.0)).mean()
