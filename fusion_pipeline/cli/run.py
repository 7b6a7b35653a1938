"""``fusion-pipeline run``: one case from its images, or many from a datalist."""

import argparse
import os
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion_pipeline.cli.arguments import (
    Parser,
    add_count,
    add_datalist,
    add_inference,
    add_resume,
    key_of,
    keyed_path,
    new_command,
)
from fusion_pipeline.cli.evaluator import bundle_of, evaluator_of
from fusion_pipeline.cli.process import run_command
from fusion_pipeline.cli.terminal import logger
from fusion_pipeline.modalities import KEY_WORDS, other_kind

if TYPE_CHECKING:
    from fusion_pipeline.cli.arguments import Commands
    from fusion_pipeline.data import CaseFiles

_KEYED = re.compile(
    rf"((?P<option>transform|mask)_)?(?P<key>({'|'.join(KEY_WORDS)})(?P<name>_\w+)?)"
    r"(?<!_label)(?<!_landmarks)(?<!_displacement)(?<!_transform)(?<!_mask)"
)
_SUMMARY = "register, harmonize and fuse the images of one or many patients"
_EPILOG = (
    "per image KEY (ct, mr_t1, ...): --transform-KEY KIND, and --mask-KEY PATH, a mask of where to "
    "look; pictures (PNG, 2D NIfTI) go through the 2D bundle"
)
_WORDS = defaultdict(str, cbct="cone-beam CT, read as a CT: ")
_STAGES = ("register", "harmonize", "fuse")
_TRANSFORMS = ("none", "rigid", "affine", "deformable")


def add_command(commands: "Commands", argv: list[str]) -> None:
    """Arguments of ``run``.

    Args:
        commands: where it goes.
        argv: the arguments as given: some names are made by the user.
    """
    run = new_command(commands, "run", _run, summary=_SUMMARY, epilog=_EPILOG)
    run.set_defaults(images={}, masks={}, transforms={}, check=partial(_check, parser=run))
    for key in KEY_WORDS:
        run.add_argument(
            f"--{key}",
            dest=f"images:{key}",
            action=_Once,
            metavar="PATH",
            default=argparse.SUPPRESS,
            help=f"{_WORDS[key]}NIfTI, NRRD, MetaImage, PNG or DICOM folder; --{key}-NAME for "
            "another one",
        )
    _add_keyed(run, argv)
    _add_case(run)
    add_resume(run)
    run.add_argument(
        "--fail-on-check",
        action="store_true",
        help="leave with 3 where a registration is doubtful (CHECK), though all cases are done",
    )
    _add_dicom(run)
    shared = run.add_mutually_exclusive_group()
    add_count(shared, "--devices", "GPUs that share the cases", least=1)
    add_count(shared, "--jobs", "CPU processes that share the cases (default: 1)", least=1)
    run.add_argument(
        "--bids",
        type=Path,
        metavar="FOLDER",
        help="lay the results out there as well, named as a BIDS derivative",
    )
    add_inference(run)


def _add_case(run: Parser) -> None:
    """Which cases, how far their registration goes, and where it begins."""
    run.add_argument(
        "--reference",
        type=key_of,
        metavar="KEY",
        help="the image that stays in place (default: the CT, else the first MR)",
    )
    run.add_argument("--id", help="name of the case and of its folder (default: case)")
    add_datalist(run, "JSON list of cases, in place of images")
    run.add_argument(
        "--only",
        choices=_STAGES,
        help="one stage alone. register: writes registered images and transforms. harmonize: one "
        "image or more, those on one grid together and others each on its own; writes harmonized "
        "images and their curves. fuse: original images that are aligned already, by their "
        "headers; writes the fused image and the weights (default: all stages)",
    )
    run.add_argument(
        "--transform",
        choices=_TRANSFORMS,
        help="how far the registration may go (default: deformable); --transform-KEY for one "
        "image; with a datalist: where an entry has no KEY_transform",
    )
    run.add_argument(
        "--initial-transform",
        dest="initial_transforms",
        action="append",
        type=keyed_path,
        default=[],
        metavar="KEY=FILE",
        help="a rigid or affine transform at which the registration of a moving image begins, "
        "beside its header; with --transform none the result. ITK's .tfm, .h5 or .txt (LPS mm), or "
        "a matrix as text (RAS mm). It maps points of the reference to points of the moving image, "
        "as SimpleITK's and ANTs' resampling takes it (default: the headers alone)",
    )


def _add_dicom(run: Parser) -> None:
    """Arguments of DICOM output."""
    run.add_argument(
        "--dicom",
        action="store_true",
        help="write DICOM objects as well: OUTPUT/ID/dicom",
    )
    run.add_argument(
        "--dicom-identity",
        choices=("copy", "remove"),
        help="patient and study of the DICOM objects: as the input's headers say, or none "
        "(default: copy)",
    )
    run.add_argument(
        "--patient-id",
        metavar="ID",
        help="PatientID, where no DICOM header says it (default: empty)",
    )
    run.add_argument(
        "--patient-name",
        metavar="NAME",
        help="PatientName, Family^Given, where no DICOM header says it (default: empty)",
    )


