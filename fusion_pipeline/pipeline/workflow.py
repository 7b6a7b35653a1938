"""Training by a bundle's configs: what ``python -m monai.bundle run`` does with ``train.json``."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fusion_pipeline.data import InputError, refusal_within
from fusion_pipeline.pipeline.bundle import override

END_TO_END = "all"


def run_training(
    bundle: Path | str, phase: str = END_TO_END, overrides: Mapping[str, object] | None = None
) -> None:
    """Run ``train.json`` and the overlay of a phase, as ``python -m monai.bundle run`` does.

    Args:
        bundle: its folder.
        phase: ``all``: ``train.json`` alone; else ``train_<phase>.json`` is laid over it.
        overrides: values for ids of the config, such as ``module#learning_rate``; None leaves the
            bundle's.

    Raises:
        InputError: the folder has no such config, or a component refuses what it is given.
    """
    from monai.bundle import ConfigParser, create_workflow  # late: two seconds

    configs = Path(bundle) / "configs"
    names = ["train.json", *([] if phase == END_TO_END else [f"train_{phase}.json"])]
    for name in names:
        if not (configs / name).is_file():
            raise InputError(
                f"{bundle}: expected a bundle with configs/{name}, got a folder without it; name "
                "another bundle or another phase"
            )
    files = [str(configs / name) for name in names]
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    config = ConfigParser()
    config.read_config(files)
    override(config, given)
    try:
        with _without_lines_of("monai.bundle.workflows", "monai.bundle.scripts"):
            workflow = create_workflow(
                config_file=files,
                workflow_type="train",
                logging_file=False,
                bundle_root=str(bundle),
                **given,
            )
        workflow.run()
        workflow.finalize()
    except RuntimeError as error:  # MONAI wraps what a component raises
        refused = refusal_within(error)
        if refused is None:
            raise
        raise refused from error


@contextmanager
def _without_lines_of(*names: str) -> Iterator[None]:
    """MONAI tells that it has no logging file, and all arguments."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


__all__ = ["END_TO_END", "run_training"]
