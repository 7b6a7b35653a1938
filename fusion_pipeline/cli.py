"""The command ``fusion-pipeline``: arguments in, exit code out, no logic between."""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fusion_pipeline import __version__

if TYPE_CHECKING:
    from fusion_pipeline.data import CaseFiles
    from fusion_pipeline.pipeline import FusionEvaluator

# The heavy imports stand inside the functions: the help comes at once, and library warnings that
# are raised on import find the filter in place.

logger = logging.getLogger("fusion_pipeline")
_KEYED = re.compile(
    r"((?P<option>transform|mask)_)?(?P<key>(ct|mr|pet|spect)(?P<name>_\w+)?)"
    r"(?<!_label)(?<!_landmarks)(?<!_displacement)(?<!_transform)(?<!_mask)"
)
_DESCRIPTION = (
    "Register, harmonize and fuse the CT, MR, PET and SPECT of one patient. Each command has its "
    "own --help. Research only; not a medical device."
)
_RUN_HELP = "register, harmonize and fuse the images of one or many patients"
_RUN_EPILOG = (
    "per image KEY (ct, mr_t1, ...): --transform-KEY KIND, and --mask-KEY PATH, a mask of where to "
    "look; pictures (PNG, 2D NIfTI) go through the 2D bundle"
)
_DEMO_HELP = "run a synthetic patient with known truth"
_EXPORT_HELP = "write the networks as torch.export or ONNX graphs for images of any size"
_TRANSFORMS = ("none", "rigid", "affine", "deformable")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; None: those of the process.

    Returns:
        0: done; 1: some cases failed; 2: bad arguments or bad input.
    """
    try:
        args = _parsed(sys.argv[1:] if argv is None else list(argv))
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    return _started(args)


def _started(args: argparse.Namespace) -> int:
    """Run the command in this process."""
    _log_to_terminal(debug=args.debug)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _quiet()
        return _exit_code_of(args)


def _exit_code_of(args: argparse.Namespace) -> int:
    """Run the command; whatever it raises becomes one line on stderr."""
    from fusion_pipeline.data import InputError

    try:
        return int(args.command(args))
    except InputError as error:
        logger.error("%s", " ".join(str(error).split()), exc_info=error)
        return 2
    except KeyboardInterrupt:
        logger.error("interrupted; the same command with --resume goes on")
        return 130
    except Exception as error:
        text = " ".join(str(error).split())
        logger.error("unexpected %s: %s", type(error).__name__, text, exc_info=error)
        return 1


def _run(args: argparse.Namespace) -> int:
    """``fusion-pipeline run``."""
    from fusion_pipeline.data import check_output_folder
    from fusion_pipeline.pipeline import FusionPipeline, run_processes, spatial_dims_of_cases

    count = _process_count(args)
    cases = _cases(args)
    check_output_folder(args.output)
    dims = spatial_dims_of_cases(cases)
    if count > 1 and len(cases) > 1:
        # what is wrong with the bundle is said once, and no GPU is woken
        FusionPipeline.from_bundle(_bundle(args, dims), device="cpu")
        alone = argparse.Namespace(**vars(args) | {"devices": None, "jobs": None})
        return run_processes(_started, alone, min(count, len(cases)))
    evaluator = _evaluator(args, dims, cases=cases, resume=args.resume)
    evaluator.run()
    if len(cases) == 1 and not evaluator.exit_code:
        logger.info("report: %s", args.output / cases[0].id / "report.html")
    return evaluator.exit_code


def _process_count(args: argparse.Namespace) -> int:
    """How many processes to start; ``--devices`` and ``--jobs`` decide the device as well."""
    import torch

    from fusion_pipeline.data import InputError

    if args.devices is None and args.jobs is None:
        return 1
    option, device = ("--jobs", "cpu") if args.devices is None else ("--devices", "cuda")
    if args.device not in (None, device):
        raise InputError(
            f"{option}: expected --device {device}, got {args.device}; --devices counts GPUs, "
            "--jobs processes on the CPU"
        )
    if "RANK" in os.environ:
        raise InputError(f"{option}: torchrun starts the processes; leave {option} out")
    if args.devices is not None and args.devices > torch.cuda.device_count():
        raise InputError(
            f"--devices: expected at most {torch.cuda.device_count()}, the GPUs that torch can use "
            f"here, got {args.devices}; --jobs starts processes on the CPU"
        )
    args.device = device
    return int(args.devices or args.jobs)


def _demo(args: argparse.Namespace) -> int:
    """``fusion-pipeline demo``."""
    from fusion_pipeline.data import InputError, check_output_folder
    from fusion_pipeline.evaluation import recovery_table

    check_output_folder(args.output)
    evaluator = _evaluator(args, args.spatial_dims or 3)
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


def _cases(args: argparse.Namespace) -> "list[CaseFiles]":
    """The cases that the arguments name."""
    from fusion_pipeline.data import case_from_paths, read_datalist

    if args.datalist is not None:
        return read_datalist(args.datalist)
    transforms = dict(args.transforms)
    if args.transform is not None:
        transforms = dict.fromkeys(args.images, args.transform) | transforms
        # the reference stays where it is
        transforms.pop(_reference(args), None)
    return [case_from_paths(args.id or "case", args.images, args.reference, transforms, args.masks)]


def _reference(args: argparse.Namespace) -> str | None:
    """The key that the case will take as its reference."""
    from fusion_pipeline.data import default_reference

    return args.reference or (default_reference(list(args.images)) if args.images else None)


def _evaluator(
    args: argparse.Namespace, spatial_dims: int, **overrides: object
) -> "FusionEvaluator":
    """The evaluator that the bundle's ``inference.json`` describes, with the overrides."""
    from fusion_pipeline.pipeline import from_config

    overrides |= {
        "output_dir": str(args.output),
        "device": args.device,
        "refine_steps": args.refine_steps,
        "same_person": False if args.different_people else None,
    }
    evaluator: FusionEvaluator = from_config(_bundle(args, spatial_dims), overrides, "evaluator")[
        "evaluator"
    ]
    return evaluator