def _run(args: argparse.Namespace) -> int:
    """``fusion-pipeline run``."""
    from fusion_pipeline.data import check_output_folder
    from fusion_pipeline.pipeline import (
        FusionPipeline,
        check_bids_labels,
        run_processes,
        spatial_dims_of_cases,
    )

    count = _process_count(args)
    cases = _cases(args)
    check_output_folder(args.output)
    if args.bids is not None:
        check_bids_labels(case.id for case in cases)
        check_output_folder(args.bids)
    dims = spatial_dims_of_cases(cases)
    if count > 1 and len(cases) > 1:
        # what is wrong with the bundle is said once, and no GPU is woken
        FusionPipeline.from_bundle(bundle_of(args, dims), weights=args.weights, device="cpu")
        alone = argparse.Namespace(
            **vars(args) | {"devices": None, "jobs": None, "check": None, "bids": None}
        )
        code = run_processes(run_command, alone, min(count, len(cases)))
        _write_bids(args, cases)
        return code
    evaluator = evaluator_of(
        args,
        dims,
        cases=cases,
        resume=args.resume,
        fail_on_check=args.fail_on_check,
        only=args.only,
    )
    evaluator.run()
    if len(cases) == 1 and evaluator.exit_code in (0, 3):
        logger.info("report: %s", args.output / cases[0].id / "report.html")
    _write_bids(args, cases)
    return evaluator.exit_code


def _write_bids(args: argparse.Namespace, cases: "list[CaseFiles]") -> None:
    """``--bids``: of every case that has a result, at the end and by one process."""
    from fusion_pipeline.pipeline import write_bids

    if args.bids is None:
        return
    for case in cases:
        folder = args.output / case.id
        if (folder / "report.json").is_file():
            write_bids(folder, args.bids)
    logger.info("BIDS derivative: %s", args.bids)


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


def _cases(args: argparse.Namespace) -> "list[CaseFiles]":
    """The cases that the arguments name."""
    from fusion_pipeline.data import case_from_paths, read_datalist
    from fusion_pipeline.pipeline import fewest_images

    fewest = fewest_images(args.only)
    if args.datalist is not None:
        return read_datalist(
            args.datalist, transform=args.transform or "deformable", fewest_images=fewest
        )
    transforms = dict(args.transforms)
    if args.transform is not None:
        transforms = dict.fromkeys(args.images, args.transform) | transforms
        # the reference stays where it is
        transforms.pop(_reference(args), None)
    return [
        case_from_paths(
            args.id or "case",
            args.images,
            args.reference,
            transforms,
            args.masks,
            args.initial_transforms,
            fewest_images=fewest,
        )
    ]


def _reference(args: argparse.Namespace) -> str | None:
    """The key that the case will take as its reference."""
    from fusion_pipeline.data import default_reference

    return args.reference or (default_reference(list(args.images)) if args.images else None)


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


def _refused_kind(name: str, _: str) -> str:
    """Refuse an image of a kind that is not read, such as ``--us``, and say what to do."""
    what, advice = other_kind(name) or ("", "")
    raise argparse.ArgumentTypeError(f"expected CT, MR, PET or SPECT, got {what}; {advice}")


def _add_keyed(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Arguments whose names the user makes: ``--mr_t1``, ``--transform-pet``, ``--mask-mr-t1``."""
    for option in dict.fromkeys(word.partition("=")[0] for word in argv if word.startswith("--")):
        named = _KEYED.fullmatch(key_of(option[2:]))
        if named is None and other_kind(option[2:]) is not None:
            kind = partial(_refused_kind, option[2:])
            parser.add_argument(option, type=kind, help=argparse.SUPPRESS)
        if named is None or (not named["option"] and not named["name"]):
            continue
        parser.add_argument(
            option,
            dest=f"{named['option'] or 'image'}s:{named['key']}",
            action=_Once,
            choices=_TRANSFORMS if named["option"] == "transform" else None,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def _check(args: argparse.Namespace, *, parser: Parser) -> None:
    """Images or a datalist, not both and not neither; options only with what they belong to."""
    for name in ("dicom_identity", "patient_id", "patient_name"):
        if getattr(args, name) is not None and not args.dicom:
            parser.error(f"expected --dicom with --{name.replace('_', '-')}, got none; add it")
    if args.datalist is not None and (args.patient_id or args.patient_name):
        parser.error("expected --patient-id and --patient-name for one case, got a datalist")
    if args.datalist is None and not args.images:
        options = ", ".join(f"--{key}" for key in KEY_WORDS)
        parser.error(f"expected images ({options}) or --datalist, got neither")
    names = ("images", "masks", "transforms", "id", "reference", "initial_transforms")
    if args.datalist is not None and any(getattr(args, name) for name in names):
        parser.error(
            "expected images or --datalist, got both; of the options of a case only --transform "
            "goes with a datalist, which names the others itself"
        )
    keys = [key for key, _ in args.initial_transforms]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        parser.error(f"--initial-transform {twice[0]} is given twice")
    args.initial_transforms = dict(args.initial_transforms)
    _check_only(args, parser)


def _check_only(args: argparse.Namespace, parser: Parser) -> None:
    """Nothing is asked of a stage that does not run."""
    if args.only not in ("harmonize", "fuse"):
        return
    names = ("transform", "transforms", "masks", "initial_transforms")
    unused = next((name for name in names if getattr(args, name)), None)
    if unused is not None:
        option = f"--{unused.removesuffix('s').replace('_', '-')}"
        parser.error(
            f"expected no {option} with --only {args.only}, which registers nothing; leave it out"
        )
    if args.only == "harmonize" and args.dicom:
        parser.error(
            "expected no --dicom with --only harmonize: harmonized images have no DICOM kind; "
            "leave it out"
        )


__all__ = ["add_command"]
