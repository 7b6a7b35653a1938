"""Refuse a monitored score that no validation can give, before the first step."""

from collections.abc import Callable, Collection, Sequence

import pytorch_lightning as pl

from fusion_pipeline.data import InputError
from fusion_pipeline.training.objectives import Objective

_TRUTHS = {"ddf": "a true field", "labels": "label maps"}


def check_monitors(
    callbacks: Sequence[pl.Callback], objective: Objective, truths: Callable[[], Collection[str]]
) -> None:
    """Refuse a callback's ``monitor`` of ``val/`` that will never have a value.

    Other names are left to Lightning: a callback may log what it likes.

    Args:
        callbacks: of the trainer.
        objective: what is trained.
        truths: gives the fields of a `Sample` that the validation brings; asked only if needed.

    Raises:
        InputError: the objective gives no such value, or the validation samples no truth for it.
    """
    names = [f"val/{x}" for x in ("loss", *objective.parts, *objective.scores().keys())]
    monitors = [getattr(callback, "monitor", None) for callback in callbacks]
    wanted = sorted({x for x in monitors if isinstance(x, str) and x.startswith("val/")})
    for name in wanted:
        if name not in names:
            raise InputError(
                f"training: expected a monitor of {', '.join(names)}, got {name}; correct monitor"
            )
    needed = {name: objective.truths.get(name.removeprefix("val/")) for name in wanted}
    brought = truths() if any(needed.values()) else ()
    for name, truth in needed.items():
        if truth is not None and truth not in brought:
            raise InputError(
                f"training: expected validation samples with {_TRUTHS[truth]} for the monitor "
                f"{name}, got none; raise validation_samples or monitor val/loss"
            )


__all__ = ["check_monitors"]
