"""``fusion-pipeline evaluate``: a datalist with truths, its scores, statistics and a page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_pipeline.cli.arguments import add_inference, new_command
from fusion_pipeline.cli.evaluator import evaluator_of
from fusion_pipeline.cli.terminal import logger

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands
    from fusion_pipeline.pipeline import FusionEvaluator, Method

_SUMMARY = "run the cases of a datalist and write their scores with statistics"
_EPILOG = (
    "labels, landmarks and true fields of the datalist are the truth; 'patient' tells whose case "
    "it is"
)


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``evaluate``."""
    del argv
    evaluate = new_command(commands, "evaluate", _evaluate, summary=_SUMMARY, epilog=_EPILOG)
    evaluate.add_argument(
        "--datalist",
        type=Path,
        required=True,
        metavar="DATALIST",
        help="JSON list of cases with their truths",
    )
    evaluate.add_argument(
        "--section",
        default="testing",
        choices=("testing", "validation", "training"),
        help="which cases of the datalist",
    )
    evaluate.add_argument(
        "--against",
        choices=("traditional", "stages"),
        help="compare with the traditional chain (mutual information, z-score, a rule); 'stages': "
        "and with each stage of ours replaced alone (default: ours alone)",
    )
    evaluate.add_argument(
        "--rule",
        default="average",
        choices=("average", "maximum", "pca", "laplacian"),
        help="fusion of the traditional chain",
    )
    evaluate.add_argument("--resume", action="store_true", help="skip cases that are done")
    add_inference(evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    """``fusion-pipeline evaluate``."""
    from fusion_pipeline.data import check_output_folder, read_datalist
    from fusion_pipeline.pipeline import methods_against, run_study, spatial_dims_of_cases

    cases = read_datalist(args.datalist, args.section)
    check_output_folder(args.output)
    dims = spatial_dims_of_cases(cases)

    def runner(method: "Method", folder: Path) -> "FusionEvaluator":
        into = argparse.Namespace(**vars(args) | {"output": folder})
        overrides = {"cases": cases, "resume": args.resume, **method.overrides}
        return evaluator_of(into, dims, **overrides)

    code = run_study(cases, methods_against(args.against, args.rule), runner, args.output)
    logger.info("study: %s", args.output / "study.html")
    return code


__all__ = ["add_command"]
