"""The trainer: checkpoints, logs, a progress bar, and going on after a stop."""

import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from fusion_pipeline.data import (
    InputError,
    check_output_folder,
    one_line_refusals,
    written_whole,
)
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, refusal
from fusion_pipeline.training.data import MultimodalData
from fusion_pipeline.training.module import MultimodalTraining

logger = logging.getLogger(__name__)
_CHECKPOINTS = "checkpoints"


class _Bar(TQDMProgressBar):
    """Without the loggers' version, which says nothing about the training."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown


@one_line_refusals()
def build_trainer(
    output_dir: Path | str,
    *,
    max_epochs: int,
    max_steps: int = -1,
    accelerator: str = "auto",
    devices: int | str = 1,
    accumulate: int = 1,
    progress: bool = True,
) -> pl.Trainer:
    """A trainer that keeps the last and the best checkpoint, and logs to TensorBoard and CSV.

    Args:
        output_dir: gets ``checkpoints/``, ``tensorboard/`` and, for each start of the training, a
            ``csv/version_N/`` (the logger would delete the last start's lines).
        max_epochs: when to stop.
        max_steps: when to stop earlier; −1 never.
        accelerator: Lightning's name of the hardware.
        devices: how many; more than one trains with DDP.
        accumulate: batches per step.
        progress: show a bar.

    Raises:
        InputError: the folder cannot be written, or Lightning does not know what is asked for.
    """
    output = check_output_folder(output_dir)
    checkpoint = ModelCheckpoint(
        output / _CHECKPOINTS, filename="best", monitor="val/total", save_last=True
    )
    with _lightning_refusals(ModuleNotFoundError, ValueError, TypeError):
        return pl.Trainer(
            max_epochs=max_epochs,
            max_steps=max_steps,
            accelerator=accelerator,
            devices=devices,
            # a batch uses the encoders of its own kinds alone
            strategy="auto" if devices == 1 else "ddp_find_unused_parameters_true",
            use_distributed_sampler=False,  # the data module gives each process its share
            accumulate_grad_batches=accumulate,
            default_root_dir=output,
            callbacks=[checkpoint, *([_Bar()] if progress else [])],
            logger=[
                TensorBoardLogger(str(output), name="tensorboard", version=""),
                CSVLogger(str(output), name="csv"),
            ],
            enable_progress_bar=progress,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            log_every_n_steps=1 if max_steps == 1 else 10,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
        )


def last_checkpoint(output_dir: Path | str) -> Path | None:
    """Where an interrupted training in this folder goes on; None: it starts."""
    path = Path(output_dir) / _CHECKPOINTS / "last.ckpt"
    return path if path.is_file() else None


@contextmanager
def _lightning_refusals(*also: type[Exception]) -> Iterator[None]:
    """One line of what Lightning says to settings that it does not take."""
    try:
        yield
    except InputError as error:
        _, from_worker, message = str(error).rpartition("InputError: ")
        if not from_worker:
            raise
        raise InputError(message.strip()) from error  # torch sends a worker's whole traceback
    except (MisconfigurationException, *also) as error:
        came = one_line(error, 400)
        raise InputError(
            f"training: expected settings that Lightning takes, got: {came}"
        ) from error


@one_line_refusals()
def fit(
    trainer: pl.Trainer, module: MultimodalTraining, data: MultimodalData, output_dir: Path | str
) -> Path:
    """Train, from the last checkpoint in ``output_dir`` if there is one.

    Returns:
        ``<output_dir>/model.pt``: the plain state dict of the network, as a bundle holds it.

    Raises:
        InputError: the checkpoint, the samples and the settings do not go together.
    """
    checkpoint = last_checkpoint(output_dir)
    if checkpoint is not None:
        _check_checkpoint(checkpoint, module)
        logger.info("training goes on from %s", checkpoint)
    with _lightning_refusals(), warnings.catch_warnings():
        # Lightning's advice and its use of torch's older names
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    path = Path(output_dir) / "model.pt"
    if trainer.is_global_zero:
        state = {name: value.cpu() for name, value in module.network.state_dict().items()}
        with written_whole(path) as aside:
            torch.save(state, aside)
    return path


def _check_checkpoint(path: Path, module: MultimodalTraining) -> None:
    """Refuse a checkpoint that this module cannot go on from.

    Raises:
        InputError: it is damaged, of another network, or made with other stages frozen.
    """
    place, advice = f"training ({path})", "choose another output_dir"
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        weights, states = kept["state_dict"], kept["optimizer_states"]
        trained = sum(len(group["params"]) for group in states[0]["param_groups"])
    except (*READ_ERRORS, pickle.UnpicklingError) as error:
        raise refusal(place, "a whole checkpoint", one_line(error), advice) from error
    own = {name: value.shape for name, value in module.state_dict().items()}
    if own != {name: value.shape for name, value in weights.items()}:
        raise refusal(place, "a checkpoint of this network", "one of another", advice)
    wanted = sum(p.requires_grad for p in module.parameters())
    if trained != wanted:
        came = f"{wanted} trained tensors, with other stages frozen"
        raise refusal(place, f"the {trained} tensors that were trained before", came, advice)
