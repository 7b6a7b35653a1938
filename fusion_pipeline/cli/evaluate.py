"""``fusion-pipeline evaluate``: a datalist with truths, its scores, statistics and a page."""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_pipeline.cli.arguments import (
    add_count,
    add_datalist,
    add_inference,
    add_networks,
    add_resume,
    config_value,
    new_command,
)
from fusion_pipeline.cli.evaluator import bundle_of, evaluator_of
from fusion_pipeline.cli.terminal import logger

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands, Parser
    from fusion_pipeline.data import CaseFiles
    from fusion_pipeline.evaluation.page import Section
    from fusion_pipeline.pipeline import FusionEvaluator, Method
    from fusion_pipeline.standards import Standard

_SUMMARY = "run the cases of a datalist and write their scores with statistics"
_EPILOG = (
    "labels, landmarks and true fields of the datalist are the truth; 'patient' tells whose case "
    "it is, 'target' its class"
)


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``evaluate``."""
    del argv
    evaluate = new_command(commands, "evaluate", _evaluate, summary=_SUMMARY, epilog=_EPILOG)
    add_datalist(evaluate, "JSON list of cases with their truths", required=True)
    evaluate.add_argument(
        "--section",
        default="testing",
        choices=("testing", "validation", "training"),
        help="which cases of the datalist",
    )
    evaluate.add_argument(
        "--against",
        nargs="+",
        default=(),
        metavar="METHOD",
        help="compare with 'traditional' (mutual-information+z-score+average), 'stages' (and ours "
        "with one of its stages at a time), or any register+harmonize+fuse; a wrong name is "
        "answered with the list (default: ours alone)",
    )
    add_resume(evaluate)
    _add_cross_validation(evaluate)
    diagnosis = "train a small classifier of 'target' on each input, under K folds by patient"
    add_count(evaluate, "--diagnosis", diagnosis, metavar="K")
    steps = "optimizer steps of each of these classifiers"
    add_count(evaluate, "--diagnosis-steps", steps, default=150, least=1)
    lesion = "of the reference's label map, for the segmentation of --diagnosis"
    add_count(evaluate, "--lesion-label", lesion, default=1)
    add_inference(evaluate)


def _add_cross_validation(evaluate: "Parser") -> None:
    """What is trained, and how long."""
    folds = "cross-validate: train on K - 1 parts, evaluate on the rest, by patient"
    add_count(evaluate, "--folds", folds, metavar="K")
    fold = (
        "train for part I alone, 0 to K - 1, and stop: for several machines, one after all of them "
        "without it (default: all parts)"
    )
    add_count(evaluate, "--fold", fold, metavar="I")
    add_networks(evaluate, "--phase", "registration", "which networks each part trains")
    add_count(evaluate, "--max-steps", "optimizer steps of each part", default=200)
    evaluate.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="ID=VALUE",
        type=config_value,
        help="another value of the training's config, such as data#batch_size=4; repeatable",
    )


def _evaluate(args: argparse.Namespace) -> int:
    """``fusion-pipeline evaluate``."""
    from fusion_pipeline.data import InputError, check_output_folder, read_datalist
    from fusion_pipeline.pipeline import methods_against, run_study, spatial_dims_of_cases

    if args.fold is not None and args.folds is None:
        raise InputError("--fold: expected --folds K beside it, got none; add it")
    if args.override and args.folds is None:
        raise InputError(
            "--override: expected --folds K beside it, whose training it is of; add it"
        )
    if args.folds is not None and args.diagnosis is not None:
        # each part has its own network, and features of different networks are no one input
        raise InputError(
            "--diagnosis: expected it without --folds, got both; run the command twice, into two "
            "folders"
        )
    cases = read_datalist(args.datalist, args.section)
    dims = spatial_dims_of_cases(cases)
    methods = methods_against(args.against, spatial_dims=dims)
    check_output_folder(args.output)
    if args.fold is not None:
        _trained(args, cases, dims, args.fold)
        return 0

    def runners(method: "Method", folder: Path) -> "Iterator[FusionEvaluator]":
        if args.folds is None or not method.uses_networks:
            yield _runner(args, cases, dims, method, folder)
            return
        for number in range(args.folds):
            bundle, outside = _trained(args, cases, dims, number)
            own = argparse.Namespace(**vars(args) | {"bundle": bundle, "weights": None})
            yield _runner(own, outside, dims, method, folder)

    # a classifier of each stage that is replaced would triple the time
    whole = [one.name for one in methods if one.chain is None or not one.uses_networks]
    diagnose = None if args.diagnosis is None else partial(_diagnose, args, cases, dims, whole)
    code = run_study(cases, methods, runners, args.output, diagnose)
    logger.info("study: %s", args.output / "study.html")
    return code


def _runner(
    args: argparse.Namespace,
    cases: "Sequence[CaseFiles]",
    dims: int,
    method: "Method",
    folder: Path,
) -> "FusionEvaluator":
    """What runs some cases by one method."""
    into = argparse.Namespace(**vars(args) | {"output": folder})
    overrides: dict[str, object] = {"cases": cases, "resume": args.resume, **method.overrides}
    if method.chain is not None and method.chain.needs_examples:
        overrides["inferer#standard"] = _standard(args, cases, dims, method.chain.harmonize)
    return evaluator_of(into, dims, **overrides)


def _standard(
    args: argparse.Namespace, cases: "Sequence[CaseFiles]", dims: int, name: str
) -> "Standard":
    """A standard of the intensities, fitted to the list's training cases, else to its own."""
    from fusion_pipeline.data import read_datalist
    from fusion_pipeline.pipeline import FusionPipeline, fitted_standard

    listed = json.loads(args.datalist.read_text(encoding="utf-8"))
    training = listed.get("training") if isinstance(listed, dict) else None
    examples = read_datalist(args.datalist, "training") if training else []
    logger.info("%s: fitted to %d cases", name, min(20, len(examples or cases)))
    pipeline = FusionPipeline.from_bundle(bundle_of(args, dims), device=args.device)
    return fitted_standard(name, examples or cases, pipeline.load)


def _trained(
    args: argparse.Namespace, cases: "Sequence[CaseFiles]", dims: int, number: int
) -> "tuple[Path, list[CaseFiles]]":
    """The bundle of one part, and the cases it was not trained on."""
    from fusion_pipeline.training.cross_validation import FoldTraining, train_fold

    training = FoldTraining(
        bundle_of(args, dims),
        args.phase,
        args.max_steps,
        args.device,
        ({} if args.weights is None else {"ckpt_path": str(args.weights)}) | dict(args.override),
    )
    return train_fold(cases, args.folds, number, training, args.output)


def _diagnose(
    args: argparse.Namespace,
    cases: "Sequence[CaseFiles]",
    dims: int,
    methods: "Sequence[str]",
) -> "Section":
    """The diagnostic part of the study."""
    from fusion_pipeline.evaluation.classifier import Recipe
    from fusion_pipeline.pipeline import FusionPipeline
    from fusion_pipeline.pipeline.diagnosis import DiagnosisPlan, run_diagnosis
    from fusion_pipeline.training.folds import fold_numbers

    pipeline = FusionPipeline.from_bundle(
        bundle_of(args, dims), weights=args.weights, device=args.device
    )
    recipe = Recipe(steps=args.diagnosis_steps)
    folds = fold_numbers(cases, args.diagnosis)
    plan = DiagnosisPlan(folds, methods, args.lesion_label, recipe)
    return run_diagnosis(cases, pipeline, args.output, plan)


__all__ = ["add_command"]
