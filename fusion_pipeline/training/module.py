"""``L_final = L_reg + L_norm + γ L_fusion``, trained end to end (METHOD 6.1)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import MetricCollection

from fusion_pipeline.data import InputError, one_line_refusals
from fusion_pipeline.geometry import warp
from fusion_pipeline.losses.fusion_loss import fusion_loss
from fusion_pipeline.losses.harmonization_loss import harmonization_loss
from fusion_pipeline.losses.mutual_information import mutual_information
from fusion_pipeline.losses.regularization import bending_energy
from fusion_pipeline.metrics import DiceScore, TargetRegistrationError
from fusion_pipeline.networks.multimodal_net import MultimodalNet, MultimodalOutput
from fusion_pipeline.training.samples import Batch

STAGES = ("registration", "harmonization", "fusion")
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
        self.scores = MetricCollection(
            {
                "error_mm_before": TargetRegistrationError(),
                "error_mm_after": TargetRegistrationError(),
                "dice_before": DiceScore(),
                "dice_after": DiceScore(),
            },
            compute_groups=False,  # before and after are the same measure of other fields
        )

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
        self._update_scores(batch, out)
        if batch_idx == 0 and self.trainer.is_global_zero:
            self._log_picture(batch, out)

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the epoch before."""
        self.scores.reset()

    def on_validation_epoch_end(self) -> None:
        """Mean scores over the image pairs that have a truth, of all processes.

        Each process computes each score, even one of which it saw no truth: the others wait for it.
        """
        for name, mean in self.scores.compute().items():
            if not torch.isnan(mean):
                self.log(f"val/{name}", mean, rank_zero_only=True)

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

    def _update_scores(self, batch: Batch, out: MultimodalOutput) -> None:
        """Error in mm and label overlap of each pair, before and after; without a truth, none."""
        for when, ddf in (("before", torch.zeros_like(out.ddf)), ("after", out.ddf)):
            self.scores[f"error_mm_{when}"].update(*vectors_mm(batch, ddf))
            self.scores[f"dice_{when}"].update(*label_maps(batch, ddf))

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


def vectors_mm(batch: Batch, ddf: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """True and found displacements in the reference's body, which labels show; else everywhere.

    Args:
        batch: M images of B samples; without a truth there is no pair.
        ddf: ``(B, M - 1, d, *S)`` voxels, the fields found.

    Returns:
        For each pair of reference and moving image, ``(n, d)`` mm each.
    """
    true: list[Tensor] = []
    found: list[Tensor] = []
    if batch.ddf is None:
        return true, found
    for b, m in itertools.product(range(ddf.shape[0]), range(ddf.shape[1])):
        body = torch.ones_like(ddf[b, m, 0]) if batch.labels is None else batch.labels[b, 0]
        true.append(batch.ddf[b, m][:, body > 0].T * batch.spacing)
        found.append(ddf[b, m][:, body > 0].T * batch.spacing)
    return true, found


def label_maps(batch: Batch, ddf: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's labels and the moving image's, warped by the nearest label.

    Args:
        batch: M images of B samples; without labels there is no pair.
        ddf: ``(B, M - 1, d, *S)`` voxels, the fields found.

    Returns:
        ``(B · (M - 1), 1, *S)`` each, a pair of reference and moving image after the other.
    """
    if batch.labels is None:
        nothing = ddf.new_empty((0, 1, *ddf.shape[3:]))
        return nothing, nothing
    fixed, moving = batch.labels[:, :1].expand_as(batch.labels[:, 1:]), batch.labels[:, 1:]
    pairs = moving.flatten(0, 1)[:, None].float()
    return fixed.flatten(0, 1)[:, None], warp(pairs, ddf.flatten(0, 1), mode="nearest")


def _field_error(ddf: Tensor, truth: Tensor, batch: Batch) -> Tensor:
    """``(B,)`` mean distance in voxels, in the reference's body where labels say where it is."""
    distance = (ddf - truth).square().sum(1).add(1e-6).sqrt()
    if batch.labels is None:
        return distance.flatten(1).mean(1)
    body = (batch.labels[:, 0] > 0).float()
    return (distance * body).flatten(1).sum(1) / body.flatten(1).sum(1).clamp_min(1.0)


def soft_dice(fixed: Tensor, moving: Tensor, ddf: Tensor) -> Tensor:
    """Dice of the largest labels after a linear warp of their indicator images, for the loss.

    The validation's is `metrics.DiceScore` of labels warped by the nearest one, which has no slope.

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
