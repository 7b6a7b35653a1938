"""What the commands share: a parser that complains in one line, and kinds of arguments."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["Parser"]


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds ``(default: …)`` where an option has one.

    An option without a value of its own takes the bundle's, which its help says in words.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """The help of one option."""
        if action.default in (None, []) or isinstance(action.default, bool):
            return action.help
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
    parser.add_argument("--quiet", action="store_true", help="do not say where the run is")
    return parser


def add_inference(parser: Parser) -> None:
    """Arguments of the commands that run cases."""
    parser.set_defaults(interrupted="interrupted; the same command with --resume goes on")
    parser.set_defaults(speaks=True)  # from its first second on: the libraries take some to load
    parser.add_argument(
        "--bundle",
        type=Path,
        metavar="FOLDER",
        help="folder of a bundle (default: the packaged one for 2D or 3D)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="state dict (.pt) or Lightning checkpoint (.ckpt) (default: the bundle's model.pt)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: the bundle's, cpu)")
    parser.add_argument(
        "--refine-steps",
        type=whole_number,
        metavar="N",
        help="steps of refinement on the images (default: the bundle's, 30); 0: the networks alone",
    )
    parser.add_argument(
        "--fuse-steps",
        type=whole_number,
        metavar="N",
        help="steps of refinement of the fused image (default: the bundle's, 18); 0: the network "
        "alone",
    )
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


def key_of(text: str) -> str:
    """``mr-t1`` and ``mr_t1`` are the same key."""
    return text.replace("-", "_")


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
    "HelpFormatter",
    "Parser",
    "add_inference",
    "config_value",
    "key_of",
    "new_command",
    "positive",
    "whole_number",
]
