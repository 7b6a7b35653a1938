"""Lightning's trainer with refusals in one line, and going on after a stop."""

import functools
import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from fusion_pipeline.data import InputError, check_output_folder, one_line_refusals, written_whole
from fusion_pipeline.data.refusals import READ_ERRORS, one_line, refusal
from fusion_pipeline.pipeline import (
    TrainingFacts,
    bundle_in_use,
    check_bundle_folder,
    write_bundle,
)
from fusion_pipeline.training.data import MultimodalData
from fusion_pipeline.training.module import MultimodalTraining

logger = logging.getLogger(__name__)
_PREFIX = "network."


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


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with the monitored score, and without the loggers' version number."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        monitored = {
            callback.monitor
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint) and callback.monitor is not None
        }
        scores = trainer.callback_metrics
        return shown | {name: float(scores[name]) for name in sorted(monitored & scores.keys())}


class Trainer(pl.Trainer):
    """`pytorch_lightning.Trainer` with all its settings; what it refuses is told in one line.

    Two settings are fixed, since the data module gives each process its share of new samples in
    each epoch: ``use_distributed_sampler`` and ``reload_dataloaders_every_n_epochs``. With several
    devices and no other ``strategy`` a batch may use the encoders of its own kinds alone.

    Args:
        default_root_dir: folder of the run, which has to be writable.
        settings: every other one of `pytorch_lightning.Trainer`.

    Raises:
        InputError: the folder cannot be written, or Lightning does not know what is asked for.
    """

    @functools.wraps(pl.Trainer.__init__)  # type: ignore[misc]
    @one_line_refusals()
    def __init__(self, *, default_root_dir: Path | str, **settings: Any) -> None:  # noqa: ANN401 - Lightning's
        folder = check_output_folder(default_root_dir)
        if settings.get("strategy", "auto") == "auto" and _several(settings):
            settings["strategy"] = "ddp_find_unused_parameters_true"
        if settings.get("enable_progress_bar") is False:
            callbacks = settings.get("callbacks") or []
            settings["callbacks"] = [x for x in callbacks if not isinstance(x, ProgressBar)]
        settings |= {"use_distributed_sampler": False, "reload_dataloaders_every_n_epochs": 1}
        with _lightning_refusals(ModuleNotFoundError, ValueError, TypeError), _quiet():
            super().__init__(default_root_dir=folder, **settings)


def _several(settings: dict[str, Any]) -> bool:
    """Whether more than one process may train."""
    devices = settings.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices  # [1]: one GPU, the second
    return count not in (1, "1") or settings.get("num_nodes", 1) != 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advice and its use of torch's older names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def last_checkpoint(trainer: pl.Trainer) -> Path | None:
    """Where an interrupted training in the trainer's folder goes on; None: it starts."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            path = Path(callback.dirpath) / "last.ckpt"
            if path.is_file():
                return path
    return None


@one_line_refusals()
def fit(
    trainer: pl.Trainer,
    module: MultimodalTraining,
    data: MultimodalData,
    *,
    resume: bool = True,
    weights: str = "best",
) -> Path:
    """Train, from the last checkpoint in the trainer's folder if there is one.

    Args:
        trainer: with a ``ModelCheckpoint`` that saves the last one.
        module: network and phase.
        data: samples.
        resume: go on from the last checkpoint.
        weights: ``best`` by the monitored score, or ``last``; averaged where they are averaged.

    Returns:
        ``<default_root_dir>/model.pt``: the plain state dict of the network, as a bundle holds it.
        Where a bundle's config runs the training, ``<default_root_dir>/bundle`` is that bundle with
        these weights.

    Raises:
        InputError: the checkpoint, the samples and the settings do not go together.
    """
    if weights not in ("best", "last"):
        raise InputError(f"training: expected the best or the last weights, got {weights!r}")
    checkpoint = last_checkpoint(trainer) if resume else None
    if checkpoint is not None:
        _check_checkpoint(checkpoint, module)
        logger.info("training goes on from %s", checkpoint)
    source = bundle_in_use()
    path = Path(trainer.default_root_dir) / "model.pt"
    if source is not None:  # what cannot be written is refused before hours of work
        check_bundle_folder(path.with_name("bundle"))
    with _lightning_refusals(), _quiet():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    logger.info("%d steps, %.0f s", trainer.global_step, module.wall_time())
    chosen = _best_checkpoint(trainer) if weights == "best" else None
    _end_with_a_validation(trainer, module, data, checkpoint, needless=chosen is not None)
    if trainer.is_global_zero:
        state = (
            {name: value.cpu() for name, value in module.network.state_dict().items()}
            if chosen is None
            else _network_state(chosen)
        )
        with written_whole(path) as aside:
            torch.save(state, aside)
        if source is not None:
            facts = _facts(trainer, module, data, chosen)
            write_bundle(
                path.with_name("bundle"), source.root, state, config=source.config, facts=facts
            )
    trainer.strategy.barrier()
    return path


def _end_with_a_validation(
    trainer: pl.Trainer,
    module: MultimodalTraining,
    data: MultimodalData,
    checkpoint: Path | None,
    *,
    needless: bool,
) -> None:
    """Validate the last weights, where they are the ones that go out and nobody did."""
    # the first process decides: others may not see the file of the best weights
    if trainer.strategy.broadcast(needless or module.validated_step == trainer.global_step):
        return
    if checkpoint is not None:
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if saved["global_step"] == trainer.global_step:
            # nothing was left to train, and the averaged weights are in the checkpoint alone
            module.network.load_state_dict(_network_state(saved))
    if not trainer.limit_val_batches:
        logger.warning("the weights are not validated: limit_val_batches is 0")
        return
    logger.info("the last weights are validated")
    with _lightning_refusals(), _quiet():
        trainer.validate(module, datamodule=data, verbose=False)


def _facts(
    trainer: pl.Trainer,
    module: MultimodalTraining,
    data: MultimodalData,
    best: Mapping[str, Any] | None,
) -> TrainingFacts:
    """What the model card says; the scores are those of the weights that it stands beside."""
    scores = module.validation_scores() if best is None else best.get("scores", {})
    step = trainer.global_step if best is None else best["global_step"]
    return TrainingFacts(
        phase=module.objective.phase,
        steps=trainer.global_step,
        seeds={"samples": data.seed},
        data=data.counts(),
        scores={name.removeprefix("val/"): value for name, value in scores.items()},
        settings={
            **dict(module.hparams),
            "step of these weights": step,
            "wall time in s": round(module.wall_time()),
            "batch size": data.batch_size * trainer.world_size,
            "accumulated batches": trainer.accumulate_grad_batches,
            "precision": trainer.precision,
            "shape": list(data.shape),
            "spacing in mm": data.spacing,
        },
    )


def _best_checkpoint(trainer: pl.Trainer) -> dict[str, Any] | None:
    """The best checkpoint; None where nothing was monitored."""
    callback = trainer.checkpoint_callback
    best = getattr(callback, "best_model_path", "")
    if not best or not Path(best).is_file():
        return None
    checkpoint: dict[str, Any] = torch.load(best, map_location="cpu", weights_only=True)
    return checkpoint


def _network_state(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The network's part of a checkpoint."""
    state = checkpoint["state_dict"]
    return {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}


def _check_checkpoint(path: Path, module: MultimodalTraining) -> None:
    """Refuse a checkpoint that this module cannot go on from.

    Raises:
        InputError: it is damaged, of another network, or made with other stages frozen.
    """
    place, advice = f"training ({path})", "choose another output_dir"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weights, states = saved["state_dict"], saved["optimizer_states"]
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
