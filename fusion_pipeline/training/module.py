"""``L_final = L_reg + L_norm + γ L_fusion``, trained end to end (METHOD 6.1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from fusion_pipeline.data import InputError, one_line_refusals
from fusion_pipeline.geometry import warp
from fusion_pipeline.losses.fusion_loss import fusion_loss
from fusion_pipeline.losses.harmonization_loss import harmonization_loss
from fusion_pipeline.losses.mutual_information import mutual_information
from fusion_pipeline.losses.regularization import bending_energy
from fusion_pipeline.networks.multimodal_net import MultimodalNet, MultimodalOutput
from fusion_pipeline.training.samples import Batch

STAGES = ("registration", "harmonization", "fusion")
SCORES = ("error_mm_before", "error_mm_after", "dice_before", "dice_after")
_MI_VOXELS = 20_000
_DICE_LABELS = 8


@dataclass(frozen=True)
class Losses:
    """The parts of L_final, scalars, already weighted by λ, β, γ and the stage weights."""

    registration: Tensor
    harmonization: Tensor
    fusion: Tensor

    @property
    def total(self) -> Tensor:
        """``L_final``."""
        return self.registration + self.harmonization + self.fusion


class MultimodalTraining(pl.LightningModule):
    """Trains registration, warp, harmonization and fusion together.

    Args:
        network: what is trained; it is called ``network`` in the checkpoints.
        smoothness: λ of (3.3), on the bending energy in mm.
        beta: β of (4.4), on the edges.
        gamma: γ of (6.1), on the fusion loss.
        supervision: weight of field error and label overlap, where the sample knows them.
        stage_weights: factor of each stage's loss by name; 1 where not named.
        frozen: names of stages whose parameters stay as they are. Gradients still pass through.
        learning_rate: of AdamW; going on from a checkpoint as well.

    Raises:
        InputError: an unknown stage.
    """

    @one_line_refusals()
    def __init__(
        self,
        network: MultimodalNet,
        *,
        smoothness: float = 1.0,
        beta: float = 0.5,
        gamma: float = 1.0,
        supervision: float = 1.0,
        stage_weights: Mapping[str, float] | None = None,
        frozen: Sequence[str] = (),
        learning_rate: float = 1e-4,
    ) -> None:
        super().__init__()
        unknown = sorted({*frozen, *(stage_weights or {})} - set(STAGES))
        if unknown:
            raise InputError(
                f"training: expected stages of {', '.join(STAGES)}, got {', '.join(unknown)}; "
                "correct the name"
            )
        self.network = network
        self.smoothness = smoothness
        self.beta = beta
        self.gamma = gamma
        self.supervision = supervision
        self.stage_weights = dict.fromkeys(STAGES, 1.0) | dict(stage_weights or {})
        self.learning_rate = learning_rate
        for name in frozen:
            network.get_submodule(name).requires_grad_(False)
        self._scored: dict[str, list[float]] = {}

    def losses(self, batch: Batch) -> tuple[Losses, MultimodalOutput]:
        """L_final of a batch, and what the network gave."""
        out: MultimodalOutput = self.network.fuse_all(batch.image, batch.kinds, batch.valid)
        weight = self.stage_weights
        harmonization = harmonization_loss(
            out.harmonized, out.warped, out.field_of_view, beta=self.beta
        )
        fusion = fusion_loss(out.fused, out.harmonized, out.field_of_view)
        return (
            Losses(
                registration=weight["registration"] * self._registration_loss(batch, out),
                harmonization=weight["harmonization"] * harmonization.mean(),
                fusion=weight["fusion"] * self.gamma * fusion.mean(),
            ),
            out,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; logs each part."""
        losses, _ = self.losses(batch)
        if not torch.isfinite(losses.total):
            raise FloatingPointError(
                f"the loss is not finite at step {self.global_step}: {losses}; go on from the last "
                "checkpoint with a smaller learning rate"
            )
        self._log_losses("train", losses, len(batch.image))
        return losses.total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses, error and overlap before and after, and a picture of the first batch."""
        losses, out = self.losses(batch)
        self._log_losses("val", losses, len(batch.image))
        for name, value in registration_scores(batch, out).items():
            self._scored.setdefault(name, []).extend([float(value)] * len(batch.image))
        if batch_idx == 0 and self.trainer.is_global_zero:
            self._log_picture(batch, out)

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the epoch before."""
        self._scored = {}

    def on_validation_epoch_end(self) -> None:
        """Mean scores over the samples that have a truth, of all processes.

        One process may have seen none: what is exchanged must not depend on it.
        """
        found = [self._scored.get(name, []) for name in SCORES]
        sums = torch.tensor([[sum(f), float(len(f))] for f in found], device=self.device)
        totals = self.all_gather(sums).reshape(-1, len(SCORES), 2).sum(0)
        for name, (total, count) in zip(SCORES, totals, strict=True):
            if count > 0:
                self.log(f"val/{name}", total / count, rank_zero_only=True)

    def on_train_start(self) -> None:
        """The learning rate is the one asked for now, not the checkpoint's."""
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is not frozen."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.learning_rate)

    def _registration_loss(self, batch: Batch, out: MultimodalOutput) -> Tensor:
        """``L_sim + λ L_smooth`` (METHOD 3.3) and, where known, field error and label overlap."""
        total = batch.image.new_zeros(())
        moving = batch.image.shape[1] - 1
        spacing = [batch.spacing] * (batch.image.ndim - 2)
        for m in range(moving):
            ddf, one = out.ddf[:, m], slice(m + 1, m + 2)
            overlap = out.field_of_view[:, :1] * out.field_of_view[:, one]
            alike = mutual_information(
                batch.image[:, :1], out.warped[:, one], overlap, samples=_MI_VOXELS
            )
            total = total + (2.0 - alike).mean()
            total = total + self.smoothness * bending_energy(ddf * batch.spacing, spacing).mean()
            if batch.ddf is not None:
                error = _field_error(ddf, batch.ddf[:, m], batch)
                total = total + self.supervision * error.mean()
            if batch.labels is not None:
                overlap_lost = 1.0 - soft_dice(batch.labels[:, :1], batch.labels[:, one], ddf)
                total = total + self.supervision * overlap_lost.mean()
        return total / moving

    def _log_losses(self, phase: str, losses: Losses, batch_size: int) -> None:
        """Each part and the sum."""
        shown = phase == "train"
        for name in (*STAGES, "total"):
            self.log(
                f"{phase}/{name}",
                getattr(losses, name),
                prog_bar=name == "total",
                on_step=shown,
                on_epoch=not shown,
                batch_size=batch_size,
                sync_dist=not shown,
            )

    def _log_picture(self, batch: Batch, out: MultimodalOutput) -> None:
        """Fixed, moving, warped, harmonized, weights and fused in one row, to TensorBoard."""
        for log in self.loggers:
            if isinstance(log, TensorBoardLogger):
                log.experiment.add_image("val/picture", picture(batch, out), self.global_step)


