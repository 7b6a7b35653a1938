"""``fusion-pipeline export``: the networks as graphs."""

import argparse
from typing import TYPE_CHECKING

from fusion_pipeline.cli.arguments import add_bundle, add_networks, new_command
from fusion_pipeline.cli.terminal import logger

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands

_SUMMARY = "write the networks as graphs for images of any size, or a bundle for a Model Zoo"


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``export``."""
    del argv
    export = new_command(commands, "export", _export, summary=_SUMMARY)
    add_bundle(export, "the packaged one for 3D")
    add_networks(export, "--network", "all", "which of them")
    export.add_argument(
        "--format",
        default="pt2",
        choices=("pt2", "onnx", "zoo"),
        help="torch.export, ONNX, or the bundle as MONAI's Model Zoo takes it",
    )
    export.add_argument(
        "--weights-url",
        metavar="URL",
        help="with --format zoo, which needs it: folder on the web where the weights will lie",
    )
    export.add_argument(
        "--kinds",
        default="ct,mr",
        metavar="KIND,KIND",
        help="of the fused images, in order: ct, mr, emission",
    )


def _export(args: argparse.Namespace) -> int:
    """``fusion-pipeline export``."""
    if args.format == "zoo":
        return _pack(args)
    from fusion_pipeline.export import NETWORKS, export_networks
    from fusion_pipeline.pipeline import FusionPipeline

    files = export_networks(
        FusionPipeline.from_bundle(args.bundle).network,
        args.output,
        names=NETWORKS if args.network == "all" else [args.network],
        file_format=args.format,
        kinds=args.kinds.split(","),
    )
    logger.info("\n".join(str(file) for file in files))
    return 0


def _pack(args: argparse.Namespace) -> int:
    """``--format zoo``."""
    from fusion_pipeline.data import InputError
    from fusion_pipeline.pipeline import bundle_for, pack_for_model_zoo

    if args.weights_url is None:
        raise InputError(
            "--format zoo: expected --weights-url, the folder on the web where the weights will "
            "lie, got none; give it"
        )
    bundle = bundle_for(3) if args.bundle is None else args.bundle
    logger.info("%s", pack_for_model_zoo(bundle, args.output, args.weights_url))
    return 0


__all__ = ["add_command"]
