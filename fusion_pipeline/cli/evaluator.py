"""The object behind ``run`` and ``demo``: the bundle's evaluator with the options as overrides."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_pipeline.pipeline import FusionEvaluator


def evaluator_of(
    args: argparse.Namespace, spatial_dims: int, **overrides: object
) -> "FusionEvaluator":
    """The evaluator that the bundle's ``inference.json`` describes, with the overrides."""
    from fusion_pipeline.pipeline import bundle_for, from_config

    path = bundle_for(spatial_dims) if args.bundle is None else args.bundle
    overrides |= {
        "output_dir": str(args.output),
        "ckpt_path": None if args.weights is None else str(args.weights),
        "device": args.device,
        "refine_steps": args.refine_steps,
        "same_person": False if args.different_people else None,
    }
    evaluator: FusionEvaluator = from_config(path, overrides, "evaluator")["evaluator"]
    return evaluator


__all__ = ["evaluator_of"]