def _bundle(args: argparse.Namespace, spatial_dims: int) -> Path:
    """Folder of the bundle."""
    from fusion_pipeline.pipeline import bundle_for

    return bundle_for(spatial_dims) if args.bundle is None else Path(args.bundle)


class _Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


class _Once(argparse.Action):
    """Keep the value under its key, in the order of the command line; refuse a second one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - argparse's signature
        option_string: str | None = None,
    ) -> None:
        """Store one value: ``dest`` is ``images:mr_t1``, ``masks:ct`` or ``transforms:pet``."""
        group, _, key = self.dest.partition(":")
        entries: dict[str, str] = getattr(namespace, group)
        if key in entries:
            parser.error(f"{option_string} is given twice")
        entries[key] = values


def _parsed(argv: list[str]) -> argparse.Namespace:
    """The arguments; images, masks and transforms are gathered by key."""
    parser = _Parser(prog="fusion-pipeline", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="run | demo | export")
    run = commands.add_parser("run", help=_RUN_HELP, epilog=_RUN_EPILOG, allow_abbrev=False)
    _add_run(run, argv)
    demo = commands.add_parser("demo", help=_DEMO_HELP, allow_abbrev=False)
    demo.set_defaults(command=_demo)
    demo.add_argument(
        "--spatial-dims", type=int, choices=(2, 3), help="2: pictures, 3: volumes (default)"
    )
    _add_common(demo)
    _add_export(commands.add_parser("export", help=_EXPORT_HELP, allow_abbrev=False))
    args = parser.parse_args(argv)
    if args.command is _run:
        _check_source(args, parser)
    return args


def _add_run(run: argparse.ArgumentParser, argv: list[str]) -> None:
    """Arguments of ``run``."""
    run.set_defaults(command=_run, images={}, masks={}, transforms={})
    for key in ("ct", "mr", "pet", "spect"):
        run.add_argument(
            f"--{key}",
            dest=f"images:{key}",
            action=_Once,
            metavar="PATH",
            default=argparse.SUPPRESS,
            help=f"NIfTI, NRRD, MetaImage, PNG or DICOM folder; --{key}-NAME for another one",
        )
    _add_keyed(run, argv)
    run.add_argument("--reference", type=_key, metavar="KEY", help="the image that stays in place")
    run.add_argument("--id", help="name of the case and of its folder (default: case)")
    run.add_argument("--datalist", type=Path, help="JSON list of cases, in place of images")
    run.add_argument(
        "--transform",
        choices=_TRANSFORMS,
        help="how far the registration may go; --transform-KEY for one image",
    )
    run.add_argument("--resume", action="store_true", help="skip cases that are done")
    shared = run.add_mutually_exclusive_group()
    shared.add_argument(
        "--devices", type=_positive, metavar="N", help="GPUs that share the cases, a process each"
    )
    shared.add_argument(
        "--jobs", type=_positive, metavar="N", help="processes on the CPU that share the cases"
    )
    _add_common(run)


def _add_export(export: argparse.ArgumentParser) -> None:
    """Arguments of ``export``."""
    export.set_defaults(command=_export)
    export.add_argument("--output", type=Path, required=True, help="folder for the files")
    export.add_argument("--bundle", type=Path, help="another bundle than the packaged 3D one")
    export.add_argument(
        "--network", default="all", choices=("registration", "harmonization", "fusion", "all")
    )
    export.add_argument("--format", default="pt2", choices=("pt2", "onnx"))
    export.add_argument(
        "--kinds",
        default="ct,mr",
        metavar="KIND,KIND",
        help="of the fused images, in order: ct, mr, emission (default: ct,mr)",
    )
    export.add_argument("--debug", action="store_true", help="show tracebacks")


def _add_common(command: argparse.ArgumentParser) -> None:
    """Arguments of both commands."""
    command.add_argument("--output", type=Path, required=True, help="folder for the results")
    command.add_argument("--bundle", type=Path, help="another bundle than the packaged one")
    command.add_argument("--device", help="cpu, cuda, cuda:1")
    command.add_argument("--refine-steps", type=_count, help="0: the networks alone")
    command.add_argument(
        "--different-people",
        action="store_true",
        help="the images are not of one person (an atlas): softer deformations",
    )
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def _add_keyed(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Arguments whose names the user makes: ``--mr_t1``, ``--transform-pet``, ``--mask-mr-t1``."""
    for option in dict.fromkeys(word.partition("=")[0] for word in argv if word.startswith("--")):
        found = _KEYED.fullmatch(_key(option[2:]))
        if found is None or (not found["option"] and not found["name"]):
            continue
        parser.add_argument(
            option,
            dest=f"{found['option'] or 'image'}s:{found['key']}",
            action=_Once,
            choices=_TRANSFORMS if found["option"] == "transform" else None,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def _check_source(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Images or a datalist, not both and not neither."""
    if args.datalist is None and not args.images:
        parser.error("expected images (--ct, --mr, --pet, --spect) or --datalist, got neither")
    names = ("images", "masks", "transforms", "id", "reference", "transform")
    if args.datalist is not None and any(getattr(args, name) for name in names):
        parser.error("expected images or --datalist, got both; a datalist names its own options")


def _key(text: str) -> str:
    """``mr-t1`` and ``mr_t1`` are the same key."""
    return text.replace("-", "_")


def _count(text: str) -> int:
    """A number of steps."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    """A number of processes."""
    if _count(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return int(text)


def _quiet() -> None:
    """Keep the libraries' messages off the terminal."""
    # without any handler, logging would print a library's warning as a last resort
    logging.getLogger().addHandler(logging.NullHandler())
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)


class Terminal(logging.Handler):
    """Our own messages: progress to stdout, failures to stderr, each on its own lines alone.

    Args:
        debug: show the traceback of a failure as well.
    """

    def __init__(self, *, debug: bool = False) -> None:
        super().__init__(logging.INFO)
        self._debug = debug

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        text = record.getMessage()
        if self._debug and record.exc_info:
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        stream = sys.stderr if record.levelno >= logging.ERROR else sys.stdout
        stream.write(text.rstrip("\n") + "\n")
        stream.flush()


def _log_to_terminal(*, debug: bool) -> None:
    """Our messages, and nobody else's."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.addHandler(Terminal(debug=debug))


if __name__ == "__main__":
    sys.exit(main())
