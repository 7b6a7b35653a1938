"""What the commands share: a parser that complains in one line, and kinds of arguments."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]


NETWORKS = ("registration", "harmonization", "fusion", "all")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds ``(default: …)`` to the help of each option that does not say it in words.

    It does where an option without a value of its own takes the bundle's.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """The help of one option."""
        text = action.help or ""
        named = action.option_strings and action.default is not argparse.SUPPRESS
        if action.required or not named or "(default: " in text:
            return action.help
        if action.default in (None, [], False):
            return f"{text} (default: {'no' if action.default is False else 'none'})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that complains in one line."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def new_command(
    commands: "Commands",
    name: str,
    command: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    epilog: str | None = None,
    output: bool = True,
) -> Parser:
    """A command with what each has: ``--output``, ``--debug`` and ``--quiet``.

    Args:
        commands: where it goes.
        name: what the user types.
        command: runs it and gives the exit code.
        summary: one line for the help.
        epilog: what stands below its help.
        output: it writes a folder.
    """
    parser = commands.add_parser(name, help=summary, description=summary, epilog=epilog)
    parser.set_defaults(command=command, check=None, interrupted="interrupted", speaks=False)
    if output:
        parser.add_argument(
            "--output", type=Path, required=True, metavar="FOLDER", help="folder for the results"
        )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "--quiet", action="store_true", help="do not say where the run is (default: it is said)"
    )
    return parser


def add_inference(parser: Parser) -> None:
    """Arguments of the commands that run cases."""
    parser.set_defaults(interrupted="interrupted; the same command with --resume goes on")
    parser.set_defaults(speaks=True)  # from its first second on: the libraries take some to load
    add_bundle(parser, "the packaged one for 2D or 3D")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="state dict (.pt) or Lightning checkpoint (.ckpt) (default: the bundle's model.pt)",
    )
    add_device(parser)
    for name, what, steps in (
        ("--refine-steps", "refinement on the images", "30); 0: the networks alone"),
        ("--fuse-steps", "refinement of the fused image", "18); 0: the network alone"),
    ):
        add_count(parser, name, f"steps of {what} (default: the bundle's, {steps}")
    parser.add_argument(
        "--colour-map",
        metavar="NAME",
        help="of the uptake in fused_colour: hot, pet_rainbow, hot_iron, … (default: the bundle's, "
        "hot)",
    )
    parser.add_argument(
        "--different-people",
        action="store_true",
        help="the images are not of one person (an atlas): softer deformations",
    )


def add_bundle(parser: Parser, default: str) -> None:
    """``--bundle``."""
    text = f"folder of a bundle (default: {default})"
    parser.add_argument("--bundle", type=Path, metavar="FOLDER", help=text)


def add_device(parser: Parser) -> None:
    """``--device``."""
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: the bundle's, cpu)")


def add_datalist(parser: Parser, text: str, *, required: bool = False) -> None:
    """``--datalist``."""
    parser.add_argument("--datalist", type=Path, required=required, metavar="DATALIST", help=text)


def add_spatial_dims(parser: Parser, text: str) -> None:
    """``--spatial-dims``."""
    parser.add_argument("--spatial-dims", type=int, choices=(2, 3), help=text)


def add_resume(parser: Parser) -> None:
    """``--resume`` of the commands that run cases."""
    parser.add_argument("--resume", action="store_true", help="skip cases that are done")


def add_networks(parser: Parser, name: str, default: str, text: str) -> None:
    """An option that names one network or all."""
    parser.add_argument(name, default=default, choices=NETWORKS, help=text)


def add_count(
    parser: "argparse._ActionsContainer",
    name: str,
    text: str,
    *,
    default: int | None = None,
    metavar: str = "N",
    least: int = 0,
) -> None:
    """An option that is a whole number.

    Args:
        parser: or a group of it.
        name: such as ``--jobs``.
        text: its help.
        default: None: the help says it.
        metavar: how the help calls the number.
        least: 0 or 1.
    """
    kind = positive if least else whole_number
    parser.add_argument(name, type=kind, default=default, metavar=metavar, help=text)


def key_of(text: str) -> str:
    """``mr-t1`` and ``mr_t1`` are the same key."""
    return text.replace("-", "_")


def keyed_path(text: str) -> tuple[str, str]:
    """``mr_t1=path``."""
    key, equals, path = text.partition("=")
    if not (key and equals and path):
        raise argparse.ArgumentTypeError(f"expected KEY=PATH, such as ct=ct.nii.gz, got {text!r}")
    return key_of(key), path


def whole_number(text: str) -> int:
    """A number of steps."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, got {text!r}")
    return int(text)


def config_value(text: str) -> tuple[str, Any]:
    """An id and its value, read as ``python -m monai.bundle`` reads it."""
    from fire.parser import DefaultParseValue

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"expected ID=VALUE, got {text!r}")
    return name, DefaultParseValue(value)


def positive(text: str) -> int:
    """A number of processes."""
    if whole_number(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return int(text)


__all__ = [
    "NETWORKS",
    "HelpFormatter",
    "Parser",
    "add_bundle",
    "add_count",
    "add_datalist",
    "add_device",
    "add_inference",
    "add_networks",
    "add_resume",
    "add_spatial_dims",
    "config_value",
    "key_of",
    "keyed_path",
    "new_command",
]
