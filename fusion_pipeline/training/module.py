"""One LightningModule for every phase: registration, harmonization, fusion, end to end."""

import math
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from fusion_pipeline.data import one_line_refusals
from fusion_pipeline.networks.multimodal_net import MultimodalNet
from fusion_pipeline.training.batch import Batch
from fusion_pipeline.training.data import MultimodalData
from fusion_pipeline.training.monitored import check_monitors
from fusion_pipeline.training.objectives import Objective, Outputs
from fusion_pipeline.training.objectives.end_to_end import STAGES, check_stages


class MultimodalTraining(pl.LightningModule):
    """Trains the stages that an objective names, with AdamW, a warm-up and a cosine decay.

    Args:
        network: what is trained; it is called ``network`` in the checkpoints.
        objective: the phase.
        frozen: names of stages that stay as they are though the objective trains them. Gradients
            still pass through.
        learning_rate: the highest, after the warm-up; going on from a checkpoint as well.
        weight_decay: of AdamW.
        warmup_steps: steps in which the rate rises from 0.
        last_rate: share of the highest rate that the cosine ends at.

    Raises:
        InputError: an unknown stage.
    """

    @one_line_refusals()
    def __init__(
        self,
        network: MultimodalNet,
        objective: Objective,
        *,
        frozen: Sequence[str] = (),
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        warmup_steps: int = 100,
        last_rate: float = 0.02,
    ) -> None:
        super().__init__()
        check_stages(frozen)
        self.network = network
        self.objective = objective
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.last_rate = last_rate
        objective.start(network)
        trained = set(objective.stages) - set(frozen)
        for name in STAGES:
            network.get_submodule(name).requires_grad_(name in trained)
        self.scores = objective.scores()
        self._settings_logged = False
        self.validated_step = -1  # the optimizer's step of the last validation
        self._seconds, self._begun = 0.0, math.nan
        settings = {k: v for k, v in vars(objective).items() if isinstance(v, int | float)}
        self.save_hyperparameters(
            {
                "objective": type(objective).__name__,
                **settings,
                "learning_rate": learning_rate,
                "weight_decay": weight_decay,
                "warmup_steps": warmup_steps,
                "frozen": ", ".join(frozen),
            }
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; logs each part.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        parts, _ = self.objective.losses(self.network, batch, self.global_step)
        total = torch.stack(list(parts.values())).sum()
        if not torch.isfinite(total):
            shown = ", ".join(
                f"{name} {float(value.detach()):.3g}" for name, value in parts.items()
            )
            raise FloatingPointError(
                f"the loss is not finite at step {self.global_step}: {shown}; go on from the last "
                "checkpoint with a smaller learning rate"
            )
        self._log_losses("train", parts, total, len(batch.image))
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> Outputs:
        """Losses and scores; what the networks gave goes to the callbacks that draw it."""
        # the second pass of the registration is part of a training step only
        parts, outputs = self.objective.losses(self.network, batch, 0)
        self._log_losses("val", parts, torch.stack(list(parts.values())).sum(), len(batch.image))
        self.objective.update(self.scores, batch, outputs)
        return outputs

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the epoch before."""
        self.scores.reset()

    def on_validation_epoch_end(self) -> None:
        """The scores over the whole validation, of all processes.

        Each process computes each score, even one of which it saw no truth: the others wait for it.
        """
        for name, metric in self.scores.items():
            mean = torch.as_tensor(metric.compute())
            if not torch.isnan(mean):
                self.log(f"val/{name}", mean.float(), rank_zero_only=True)

    def on_validation_end(self) -> None:
        """Put settings and scores side by side in TensorBoard's HPARAMS tab.

        It shows each score's latest value and has to be told the names once, with real values.
        """
        if not self.trainer.sanity_checking:
            self.validated_step = self.global_step
        scores = self.validation_scores()
        if self._settings_logged or self.trainer.sanity_checking or not scores:
            return
        self._settings_logged = True
        step = max(self.global_step - 1, 0)  # where Lightning put these scores: the step just made
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.hparams_initial, scores, step)

    def validation_scores(self) -> dict[str, float]:
        """Losses and scores of the last validation by name; empty before the first one."""
        metrics = self.trainer.callback_metrics
        return {name: float(value) for name, value in metrics.items() if name.startswith("val/")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The scores go with the weights that have them: the best are seldom the last."""
        checkpoint["scores"] = self.validation_scores()
        checkpoint["wall_time_s"] = self.wall_time()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The time that earlier starts took, up to this checkpoint."""
        self._seconds = float(checkpoint.get("wall_time_s", 0.0))

    def wall_time(self) -> float:
        """Seconds of training and validation so far, over all starts."""
        return self._seconds + (time.monotonic() - self._begun if self._begun > 0 else 0.0)

    def on_fit_start(self) -> None:
        """Refuse to monitor what no validation will give.

        Raises:
            InputError: a callback does.
        """
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, MultimodalData):
            check_monitors(
                self.trainer.callbacks, self.objective, lambda: data.val_dataset().truths()
            )

    def on_train_end(self) -> None:
        """Stop the clock."""
        self._seconds, self._begun = self.wall_time(), math.nan

    def on_train_start(self) -> None:
        """The learning rate is the one asked for now, not the checkpoint's."""
        self._begun = time.monotonic()
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            scheduler.base_lrs = [self.learning_rate for _ in scheduler.base_lrs]
            for group in scheduler.optimizer.param_groups:
                group["initial_lr"] = self.learning_rate
                group["lr"] = self.learning_rate * self._share(scheduler.last_epoch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what is trained; the rate changes with each step."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.learning_rate, weight_decay=self.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def _share(self, step: int) -> float:
        """The share of the highest learning rate at a step."""
        warmed = min(1.0, (step + 1) / max(1, self.warmup_steps))
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):  # without an end there is nothing to decay towards
            return warmed
        done = min(1.0, step / max(1, steps))
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return warmed * (self.last_rate + (1 - self.last_rate) * cosine)

    def _log_losses(self, phase: str, parts: dict[str, Tensor], total: Tensor, count: int) -> None:
        """Each part and the sum."""
        shown = phase == "train"
        for name, value in (*parts.items(), ("loss", total)):
            self.log(
                f"{phase}/{name}",
                value.detach(),
                prog_bar=name == "loss",
                on_step=shown,
                on_epoch=not shown,
                batch_size=count,
                sync_dist=True,
            )
