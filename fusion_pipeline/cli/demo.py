"""``fusion-pipeline demo``: a synthetic patient whose truth is known."""

import argparse
from typing import TYPE_CHECKING

from fusion_pipeline.cli.arguments import add_inference, add_spatial_dims, new_command
from fusion_pipeline.cli.evaluator import evaluator_of
from fusion_pipeline.cli.terminal import logger

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands

_SUMMARY = "run a synthetic patient with known truth"


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``demo``."""
    del argv
    demo = new_command(commands, "demo", _demo, summary=_SUMMARY)
    add_spatial_dims(demo, "2: pictures, 3: volumes (default: as the bundle has it, 3)")
    add_inference(demo)


def _demo(args: argparse.Namespace) -> int:
    """``fusion-pipeline demo``."""
    from fusion_pipeline.data import InputError, check_output_folder
    from fusion_pipeline.evaluation import recovery_table

    check_output_folder(args.output)
    evaluator = evaluator_of(args, args.spatial_dims or 3)
    dims = evaluator.pipeline.network.registration.spatial_dims
    if args.spatial_dims not in (None, dims):
        raise InputError(
            f"--spatial-dims: expected {dims}, as the bundle {args.bundle} has it, got "
            f"{args.spatial_dims}; leave one of both out"
        )
    evaluator.run()
    for outcome in evaluator.state.outcomes:
        if outcome.status != "failed":
            page = args.output / outcome.id / "report.html"
            logger.info("%s\nreport: %s", recovery_table(outcome.evaluation), page)
    return evaluator.exit_code


__all__ = ["add_command"]
