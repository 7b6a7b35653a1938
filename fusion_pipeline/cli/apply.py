"""``fusion-pipeline apply``: a saved registration on other images, labels, points and contours."""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fusion_pipeline.cli.arguments import Parser, key_of, new_command
from fusion_pipeline.cli.terminal import logger

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands
    from fusion_pipeline.pipeline import Grid, SavedRegistration

_SUMMARY = "bring other images, labels, points and contours over with a saved result"
_EPILOG = (
    "forward, as the run did, is from the moving image to the reference; --inverse is the way back"
)


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``apply``."""
    del argv
    apply = new_command(commands, "apply", _apply, summary=_SUMMARY, epilog=_EPILOG)
    apply.set_defaults(check=partial(_check, parser=apply))
    apply.add_argument(
        "--result",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of a case that a run left: OUTPUT/ID",
    )
    apply.add_argument(
        "--key", type=key_of, metavar="KEY", help="the moving image (default: the only one)"
    )
    for name, what in (
        ("images", "images, linear: NIfTI, NRRD, MetaImage, PNG or DICOM folders"),
        ("labels", "integer maps and masks, by the nearest voxel"),
        ("points", "points: CSV in RAS mm, or 3D Slicer's .fcsv and .mrk.json"),
        ("rtstruct", "DICOM RT Structure Sets; --onto names the series that they go to"),
        ("seg", "DICOM Segmentations; --onto names the series that they go to"),
    ):
        apply.add_argument(f"--{name}", nargs="+", default=[], metavar="PATH", help=what)
    apply.add_argument(
        "--inverse", action="store_true", help="from the reference to the moving image"
    )
    apply.add_argument(
        "--onto",
        metavar="PATH",
        help="an image whose grid is wanted (default: the reference's; with --inverse the moving "
        "image's, in canonical axes)",
    )


def _check(args: argparse.Namespace, *, parser: Parser) -> None:
    """Something to bring over, and no two results of one name."""
    given = [*args.images, *args.labels, *args.points, *args.rtstruct, *args.seg]
    if not given:
        parser.error("expected --images, --labels, --points, --rtstruct or --seg, got none")
    if (args.rtstruct or args.seg) and args.onto is None:
        parser.error(
            "expected --onto SERIES with --rtstruct and --seg, got none; name a DICOM folder"
        )
    names = [_stem(path) for path in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        parser.error(f"expected files of different names, got {twice[0]!r} twice; two calls do it")


def _apply(args: argparse.Namespace) -> int:
    """``fusion-pipeline apply``."""
    from fusion_pipeline.data import check_output_folder
    from fusion_pipeline.pipeline import Grid, SavedRegistration

    check_output_folder(args.output)
    saved = SavedRegistration.load(args.result, args.key)
    there = saved.key if args.inverse else saved.reference
    onto = None if args.onto is None else Grid.of_file(args.onto, there)
    for path in args.images:
        _bring(saved, path, onto, args, labels=False)
    for path in args.labels:
        _bring(saved, path, onto, args, labels=True)
    for path in args.points:
        _bring_points(saved, path, args)
    for path in (*args.rtstruct, *args.seg):
        _bring_dicom(saved, path, args)
    return 0


def _bring(
    saved: "SavedRegistration",
    path: str,
    onto: "Grid | None",
    args: argparse.Namespace,
    *,
    labels: bool,
) -> None:
    """One image or label map."""
    from fusion_pipeline.data import read_image, read_labels, write_image, write_labels

    key = saved.reference if args.inverse else saved.key
    if labels:
        image = read_labels(path, key)
    else:
        image, messages = read_image(path, key)
        for message in messages:
            logger.warning(message)
    warped = saved.warp(image, onto=onto, inverse=args.inverse, nearest=labels)
    suffix = ".png" if path.lower().endswith(".png") else ".nii.gz"
    target = args.output / f"{_stem(path)}_warped{suffix}"
    (write_labels if labels else write_image)(warped, target)
    logger.info("%s", target)


def _bring_points(saved: "SavedRegistration", path: str, args: argparse.Namespace) -> None:
    """One file of points."""
    from fusion_pipeline.data import read_points

    given = read_points(path)
    target = args.output / f"{_stem(path)}_warped{given.suffix}"
    given.write(saved.points(given.points, inverse=args.inverse), target)
    logger.info("%s", target)


def _bring_dicom(saved: "SavedRegistration", path: str, args: argparse.Namespace) -> None:
    """One RT Structure Set or Segmentation."""
    from fusion_pipeline.pipeline import warp_rtstruct, warp_seg

    target = args.output / f"{_stem(path)}_warped.dcm"
    if path in args.rtstruct:
        for message in warp_rtstruct(saved, path, args.onto, target, inverse=args.inverse):
            logger.warning(message)
    else:
        warp_seg(saved, path, args.onto, target, inverse=args.inverse)
    logger.info("%s", target)


def _stem(path: str) -> str:
    """The name of a file or folder without what tells its format."""
    name = Path(path.partition("::")[0]).name
    for suffix in (".nii.gz", ".mrk.json"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem if Path(name).suffix else name


__all__ = ["add_command"]