def registration_scores(batch: Batch, out: MultimodalOutput) -> dict[str, Tensor]:
    """Mean error in mm and label overlap before and after, as far as the batch knows the truth."""
    scores: dict[str, Tensor] = {}
    if batch.ddf is not None:
        for name, ddf in (("before", torch.zeros_like(out.ddf)), ("after", out.ddf)):
            errors = [_field_error(ddf[:, m], batch.ddf[:, m], batch) for m in range(ddf.shape[1])]
            scores[f"error_mm_{name}"] = torch.stack(errors).mean() * batch.spacing
    if batch.labels is not None:
        for name, ddf in (("before", torch.zeros_like(out.ddf)), ("after", out.ddf)):
            overlaps = [
                soft_dice(batch.labels[:, :1], batch.labels[:, m + 1 : m + 2], ddf[:, m])
                for m in range(ddf.shape[1])
            ]
            scores[f"dice_{name}"] = torch.stack(overlaps).mean()
    return scores


def _field_error(ddf: Tensor, truth: Tensor, batch: Batch) -> Tensor:
    """``(B,)`` mean distance in voxels, in the reference's body where labels say where it is."""
    distance = (ddf - truth).square().sum(1).add(1e-6).sqrt()
    if batch.labels is None:
        return distance.flatten(1).mean(1)
    body = (batch.labels[:, 0] > 0).float()
    return (distance * body).flatten(1).sum(1) / body.flatten(1).sum(1).clamp_min(1.0)


def soft_dice(fixed: Tensor, moving: Tensor, ddf: Tensor) -> Tensor:
    """Dice of the largest labels after a linear warp of their indicator images.

    Args:
        fixed: ``(B, 1, *S)`` integer labels.
        moving: ``(B, 1, *S)`` integer labels.
        ddf: ``(B, d, *S)`` voxels.

    Returns:
        ``(B,)``, the mean over at most eight labels; 1 where the fixed map has none.
    """
    values, counts = torch.unique(fixed[fixed > 0], return_counts=True)
    if not len(values):
        return ddf.new_ones(len(ddf))
    largest = values[counts.argsort(descending=True)[:_DICE_LABELS]]
    largest = largest.reshape(1, -1, *[1] * ddf.shape[1])
    a = (fixed == largest).float()
    b = warp((moving == largest).float(), ddf)
    both = (a * b).flatten(2).sum(2)
    return (2 * both / (a + b).flatten(2).sum(2).clamp_min(1.0)).mean(1)


def picture(batch: Batch, out: MultimodalOutput) -> Tensor:
    """``(1, H, W)`` in 0..1: a middle slice of the first sample.

    Rows: each image as given, warped, harmonized, its weight. The last column is the fused image.
    """
    rows = []
    given, warped = batch.image[0] / 8 + 0.5, out.warped[0] / 8 + 0.5
    for image in (given, warped, out.harmonized[0], out.weights[0]):
        panels = [_middle(channel) for channel in image]
        rows.append(torch.cat([*panels, _middle(out.fused[0, 0])], dim=1))
    return torch.cat(rows).clamp(0, 1)[None].detach().cpu()


def _middle(volume: Tensor) -> Tensor:
    """The middle slice across the last axis, framed."""
    flat = volume if volume.ndim == 2 else volume[..., volume.shape[-1] // 2]
    return F.pad(flat.float(), (1, 1, 1, 1), value=1.0)
