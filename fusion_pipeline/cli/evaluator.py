"""The object behind ``run`` and ``demo``: the bundle's evaluator with the options as overrides."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion_pipeline.pipeline import FusionEvaluator


def evaluator_of(
    args: argparse.Namespace, spatial_dims: int, **overrides: object
) -> "FusionEvaluator":
    """The evaluator that the bundle's ``inference.json`` describes, with the overrides."""
    from fusion_pipeline.pipeline import from_config

    path = bundle_of(args, spatial_dims)
    overrides |= {
        "output_dir": str(args.output),
        "ckpt_path": None if args.weights is None else str(args.weights),
        "device": args.device,
        "refine_steps": args.refine_steps,
        "fuse_steps": args.fuse_steps,
        "colour_map": args.colour_map,
        "same_person": False if args.different_people else None,
        **_dicom(args, spatial_dims),
    }
    evaluator: FusionEvaluator = from_config(path, overrides, "evaluator")["evaluator"]
    return evaluator


def _dicom(args: argparse.Namespace, spatial_dims: int) -> dict[str, object]:
    """The overrides for DICOM output; none of it leaves the bundle's."""
    from fusion_pipeline.data import InputError

    if not getattr(args, "dicom", False):
        return {}
    if spatial_dims != 3:
        raise InputError(
            "--dicom: expected volumes, got 2D images, which name no position in a patient and are "
            "not read from DICOM either; run the series that the slices are from, or leave it out"
        )
    return {
        "dicom": True,
        "dicom_identity": args.dicom_identity,
        "patient_id": args.patient_id,
        "patient_name": args.patient_name,
    }


def bundle_of(args: argparse.Namespace, spatial_dims: int) -> Path:
    """Folder of the bundle."""
    from fusion_pipeline.pipeline import bundle_for

    return bundle_for(spatial_dims) if args.bundle is None else Path(args.bundle)


__all__ = ["bundle_of", "evaluator_of"]
