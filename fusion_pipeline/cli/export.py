"""``fusion-pipeline export``: the networks as graphs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_pipeline.cli.arguments import new_command
from fusion_pipeline.cli.terminal import logger

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands

_SUMMARY = "write the networks as torch.export or ONNX graphs for images of any size"


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``export``."""
    del argv
    export = new_command(commands, "export", _export, summary=_SUMMARY)
    export.add_argument(
        "--bundle",
        type=Path,
        metavar="FOLDER",
        help="folder of a bundle (default: the packaged one for 3D)",
    )
    export.add_argument(
        "--network",
        default="all",
        choices=("registration", "harmonization", "fusion", "all"),
        help="which of them",
    )
    export.add_argument(
        "--format", default="pt2", choices=("pt2", "onnx"), help="torch.export or ONNX"
    )
    export.add_argument(
        "--kinds",
        default="ct,mr",
        metavar="KIND,KIND",
        help="of the fused images, in order: ct, mr, emission",
    )


def _export(args: argparse.Namespace) -> int:
    """``fusion-pipeline export``."""
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


__all__ = ["add_command"]
