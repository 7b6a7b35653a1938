"""``fusion-pipeline train``: the bundle's ``train.json``, with options for what is changed most."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_pipeline.cli.arguments import config_value, new_command, whole_number

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands

_SUMMARY = "train the networks; the result is a bundle that run --bundle takes"
_EPILOG = (
    "the same as: python -m monai.bundle run --config_file train.json [train_PHASE.json] "
    "--ID VALUE ..., on the configs of the bundle"
)
_PHASES = ("registration", "harmonization", "fusion", "all")


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``train``."""
    del argv
    train = new_command(commands, "train", _train, summary=_SUMMARY, epilog=_EPILOG)
    train.set_defaults(
        interrupted="interrupted; the same command goes on from its last checkpoint", speaks=True
    )
    train.add_argument(
        "--datalist",
        type=Path,
        metavar="DATALIST",
        help='JSON file with "training" and "validation" cases (default: painted samples alone)',
    )
    train.add_argument(
        "--phase", default="all", choices=_PHASES, help="which networks; all: end to end"
    )
    train.add_argument(
        "--bundle",
        type=Path,
        metavar="FOLDER",
        help="bundle to start from (default: the packaged one for 2D or 3D)",
    )
    train.add_argument(
        "--spatial-dims",
        type=int,
        choices=(2, 3),
        help="of the packaged bundle (default: as the datalist's images, else 3)",
    )
    _add_trainer(train)
    train.add_argument(
        "--folds", type=whole_number, metavar="K", help="split the patients into K parts"
    )
    train.add_argument(
        "--fold", type=whole_number, metavar="I", help="the part that validates, 0 to K - 1"
    )
    train.add_argument(
        "--override",
        action="append",
        metavar="ID=VALUE",
        type=config_value,
        help="another value of the config, such as module#learning_rate=1e-3; as often as needed",
    )


def _add_trainer(train: argparse.ArgumentParser) -> None:
    """What Lightning's trainer is told."""
    train.add_argument("--device", help="cpu, cuda or cuda:1 (default: the bundle's, cpu)")
    train.add_argument("--devices", metavar="N", help="how many (default: the bundle's, 1)")
    train.add_argument("--strategy", help="Lightning's, such as ddp (default: by --devices)")
    train.add_argument("--precision", help="Lightning's, such as bf16-mixed (default: 32-true)")
    train.add_argument(
        "--max-steps",
        type=whole_number,
        metavar="N",
        help="stop after N optimizer steps (default: the bundle's epochs)",
    )
    train.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the last checkpoint in --output (default: yes)",
    )


def _train(args: argparse.Namespace) -> int:
    """``fusion-pipeline train``."""
    from fusion_pipeline.data import check_output_folder
    from fusion_pipeline.pipeline import bundle_for, run_training

    check_output_folder(args.output)
    bundle = bundle_for(_spatial_dims(args)) if args.bundle is None else args.bundle
    try:
        run_training(bundle, args.phase, _overrides(args))
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
            raise KeyboardInterrupt from stop
        raise
    return 0


def _spatial_dims(args: argparse.Namespace) -> int:
    """2 or 3: as asked for, or by the first that can be read of the kind that most cases are."""
    from fusion_pipeline.data import read_datalist
    from fusion_pipeline.data.pictures import PICTURE_SUFFIXES
    from fusion_pipeline.pipeline import spatial_dims_of_cases

    if args.spatial_dims is not None:
        return int(args.spatial_dims)
    cases = []
    if args.datalist is not None:
        cases = read_datalist(args.datalist, "training", may_be_mixed=True)
    pictures = [str(c.images[c.reference]).lower().endswith(PICTURE_SUFFIXES) for c in cases]
    most = 2 * sum(pictures) > len(cases)
    cases = [case for case, picture in zip(cases, pictures, strict=True) if picture == most]
    # one after the other: the headers of ten thousand patients are not needed for this
    return next((dims for case in cases if (dims := spatial_dims_of_cases([case], unread=0))), 3)


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Values for ids of the config; None leaves the bundle's."""
    overrides = {
        "datalist": None if args.datalist is None else str(args.datalist),
        "output_dir": str(args.output),
        "device": args.device,
        "devices": _number_or_word(args.devices),
        "run#0#resume": None if args.resume else False,  # of `training.fit`
        "train#trainer#strategy": args.strategy,
        "train#trainer#precision": args.precision,
        "train#trainer#max_steps": args.max_steps,
        "data#folds": args.folds,
        "data#fold": args.fold,
    }
    return overrides | dict(args.override or ())


def _number_or_word(text: str | None) -> int | str | None:
    """``2`` is a number of devices, ``auto`` and ``0,1`` are Lightning's words."""
    return int(text) if text is not None and text.isdecimal() else text


__all__ = ["add_command"]
